"""Attempts and the money held for them: an append-only ledger beside the provider's figure.

available = the provider's last figure - holds that this figure does not tell of yet (DESIGN 5).
Whoever allocates locks the wallet's row first. An order has at most one attempt an account (beside
those that were put aside), and at most one that is open: after a no, an order with a route goes on
to its next account.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fulfillment.crash import crash_point
from fulfillment.store.accounts import SAME_WALLET
from fulfillment.store.engine import Session
from fulfillment.store.models import ATTEMPT_COLUMNS, Attempt, columns
from schemas.enums import AttemptState


@dataclass(frozen=True, slots=True)
class Posting:
    """What becomes of the money of one attempt, with the reason that the ledger keeps.

    The attempt is the one at the order's account, unless another account is named.
    """

    order_id: int
    reason: str
    amount_mills: int | None = None
    account: str | None = None


_LOCK_WALLET = (
    f"SELECT account FROM wallets WHERE account = ANY({SAME_WALLET}) OR account = %(account)s "  # noqa: S608
    "ORDER BY account FOR UPDATE"
)


def lock_wallet(session: Session, account: str) -> None:
    """Make this transaction the only one that allocates from the account's wallet.

    Processes of before may know it by another name.
    """
    names = session.rows(_LOCK_WALLET, {"account": account})
    if (account,) not in names:
        session.execute(
            "INSERT INTO wallets (account) VALUES (%(account)s) ON CONFLICT DO NOTHING",
            {"account": account},
        )
        session.rows(_LOCK_WALLET, {"account": account})


def has_figure_since_catalog(session: Session, account: str, since: datetime) -> bool:
    """Say whether the stored figure was asked for after `since` and after the last catalog was."""
    row = session.one(
        "SELECT 1 FROM wallets w JOIN accounts a ON a.name = w.account "
        "WHERE w.account = %(account)s AND w.requested_at >= greatest(a.catalog_at, %(since)s)",
        {"account": account, "since": since},
    )
    return row is not None


def available_mills(session: Session, account: str) -> int:
    """Give what may be committed now; nothing where no figure was ever read.

    A charge above its hold, or above what was told before, counts in full until a figure tells of
    it: the first part may be seen before the rest. Of a former name's no figure tells: for a day.
    """
    row = session.one(
        f"""
            SELECT coalesce(w.figure_mills, 0) - (
                SELECT coalesce(sum(greatest(a.hold_mills, coalesce(o.charged_mills, 0))), 0)
                  FROM attempts a JOIN orders o ON o.id = a.order_id
                 WHERE a.account = ANY({SAME_WALLET}) AND a.absorbed_at IS NULL) - (
                SELECT coalesce(sum(greatest(o.charged_mills - a.hold_mills, j.more)), 0)
                  FROM attempts a JOIN orders o ON o.id = a.order_id AND o.account = a.account
                 CROSS JOIN LATERAL (
                       SELECT coalesce(sum(e.amount_mills), 0) AS more FROM wallet_entries e
                        WHERE e.order_id = a.order_id AND e.account = a.account
                          AND e.kind = 'adjust' AND e.amount_mills > 0) j
                 WHERE a.account = ANY({SAME_WALLET}) AND a.unbooked > 0
                   AND (a.account = w.account OR o.updated_at > w.requested_at - interval '1 day')
                   AND a.state IN ('accepted', 'completed') AND a.absorbed_at IS NOT NULL)
              FROM wallets w WHERE w.account = %(account)s
            """,  # noqa: S608 - a constant
        {"account": account},
    )
    return int(row[0]) if row else 0


def hold(
    session: Session,
    account: str,
    amounts: Mapping[int, int],
    names: Mapping[int, str],
    now: datetime,
) -> None:
    """Open an attempt with its hold (mills) for each order. The wallet's row must be locked."""
    session.execute(
        """
            WITH opened AS (
                INSERT INTO attempts
                       (order_id, account, external_id, state, hold_mills, posts, created_at)
                SELECT n.order_id, %(account)s, n.external_id, 'reserved', n.mills, 0, %(now)s
                  FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(names)s AS text[]),
                              CAST(%(mills)s AS bigint[])) AS n(order_id, external_id, mills)
                RETURNING *
            )
            INSERT INTO wallet_entries
                   (account, order_id, attempt_id, kind, amount_mills, at, reason)
            SELECT account, order_id, id, 'hold', hold_mills, %(now)s, 'reserved' FROM opened
            """,
        {
            "account": account,
            "ids": list(amounts),
            "mills": list(amounts.values()),
            "names": [names[order_id] for order_id in amounts],
            "now": now,
        },
    )
    crash_point("ledger.held")


