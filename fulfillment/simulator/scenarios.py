"""What can happen to an order, as a table: its way through the statuses, the answer to its POST, its webhooks.

An order gets the scenario set for its externalId by API, else the one its externalId names after the last dot
(`demo-07.webhooks_lost`), else the one set for its catalog item, else the default. A recipient with a problem
goes before all. The statuses are the market's own; each dialect puts them into its provider's words.
"""

# ruff: noqa: E501 - a row of the table stays on one line

from dataclasses import dataclass, field

from fulfillment.simulator.recipients import PROBLEMS


@dataclass(frozen=True, slots=True)
class Step:
    """One status change, `at` virtual seconds (and `windows` trade windows) after acceptance.

    `settled` is no status: it ends the hold of a completed order.
    """

    status: str
    at: float
    windows: float = 0.0
    failure: str | None = None
    refund: bool = True

    def due_s(self, window_s: float) -> float:
        return self.at + self.windows * window_s


@dataclass(frozen=True, slots=True)
class WebhookPlan:
    """What happens to an order's callbacks on their way."""

    lost: tuple[str, ...] = ()  # statuses whose callback is never sent; "*" is every one
    copies: int = 1
    delay_s: float = 0.0
    mirrored: bool = False  # the newest first, the oldest last
    tamper: str = ""  # of every genuine callback, see webhooks.TAMPERS
    forgeries: tuple[str, ...] = ()  # extra ones claiming `completed`, tampered with like this


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table."""

    name: str
    description: str
    steps: tuple[Step, ...]
    webhooks: WebhookPlan = field(default_factory=WebhookPlan)
    before: str = ""  # fault answered instead of creating the order
    after: str = ""  # fault done to the answer once the order exists
    posts: int = 1  # how many first POSTs of the id meet `before` or `after`
    called_back_first: tuple[str, ...] = ()  # delivered as callbacks before the POST's answer
    hidden_s: float = 0.0  # lookups answer 404 this long after acceptance
    extra_cents: int = 0  # charged on top of the price
    stalls_s: float = 0.0  # virtual, how long the POST is held back before it is looked at
    refuse: str = ""  # said at once by providers that refuse at once; the others play the steps
    recipient: str = ""  # name of the recipient's problem
    repeat: str = ""  # the first POST is answered as a repeat: "conflict" or "failed"
    undone_by: str = "user"  # or "supplier"


TO_SENT = (Step("queued", 0.5), Step("processing", 1), Step("pending", 2), Step("sent", 4))
DELIVERED = (*TO_SENT, Step("completed", 20))
ALWAYS = 1_000_000


def _ends(status: str, failure: str | None, at: float = 3, refund: bool = True) -> tuple[Step, ...]:
    return (*TO_SENT[:2], Step(status, at, failure=failure, refund=refund))


def refusal(code: str) -> tuple[Step, ...]:
    """Give the way of an order that is accepted, then found impossible by the provider's worker."""
    return _ends("failed", code, at=1.5)


