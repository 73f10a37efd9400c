"""The order's transition table as data (DESIGN section 4); docs/states.md is rendered from it.

Nothing else decides what may follow what: the store checks every move against this table, and the
database refuses to leave a final status.
"""

from collections.abc import Iterator

from fulfillment.errors import IllegalTransition
from schemas.enums import OrderStatus as S

FINAL = frozenset({S.COMPLETED, S.REVERSED, S.FAILED, S.CANCELLED, S.EXPIRED})
#: The provider has not confirmed the order yet; we act.
LOCAL = frozenset({S.RECEIVED, S.QUOTED, S.AWAITING_FUNDS, S.RESERVED, S.SUBMITTING})
#: The provider has the order; we follow.
FOLLOWED = frozenset({S.ACCEPTED, S.QUEUED, S.PROCESSING, S.PENDING, S.SENT})
#: Of those: the Steam offer is not out yet.
BEFORE_OFFER = FOLLOWED - {S.SENT}
#: Waiting for a catalog and a wallet answer: what `checkout.dispatch` claims.
WAITING = frozenset({S.RECEIVED, S.QUOTED, S.AWAITING_FUNDS})
#: Ends in which the customer got nothing.
UNFULFILLED = frozenset({S.FAILED, S.CANCELLED, S.EXPIRED})

# accepted, queued and processing are one rank: the contract gives no order among them (K4).
RANK: dict[S, int] = {
    S.RECEIVED: 0,
    S.QUOTED: 1,
    S.AWAITING_FUNDS: 2,
    S.RESERVED: 3,
    S.SUBMITTING: 4,
    S.ACCEPTED: 5,
    S.QUEUED: 5,
    S.PROCESSING: 5,
    S.PENDING: 6,
    S.SENT: 7,
    S.COMPLETED: 8,
    S.FAILED: 8,
    S.CANCELLED: 8,
    S.EXPIRED: 8,
    S.REVERSED: 9,
}

_FORWARD_AT_PROVIDER = {
    S.ACCEPTED: "the provider has taken the order",
    S.QUEUED: "the provider has queued it",
    S.PROCESSING: "the provider works on it",
    S.PENDING: "delivery has begun",
    S.SENT: "the Steam offer is out; the trade window runs",
    S.COMPLETED: "the customer has the item",
    S.FAILED: "the provider ended it before delivery",
    S.CANCELLED: "cancelled before delivery",
    S.EXPIRED: "the customer did not accept in time",
    S.REVERSED: "delivered and undone before we looked",
}


def _local_edges() -> dict[tuple[S, S], str]:
    return {
        (S.RECEIVED, S.QUOTED): "the item is in a fresh catalog at an allowed price",
        (S.QUOTED, S.RESERVED): "the wallet covers it; money is held",
        (S.QUOTED, S.AWAITING_FUNDS): "the wallet, or a spend cap, does not cover it",
        (S.AWAITING_FUNDS, S.QUOTED): "there is money now; a fresh catalog still has the item",
        (S.RESERVED, S.SUBMITTING): (
            "the intent is committed before the first byte leaves; "
            "or its route's next account is tried, or it is priced afresh, before one could"
        ),
        (S.RECEIVED, S.FAILED): "refused by us: item, price or time",
        (S.QUOTED, S.FAILED): "refused by us: item, price, funds or time",
        (S.AWAITING_FUNDS, S.FAILED): "refused by us: no funds in time, item, price or time",
        (S.RESERVED, S.FAILED): "refused by us: too late to submit",
        (S.SUBMITTING, S.FAILED): "the definite no of the provider, or of a route's last account",
        (S.SUBMITTING, S.NEEDS_REVIEW): "unknown outcome that no automatic move may resolve",
    }


def _edges() -> dict[tuple[S, S], str]:
    edges = _local_edges()
    for source in (S.SUBMITTING, *(status for status in S if status in FOLLOWED)):
        for target, reason in _FORWARD_AT_PROVIDER.items():
            if target is S.EXPIRED and source not in (S.SUBMITTING, S.PENDING, S.SENT):
                # The window only runs on an offer; a poll that skipped `sent` comes from pending
                # or, when every earlier report was lost, from any followed status.
                reason = "the customer did not accept in time; `sent` was not seen"
            one_rank = RANK[target] == RANK[source] and target not in FINAL
            if source is not target and (RANK[target] > RANK[source] or one_rank):
                edges.setdefault((source, target), reason)
    for source in S:
        if source in FOLLOWED:
            edges[(source, S.NEEDS_REVIEW)] = (
                "the provider tells of another item, purchase or recipient, "
                "or it stays so for too long"
            )
    edges[(S.COMPLETED, S.REVERSED)] = "the one exit from a final status: the trade was undone"
    for target, reason in _FORWARD_AT_PROVIDER.items():
        edges[(S.NEEDS_REVIEW, target)] = f"adopted or resolved: {reason}"
    return edges


TRANSITIONS: dict[tuple[S, S], str] = _edges()


def is_legal(source: S, target: S) -> bool:
    """Say whether the table has this edge."""
    return (source, target) in TRANSITIONS


def check(source: S, target: S) -> None:
    """Raise IllegalTransition when the table lacks the edge: that is a bug, not a race."""
    if not is_legal(source, target):
        raise IllegalTransition(source, target)


def render() -> str:
    """Write docs/states.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Order status"
    yield ""
    yield "Rendered from `fulfillment/states.py` (`fulfillment states`); do not edit by hand."
    yield ""
    yield "| status | rank | kind |"
    yield "| --- | --- | --- |"
    for status in S:
        kind = "final" if status in FINAL else "ours" if status in LOCAL else "at the provider"
        kind = "a person decides" if status is S.NEEDS_REVIEW else kind
        yield f"| `{status}` | {RANK.get(status, '-')} | {kind} |"
    yield ""
    yield "| from | to | why |"
    yield "| --- | --- | --- |"
    for (source, target), reason in TRANSITIONS.items():
        yield f"| `{source}` | `{target}` | {reason} |"