_ATTEMPTS_OF = f"""
    SELECT {columns(ATTEMPT_COLUMNS, "a")} FROM orders o
      JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
     WHERE o.id = ANY(%(ids)s)
    """  # noqa: S608 - the names are constants


def attempts_of(session: Session, order_ids: Sequence[int]) -> dict[int, Attempt]:
    """Give each order's attempt at its present account, where it has one."""
    rows = session.execute(_ATTEMPTS_OF, {"ids": list(order_ids)})
    return {attempt.order_id: attempt for attempt in map(Attempt.of, rows)}


def tried_at(session: Session, order_ids: Sequence[int]) -> dict[int, dict[str, str | None]]:
    """Give the accounts at which orders have, or had, an attempt, and at which merchant.

    None: nothing was sent there; "": it was not kept who got it.
    """
    rows = session.rows(
        "SELECT order_id, jsonb_object_agg(account, CASE WHEN posts > 0 THEN "
        "coalesce(merchant, '') END ORDER BY posts > 0, id) FROM attempts "
        "WHERE order_id = ANY(%(ids)s) GROUP BY order_id",
        {"ids": list(order_ids)},
    )
    return dict(rows)


def is_tried(session: Session, account: str, external_id: str) -> bool:
    """Say whether the order has, or had, an attempt at the account."""
    row = session.one(
        "SELECT 1 FROM attempts a JOIN orders o ON o.id = a.order_id "
        "WHERE a.account = %(account)s AND o.external_id = %(external_id)s",
        {"account": account, "external_id": external_id},
    )
    return row is not None


def begin_posts(
    session: Session, bodies: Mapping[int, bytes], merchant: str, now: datetime
) -> None:
    """Store the sealed bodies about to be sent, by order; from here on the outcome is unknown.

    `merchant` is who gets them.
    """
    session.execute(
        """
            UPDATE attempts a SET state = 'sending', body_sealed = b.body, posts = posts + 1,
                   sending_at = coalesce(sending_at, %(now)s), last_post_at = %(now)s,
                   unknown_since = coalesce(unknown_since, %(now)s),
                   merchant = CASE WHEN unknown_since IS NULL THEN %(merchant)s
                                   ELSE merchant END,
                   empty_lookups = 0, empty_since = NULL, empty_at = NULL, odd_refusal = NULL
              FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(bodies)s AS bytea[]))
                   AS b(order_id, body)
             WHERE a.order_id = b.order_id AND a.state IN ('reserved', 'sending')
            """,
        {
            "ids": list(bodies),
            "bodies": list(bodies.values()),
            "merchant": merchant,
            "now": now,
        },
    )


def note_empty_lookups(
    session: Session, account: str, asked: Mapping[int, tuple[datetime, datetime]]
) -> None:
    """Count a lookup that did not find the order, by order: when it was asked for and answered.

    From the first answer to the last question: on their way both take as long as they take.
    """
    session.execute(
        """
            UPDATE attempts a SET empty_lookups = empty_lookups + 1, empty_at = b.at,
                   empty_since = coalesce(empty_since, b.told_at)
              FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(ats)s AS timestamptz[]),
                          CAST(%(told_ats)s AS timestamptz[])) AS b(order_id, at, told_at)
             WHERE a.order_id = b.order_id AND a.account = %(account)s AND a.state = 'sending'
            """,
        {
            "account": account,
            "ids": list(asked),
            "ats": [at for at, _ in asked.values()],
            "told_ats": [told_at for _, told_at in asked.values()],
        },
    )