# fmt: off
_TABLE = (
    Scenario("delivered", "every step, a webhook for each, completed after 20 s", DELIVERED),
    # Webhooks
    Scenario("webhooks_lost", "delivered, but no webhook is ever sent", DELIVERED, WebhookPlan(lost=("*",))),
    Scenario("webhooks_final_lost", "delivered, only the webhook of `completed` is lost", DELIVERED, WebhookPlan(lost=("completed",))),
    Scenario("webhooks_doubled", "every webhook comes twice with the same delivery id", DELIVERED, WebhookPlan(copies=2)),
    Scenario("webhooks_reordered", "webhooks come in reverse, `completed` first", DELIVERED, WebhookPlan(mirrored=True)),
    Scenario("webhooks_late", "every webhook comes 90 s late", DELIVERED, WebhookPlan(delay_s=90)),
    Scenario("webhooks_forged", "beside the true ones come forgeries that claim `completed`", DELIVERED, WebhookPlan(forgeries=("key", "body", "garbage"))),
    Scenario("webhooks_bad_signature", "every webhook is signed with another key", DELIVERED, WebhookPlan(tamper="key")),
    Scenario("webhooks_reserialised", "every body is formatted anew after it was signed", DELIVERED, WebhookPlan(tamper="spaces")),
    Scenario("webhooks_stale", "well signed, but stamped two hours ago", DELIVERED, WebhookPlan(tamper="stale")),
    Scenario("webhook_before_answer", "`accepted` and `processing` are called back before the POST is answered", DELIVERED[2:], called_back_first=("accepted", "processing")),
    Scenario("completed_before_answer", "`completed` is called back before the POST is answered", (), called_back_first=("completed",)),
    # Ends
    Scenario("fails_after_accept", "failed with item_unavailable after the 202, refunded", _ends("failed", "item_unavailable")),
    Scenario("price_changes_after_accept", "failed with price_changed after the 202, refunded", _ends("failed", "price_changed")),
    Scenario("funds_fail_after_accept", "failed with insufficient_funds after the 202, refunded", _ends("failed", "insufficient_funds")),
    Scenario("unknown_failure", "failed with a code nobody documented", _ends("failed", "recipient_trade_banned")),
    Scenario("refund_missing", "failed after the 202, the money never comes back", _ends("failed", "item_unavailable", refund=False)),
    Scenario("cancelled", "cancelled by the provider, refunded", _ends("cancelled", "cancelled")),
    Scenario("cancelled_as_failed", "status failed with the code `cancelled`", _ends("failed", "cancelled")),
    Scenario("declined", "the recipient declines the sent offer: failed with `cancelled`", (*TO_SENT, Step("failed", 10, failure="cancelled"))),
    Scenario("expired", "stays sent to the end of the window, then expires", (*TO_SENT, Step("expired", 4, windows=1))),
    Scenario("overdue", "stays sent for two windows, then completes after all", (*TO_SENT, Step("completed", 4, windows=2))),
    Scenario("reversed", "completed, reversed 40 s later, refunded", (*DELIVERED, Step("reversed", 60))),
    Scenario("reversed_without_refund", "completed, reversed 40 s later, money gone", (*DELIVERED, Step("reversed", 60, refund=False))),
    Scenario("contradicted", "failed and refunded, then completed and charged again", (*_ends("failed", "item_unavailable"), Step("completed", 15))),
    Scenario("stuck", "accepted and never moved", ()),
    Scenario("never_delivered_offline", "sent to a recipient who never looks; never ends", TO_SENT),
    Scenario("unknown_status", "reports `inspecting`, a word of no contract, then completes", (*TO_SENT[:1], Step("inspecting", 2), *TO_SENT[3:], Step("completed", 25))),
    Scenario("overcharged", "delivered, one cent more than the price is charged", DELIVERED, extra_cents=1),
    # The POST's answer
    Scenario("timeout_after_accept", "order created, the first POST is never answered", DELIVERED, after="hang"),
    Scenario("timeout_and_silence", "order created, the first POST is never answered, no webhook is ever sent", DELIVERED, WebhookPlan(lost=("*",)), after="hang"),
    Scenario("timeout_before_accept", "nothing created, the first POST is never answered", DELIVERED, before="hang"),
    Scenario("timeout_and_hidden", "order created, POST never answered, lookups say 404 for 45 s", DELIVERED, after="hang", hidden_s=45),
    Scenario("error_after_accept", "order created, the first POST gets a 500", DELIVERED, after="error"),
    Scenario("error_before_accept", "nothing created, the first POST gets a 503", DELIVERED, before="outage"),
    Scenario("errors_three_times", "nothing created, three POSTs get a 503", DELIVERED, before="outage", posts=3),
    Scenario("reset_after_accept", "order created, the answer breaks off in mid-body", DELIVERED, after="torn"),
    Scenario("dropped_after_accept", "order created, connection closed without a byte", DELIVERED, after="drop"),
    Scenario("dropped_before_accept", "nothing created, connection closed without a byte", DELIVERED, before="drop"),
    Scenario("garbage_answer", "order created, a 202 whose body is no JSON", DELIVERED, after="garbage"),
    Scenario("html_answer", "order created, a 200 page of HTML", DELIVERED, after="html_page"),
    Scenario("foreign_answer", "order created, the answer names another order", DELIVERED, after="foreign_order"),
    Scenario("late_answer", "order created, the first POST is answered after 3 real seconds", DELIVERED, after="latency"),
    Scenario("rate_limited", "nothing created, the first POST gets 429 with Retry-After: 1", DELIVERED, before="rate_limited"),
    Scenario("item_gone", "the catalog shows the item, every POST gets 404", DELIVERED, before="not_found", posts=ALWAYS, refuse="item_unavailable"),
    # With the next two a client that gave up cannot know yet: the order is made after it hung up.
    Scenario("stalled_before_accept", "the first POST is held back for 30 s, then the order is created and answered", DELIVERED, stalls_s=30),
    Scenario("stalled_and_dropped", "the first POST is held back for 30 s, then dropped with nothing created", DELIVERED, before="drop", stalls_s=30),
    # Refused at once (SkinsNode: accepted, then failed)
    Scenario("refused_price", "refused: nothing at or below the highest price", refusal("price_changed"), refuse="price_changed"),
    Scenario("refused_funds", "refused: the balance is too low", refusal("insufficient_funds"), refuse="insufficient_funds"),
    Scenario("refused_item", "refused: the item cannot be bought", refusal("item_unavailable"), refuse="item_unavailable"),
    Scenario("refused_unavailable", "refused: the provider is down for now", refusal("provider_unavailable"), refuse="provider_unavailable"),
    Scenario("refused_unknown", "refused with a code nobody documented", refusal("blue_moon"), refuse="blue_moon"),
    # The same id
    Scenario("duplicate_id", "order created, the first POST is answered as a repeat (SkinsBack error 7, Skinslink 409)", DELIVERED, repeat="conflict"),
    Scenario("duplicate_purchase", "order created, the first POST is answered as a repeat (SkinsBack error 7, Skinslink `duplicate_purchase`)", DELIVERED, repeat="failed"),
    # Hold and settlement (SkinsNode knows none)
    Scenario("hold_settles", "completed into a hold that ends 40 s later", (*DELIVERED, Step("settled", 60))),
    Scenario("rollback_user", "completed into a hold, undone by the recipient 40 s later, refunded", (*DELIVERED, Step("reversed", 60))),
    Scenario("rollback_supplier", "completed into a hold, undone by the supplier 40 s later, refunded", (*DELIVERED, Step("reversed", 60)), undone_by="supplier"),
    Scenario("reversed_after_settling", "completed, the hold ends 20 s later, undone after all 20 s later, refunded", (*DELIVERED, Step("settled", 40), Step("reversed", 60))),
    # Trouble with the trade itself
    Scenario("trade_not_created", "the trade offer cannot be made, no reason given, refunded", _ends("failed", "trade_not_created", at=1.5)),
    *(
        Scenario(f"recipient_{p.name}", f"the recipient's fault: {p.description}, refunded", _ends("failed", f"recipient_{p.name}", at=1.5), recipient=p.name)
        for p in PROBLEMS.values()
    ),
)
# fmt: on

SCENARIOS = {scenario.name: scenario for scenario in _TABLE}


def named_by(external_id: str) -> Scenario | None:
    """Find the scenario an externalId asks for by its suffix."""
    _, dot, suffix = external_id.rpartition(".")
    return SCENARIOS.get(suffix) if dot else None


def describe() -> list[tuple[str, str]]:
    """List every scenario with its one-line description, for the docs and the control API."""
    return [(scenario.name, scenario.description) for scenario in _TABLE]