def note_odd_refusals(session: Session, account: str, told: Mapping[int, str]) -> None:
    """Note what the last posts were refused with, by order, where that proves nothing."""
    session.execute(
        """
            UPDATE attempts a SET odd_refusal = b.told
              FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(told)s AS text[])) AS b(order_id, told)
             WHERE a.order_id = b.order_id AND a.account = %(account)s AND a.state = 'sending'
            """,
        {"account": account, "ids": list(told), "told": list(told.values())},
    )


def note_strange(session: Session, order_ids: Sequence[int], now: datetime) -> None:
    """Note that the account of these orders is not that of the merchant that has them any more."""
    session.execute(
        "UPDATE attempts a SET strange_since = %(now)s FROM orders o "
        "WHERE o.id = ANY(%(ids)s) AND a.account = o.account AND a.external_id = o.external_id",
        {"ids": list(order_ids), "now": now},
    )


def note_own(session: Session, account: str, order_ids: Sequence[int], merchant: str) -> None:
    """Note that the account, as it is now, is the one that the orders were begun at."""
    session.execute(
        "UPDATE attempts SET strange_since = NULL, "
        "merchant = CASE WHEN merchant IS NOT NULL THEN %(merchant)s END "
        "WHERE order_id = ANY(%(ids)s) AND account = %(account)s",
        {"account": account, "ids": list(order_ids), "merchant": merchant},
    )


# The orders of an account that are under way or watched; each has a time at which it is due. Also
# those that went on from it and are not bought yet: it may be asked for them.
_BEGUN = """
      FROM orders o JOIN attempts a ON a.order_id = o.id AND a.external_id = o.external_id
     WHERE a.account = %(account)s AND a.merchant IS NOT NULL
       AND (o.next_attempt_at IS NOT NULL OR o.next_poll_at IS NOT NULL)
       AND (o.account = a.account OR o.next_attempt_at IS NOT NULL AND o.told_early_at IS NOT NULL)
    """


def merchants_of(session: Session, account: str) -> list[str]:
    """Say at which merchants the account's orders that are under way or watched were begun."""
    rows = session.rows(f"SELECT DISTINCT a.merchant {_BEGUN}", {"account": account})
    return [merchant for (merchant,) in rows]


def begun_at(session: Session, account: str, merchant: str, limit: int) -> list[int]:
    """Give the account's orders, under way or watched, that were begun at this merchant."""
    rows = session.rows(
        f"SELECT o.id {_BEGUN} AND a.merchant = %(merchant)s ORDER BY o.id LIMIT %(limit)s",
        {"account": account, "merchant": merchant, "limit": limit},
    )
    return [order_id for (order_id,) in rows]


def not_sent(session: Session, order_ids: Sequence[int]) -> None:
    """Note that the last post never left, of attempts that had no other post before it."""
    session.execute(
        "UPDATE attempts SET unknown_since = NULL, posts = 0 WHERE order_id = ANY(%(ids)s) "
        "AND state = 'sending' AND posts = 1",
        {"ids": list(order_ids)},
    )


def confirm(
    session: Session, order_ids: Sequence[int], merchant: str | None, now: datetime
) -> None:
    """Note that the provider has the orders; its figure will tell of their money from now on.

    What we sent to nobody is had by `merchant`, who says so.
    """
    session.execute(
        """
            UPDATE attempts SET state = 'accepted', confirmed_at = %(now)s, unknown_since = NULL,
                   merchant = CASE WHEN posts = 0 THEN coalesce(%(merchant)s, merchant)
                                   ELSE merchant END
             WHERE order_id = ANY(%(ids)s) AND state IN ('reserved', 'sending')
            """,
        {"ids": list(order_ids), "merchant": merchant, "now": now},
    )
    crash_point("ledger.confirmed")


def refuse(session: Session, postings: Sequence[Posting], now: datetime) -> None:
    """Release the holds of attempts that the provider never had: their money is free at once."""
    _close(
        session, postings, now, state=AttemptState.REFUSED, kind="release", was="reserved,sending"
    )
    crash_point("ledger.released", postings)


def put_aside(session: Session, order_ids: Sequence[int]) -> None:
    """Take the names of refused attempts of which nothing was sent: there may be others instead.

    The new name is none that an order can have.
    """
    session.execute(
        "UPDATE attempts a SET external_id = '#' || a.id FROM orders o WHERE o.id = ANY(%(ids)s) "
        "AND a.account = o.account AND a.external_id = o.external_id "
        "AND a.state = 'refused' AND a.posts = 0",
        {"ids": list(order_ids)},
    )


# Also an order that had ended, should the provider turn out to have delivered and charged it.
_SETTLED_FROM = "accepted,refused,ended"


def settle(session: Session, postings: Sequence[Posting], now: datetime) -> None:
    """Book what was charged (mills; the held amount where the provider did not say)."""
    _close(session, postings, now, state=AttemptState.COMPLETED, kind="settle", was=_SETTLED_FROM)
    crash_point("ledger.settled", postings)


_CLOSE = """
    WITH posting AS (
        SELECT coalesce(p.account, o.account) AS account, o.external_id, p.amount, p.reason
          FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(amounts)s AS bigint[]),
                      CAST(%(reasons)s AS text[]), CAST(%(accounts)s AS text[]))
               AS p(order_id, amount, reason, account)
          JOIN orders o ON o.id = p.order_id
    ), closed AS (
        UPDATE attempts a
           SET state = %(state)s, hold_closed_at = coalesce(hold_closed_at, %(now)s),
               ended_at = coalesce(ended_at, %(now)s), unknown_since = NULL,
               unbooked = unbooked + CASE
                   WHEN %(free)s OR a.absorbed_at IS NULL
                     OR coalesce(p.amount, a.hold_mills) = a.booked_mills THEN 0 ELSE 1 END,
               absorbed_at = CASE WHEN %(free)s THEN coalesce(absorbed_at, %(now)s)
                                  ELSE absorbed_at END
          FROM posting p
         WHERE a.account = p.account AND a.external_id = p.external_id
           AND a.state = ANY(string_to_array(%(was)s, ','))
        RETURNING a.*, coalesce(p.amount, a.hold_mills) AS amount, p.reason
    )
    INSERT INTO wallet_entries (account, order_id, attempt_id, kind, amount_mills, at, reason)
    SELECT account, order_id, id, %(kind)s, amount, %(now)s, reason FROM closed
    ON CONFLICT (attempt_id, kind) DO NOTHING
    """


def _close(
    session: Session,
    postings: Sequence[Posting],
    now: datetime,
    *,
    state: AttemptState,
    kind: str,
    was: str,
) -> None:
    if not postings:
        return
    session.execute(
        _CLOSE,
        {
            "ids": [p.order_id for p in postings],
            "amounts": [p.amount_mills for p in postings],
            "reasons": [p.reason for p in postings],
            "accounts": [p.account for p in postings],
            "state": state.value,
            "kind": kind,
            "was": was,
            "free": state is AttemptState.REFUSED,
            "now": now,
        },
    )


def end(
    session: Session, order_ids: Sequence[int], now: datetime, *, is_confirmed: bool = True
) -> None:
    """Note that orders ended without the item; a later figure releases their holds.

    Of those that the provider has accepted; with `is_confirmed` false also of those that it may
    have, or may have had.
    """
    was = ("accepted",) if is_confirmed else ("accepted", "sending", "reserved")
    session.execute(
        "UPDATE attempts SET state = 'ended', ended_at = %(now)s, unknown_since = NULL "
        "WHERE order_id = ANY(%(ids)s) AND state = ANY(%(was)s)",
        {"ids": list(order_ids), "now": now, "was": list(was)},
    )
    crash_point("ledger.ended")


def release_ended(session: Session, postings: Sequence[Posting], now: datetime) -> None:
    """Release the holds of ended attempts whose wallet nobody will read again."""
    _close(session, postings, now, state=AttemptState.ENDED, kind="release", was="ended")


def note_charges(session: Session, order_ids: Sequence[int]) -> None:
    """Note that a charge above the hold is told of orders under way: the next figures are to tell.

    It is booked with the delivery; until then the wallet's proof expects it (store/proof.py).
    """
    session.execute(
        "UPDATE attempts a SET unbooked = unbooked + 1 FROM orders o "
        "WHERE o.id = ANY(%(ids)s) AND a.account = o.account AND a.external_id = o.external_id "
        "AND a.state = 'accepted'",
        {"ids": list(order_ids)},
    )


#: What is booked as spent for an attempt `a`: what was settled, and what was adjusted later.
_BOOKED = """
    (SELECT sum(e.amount_mills) FROM wallet_entries e
      WHERE e.order_id = a.order_id AND e.account = a.account AND e.kind IN ('settle', 'adjust'))"""


def adjust(session: Session, postings: Sequence[Posting], now: datetime) -> None:
    """Book that settled charges were other ones (mills): the difference to what is booked.

    Of what was refunded nothing is booked any more: the whole of it came back.
    """
    session.execute(
        f"""
            WITH other AS (
                SELECT a.id, a.account, a.order_id, p.amount - {_BOOKED} AS more, p.reason
                  FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(amounts)s AS bigint[]),
                              CAST(%(reasons)s AS text[])) AS p(order_id, amount, reason)
                  JOIN orders o ON o.id = p.order_id
                  JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
                 WHERE a.state = 'completed'
                   AND NOT EXISTS (SELECT 1 FROM wallet_entries r
                                    WHERE r.attempt_id = a.id AND r.kind = 'refund')
            ), adjusted AS (
                INSERT INTO wallet_entries (account, order_id, kind, amount_mills, at, reason)
                SELECT account, order_id, 'adjust', more, %(now)s, reason FROM other WHERE more <> 0
                RETURNING order_id, account
            )
            UPDATE attempts a SET unbooked = unbooked + 1
              FROM adjusted j
             WHERE a.order_id = j.order_id AND a.account = j.account AND a.state = 'completed'
            """,  # noqa: S608 - the part is a constant
        {
            "ids": [p.order_id for p in postings],
            "amounts": [p.amount_mills for p in postings],
            "reasons": [p.reason for p in postings],
            "now": now,
        },
    )


def refund(session: Session, postings: Sequence[Posting], now: datetime) -> None:
    """Book money that came back after it was settled: all that is booked, where no sum is told."""
    session.execute(
        f"""
            WITH refunded AS (
                INSERT INTO wallet_entries
                       (account, order_id, attempt_id, kind, amount_mills, at, reason)
                SELECT a.account, a.order_id, a.id, 'refund',
                       coalesce(p.amount, {_BOOKED}), %(now)s, p.reason
                  FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(amounts)s AS bigint[]),
                              CAST(%(reasons)s AS text[])) AS p(order_id, amount, reason)
                  JOIN wallet_entries s ON s.order_id = p.order_id AND s.kind = 'settle'
                  JOIN attempts a ON a.id = s.attempt_id
                ON CONFLICT (attempt_id, kind) DO NOTHING
                RETURNING attempt_id
            )
            UPDATE attempts SET unbooked = unbooked + 1
             WHERE id IN (SELECT attempt_id FROM refunded)
            """,  # noqa: S608 - the part is a constant
        {
            "ids": [p.order_id for p in postings],
            "amounts": [p.amount_mills for p in postings],
            "reasons": [p.reason for p in postings],
            "now": now,
        },
    )
    crash_point("ledger.refunded")
