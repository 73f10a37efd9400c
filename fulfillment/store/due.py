"""What is due by a time in a row: polls and trade windows. A tick claims by moving the time on.

Whoever locks several orders does it in the order of their ids, so that no two wait for each other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import starmap
from typing import NamedTuple

from fulfillment import states
from fulfillment.store.engine import Session
from fulfillment.store.models import ORDER_COLUMNS, Order, columns
from schemas.enums import OrderStatus


class Due(NamedTuple):
    """An order that was claimed for a poll."""

    id: int
    external_id: str


class Polled(NamedTuple):
    """An order as it is before it is asked about, and what a poll needs beside it."""

    order: Order
    #: Its trade window is over.
    is_urgent: bool
    #: Who may have it, and whether its account was found to be another's.
    merchant: str | None
    is_strange: bool

    @property
    def id(self) -> int:
        return self.order.id

    @property
    def external_id(self) -> str:
        return self.order.external_id

    @property
    def is_expected(self) -> bool:
        """Say whether the provider was heard to have it, or somebody says that there is news."""
        order = self.order
        is_heard = order.status in _HEARD or order.told_status is not None
        return is_heard or order.poll_wanted_at is not None


#: Statuses in which the provider was heard to have it.
_HEARD = states.FOLLOWED | {OrderStatus.COMPLETED}
_BEFORE_OFFER = [status.value for status in states.BEFORE_OFFER]
#: By how much of its length the time between two polls may be longer, so that they spread.
SPREAD = 0.2
#: By how much of it a claim is longer in any case: so long the question may take to be asked.
_LAG = 1 / 32
# By the rows' places, which hold while they are locked: to look each up by its id again would cost
# the more, the larger the table is. What somebody moves just then is left to the next tick.
_CLAIM = """
    UPDATE orders SET {changes} WHERE ctid = ANY(ARRAY(
        SELECT o.ctid FROM orders o WHERE o.{column} <= %(now)s {which}
         ORDER BY o.{column} LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
    RETURNING {columns}
"""

# What is only reserved, or did not leave, is with nobody.
_TO_POLL = f"""
    SELECT {columns(ORDER_COLUMNS, "o")},
           o.status = 'sent' AND coalesce(o.trade_deadline_at <= %(now)s, false),
           CASE WHEN a.unknown_since IS NOT NULL OR a.state NOT IN ('reserved', 'sending')
                THEN a.merchant END,
           a.strange_since IS NOT NULL
      FROM orders o
      LEFT JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
     WHERE o.id = ANY(%(ids)s) AND o.account = %(account)s ORDER BY o.id
"""  # noqa: S608 - the names are constants

_OF_ACCOUNT = "AND o.account = %(account)s"
_OVER = "AND o.status = 'sent' AND o.trade_deadline_at <= %(now)s"
# Until about when its next poll will be: an answer without news has nothing to write. After a hint,
# or the end of its window, a message that is lost is to cost as little as may be.
_POLL = """polled_at = %(now)s, polls = polls + 1, next_poll_at = %(now)s + %(gap)s
    * CASE WHEN overdue OR trade_deadline_at <= %(now)s OR poll_wanted_at IS NOT NULL THEN 1
           ELSE least(power(%(growth)s, least(polls, 20)), CASE WHEN status = ANY(%(before_offer)s)
                THEN %(most_before_offer)s ELSE %(most)s END) * (1 + %(lag)s) END
    * (1 + %(spread)s * (id %% 64) / 63.0)"""
_CLAIM_POLLS = _CLAIM.format(
    column="next_poll_at", changes=_POLL, which=_OF_ACCOUNT, columns="id, external_id"
)
_CLAIM_LAST_POLLS = _CLAIM.format(
    column="next_poll_at", changes=_POLL, which=f"{_OF_ACCOUNT} {_OVER}", columns="id, external_id"
)
_CLAIM_WATCHES = _CLAIM.format(
    column="next_watch_at", changes="next_watch_at = %(until)s", which="",
    columns=columns(ORDER_COLUMNS),
)  # fmt: skip


class Gap(NamedTuple):
    """How long a claim for a poll holds: `least` at first, `growth` times as long after each poll,
    up to `most` times, or `most_before_offer` times where the offer is not out; then longer by
    `SPREAD` of that at most, by the order's id.

    `jitter` from 0 to 1 is how much of that spread is used.
    """

    least: timedelta
    growth: float = 1.0
    most: float = 1.0
    most_before_offer: float = 1.0
    jitter: float = 0.0


def claim_polls(
    session: Session,
    account: str,
    now: datetime,
    gap: Gap,
    limit: int,
    *,
    is_over: bool = False,
) -> list[Due]:
    """Claim orders that are to be asked about, the longest due first, and count the poll.

    With `is_over` only those whose trade window is over.
    """
    statement = _CLAIM_LAST_POLLS if is_over else _CLAIM_POLLS
    values = {"now": now, "limit": limit, "account": account, "gap": gap.least, "lag": _LAG}
    values |= {"growth": gap.growth, "most": gap.most, "most_before_offer": gap.most_before_offer}
    values |= {"before_offer": _BEFORE_OFFER, "spread": (SPREAD - 2 * _LAG) * gap.jitter}
    return sorted(starmap(Due, session.rows(statement, values)))


def to_poll(
    session: Session, account: str, order_ids: Sequence[int], now: datetime
) -> list[Polled]:
    """Read what a poll of these orders needs, but of those that went on to another account."""
    rows = session.rows(_TO_POLL, {"ids": list(order_ids), "account": account, "now": now})
    return [Polled(Order.of(row), *row[len(ORDER_COLUMNS) :]) for row in rows]


def claim_watches(session: Session, now: datetime, until: datetime, limit: int) -> list[Order]:
    """Claim orders whose trade window needs a look, until `until`."""
    rows = session.rows(_CLAIM_WATCHES, {"now": now, "until": until, "limit": limit})
    return sorted(map(Order.of, rows), key=lambda order: order.id)


def put_back(session: Session, order_ids: list[int], at: datetime) -> None:
    """Make claimed orders that nobody told of due again at `at`; that poll does not count."""
    session.execute(
        """
            UPDATE orders SET next_poll_at = %(at)s, polls = greatest(polls - 1, 0)
             WHERE id IN (SELECT id FROM orders WHERE id = ANY(%(ids)s) AND next_poll_at IS NOT NULL
                           ORDER BY id FOR NO KEY UPDATE)
            """,
        {"ids": order_ids, "at": at},
    )


def put_off(
    session: Session, polls: Sequence[tuple[int, datetime | None, datetime | None]]
) -> set[int]:
    """Set when orders of failed polls are due again: (id, end of the poll's claim, next poll).

    What somebody has moved meanwhile stays. Gives which are due no more: their next poll is None.
    """
    ids, claimed, nexts = zip(*polls, strict=True)
    rows = session.execute(
        """
            WITH put AS (
                SELECT * FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(claimed)s AS timestamptz[]),
                                     CAST(%(nexts)s AS timestamptz[])) AS n(id, claimed, next)
            ), locked AS (
                SELECT o.id FROM orders o JOIN put n ON n.id = o.id AND n.claimed = o.next_poll_at
                 ORDER BY o.id FOR NO KEY UPDATE OF o
            )
            UPDATE orders o SET next_poll_at = n.next, failed_polls = o.failed_polls + 1,
                   poll_wanted_at = CASE WHEN n.next IS NOT NULL THEN o.poll_wanted_at END
              FROM put n
             WHERE o.id = n.id AND o.id IN (SELECT id FROM locked)
            RETURNING o.id, o.next_poll_at
            """,
        {"ids": list(ids), "claimed": list(claimed), "nexts": list(nexts)},
    )
    return {row.id for row in rows if row.next_poll_at is None}


def poll_at(
    session: Session,
    order_ids: list[int],
    at: datetime,
    min_interval_s: float,
    *,
    is_asked_for: bool = False,
) -> int:
    """Ask about orders at `at`, or as soon after it as the provider's cache makes sensible.

    Gives how many. Orders that ended without the item are asked about only where somebody said that
    there is news. Then `at` is noted: an answer that may be older is not the last one. (Code of
    before looks whether the time was moved, be it by nothing.)
    """
    rows = session.execute(
        """
            UPDATE orders SET
                poll_wanted_at = CASE WHEN %(is_asked_for)s THEN greatest(poll_wanted_at, %(at)s)
                                      ELSE poll_wanted_at END,
                next_poll_at = least(coalesce(next_poll_at, 'infinity') - interval '1 us', greatest(
                    %(at)s, coalesce(polled_at, '-infinity') + make_interval(secs => %(gap)s)))
             WHERE id IN (
                SELECT id FROM orders
                 WHERE id = ANY(%(ids)s)
                   AND (%(is_asked_for)s
                        OR status IN ('submitting', 'accepted', 'queued', 'processing', 'pending',
                                      'sent', 'completed', 'needs_review'))
                 ORDER BY id FOR NO KEY UPDATE)
            RETURNING id
            """,
        {
            "ids": order_ids,
            "at": at,
            "gap": min_interval_s * (1 + _LAG),
            "is_asked_for": is_asked_for,
        },
    )
    return len(rows)


def poll_all(session: Session, now: datetime, min_interval_s: float) -> int:
    """Make every order that is under way at a provider due for a poll; give how many."""
    rows = session.execute(
        "SELECT id FROM orders WHERE next_poll_at IS NOT NULL AND status IN "
        "('accepted', 'queued', 'processing', 'pending', 'sent', 'needs_review')"
    )
    return poll_at(session, [row.id for row in rows], now, min_interval_s)


def poll_early(
    session: Session,
    account: str,
    now: datetime,
    within: timedelta,
    gap: timedelta,
    size: int,
    limit: int,
) -> int:
    """Ask about the account's delivered orders before their time; give how many.

    `size` of them every `gap`, those first that would be last. Left as they are: what was asked
    about within the time before or is due within that to come, and what somebody works on.
    """
    rows = session.execute(
        """
            UPDATE orders o SET next_poll_at = %(now)s + n.place / %(size)s * %(gap)s FROM (
                SELECT id, row_number() OVER (ORDER BY next_poll_at DESC) - 1 AS place FROM (
                    SELECT id, next_poll_at FROM orders
                     WHERE account = %(account)s AND status = 'completed'
                       AND next_poll_at > %(now)s + %(within)s
                       AND coalesce(polled_at, '-infinity') <= %(now)s - %(within)s
                     ORDER BY next_poll_at DESC LIMIT %(limit)s
                       FOR NO KEY UPDATE SKIP LOCKED) free) n
             WHERE o.id = n.id RETURNING o.id
            """,
        {
            "account": account,
            "now": now,
            "within": within,
            "gap": gap,
            "size": size,
            "limit": limit,
        },
    )
    return len(rows)


def follow(session: Session, order_ids: Sequence[int], now: datetime) -> list[str]:
    """Make orders due that are under way at a provider and have no time to be asked about."""
    rows = session.rows(
        """
            UPDATE orders SET next_poll_at = %(now)s
             WHERE id = ANY(%(ids)s) AND next_poll_at IS NULL
               AND status IN ('accepted', 'queued', 'processing', 'pending', 'sent')
            RETURNING external_id
            """,
        {"ids": list(order_ids), "now": now},
    )
    return [name for (name,) in rows]


def spread(session: Session, next_polls: Mapping[int, datetime | None]) -> None:
    """Move the next polls of orders that are still to be polled."""
    session.execute(
        """
            UPDATE orders o SET next_poll_at = n.next FROM (
                SELECT o.id, n.next FROM orders o
                  JOIN unnest(CAST(%(ids)s AS bigint[]), CAST(%(nexts)s AS timestamptz[]))
                       AS n(id, next)
                    ON n.id = o.id
                 WHERE o.next_poll_at IS NOT NULL ORDER BY o.id FOR NO KEY UPDATE OF o) n
             WHERE o.id = n.id
            """,
        {"ids": list(next_polls), "nexts": list(next_polls.values())},
    )


def is_late(order: Order, now: datetime, least: timedelta) -> bool:
    """Say whether it was claimed so long ago that its claim's time is not that of the question."""
    return order.polled_at is None or now - order.polled_at > least * _LAG


def asked_late(
    session: Session, order_ids: list[int], asked_at: datetime, least: timedelta
) -> None:
    """Note the time of a question that came long after its claim; the next is `least` later."""
    session.execute(
        """
            UPDATE orders SET polled_at = %(at)s, next_poll_at =
                   CASE WHEN next_poll_at < %(earliest)s THEN %(earliest)s ELSE next_poll_at END
             WHERE id IN (SELECT id FROM orders WHERE id = ANY(%(ids)s)
                           ORDER BY id FOR NO KEY UPDATE)
            """,
        {"ids": order_ids, "at": asked_at, "earliest": asked_at + least},
    )


class NextPoll(NamedTuple):
    """When an order is to be asked about again; None where it is not.

    Its claim's end will do as well, from `earliest` on and up to `SPREAD` of the time later.
    """

    at: datetime | None
    earliest: datetime | None = None

    def is_claimed(self, order: Order, now: datetime) -> bool:
        """Say whether the claim for a poll at `now` ends when the next one may come."""
        if self.earliest is None or order.next_poll_at is None:
            return False
        latest = self.earliest + (self.earliest - now) * SPREAD
        return self.earliest <= order.next_poll_at <= latest

    def after(self, order: Order, now: datetime) -> datetime | None:
        """Give the time, the claim's end where that will do: then no indexed time is moved."""
        return order.next_poll_at if self.is_claimed(order, now) else self.at


def polled(
    session: Session,
    next_polls: Mapping[int, datetime | None],
    polled_at: datetime,
    answers_until: datetime,
    now: datetime,
) -> None:
    """Note when orders were asked about and when each is to be asked about again.

    The answers are surely younger than what somebody told of by `answers_until`; nobody has told
    of anything after `now`.
    """
    session.execute(
        """
            UPDATE orders o SET polled_at = %(at)s, next_poll_at = n.next, failed_polls = 0,
                   poll_wanted_at = CASE WHEN o.poll_wanted_at > %(answers_until)s
                                         THEN least(o.poll_wanted_at, %(now)s) END
              FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(nexts)s AS timestamptz[]))
                   AS n(id, next)
             WHERE o.id = n.id
            """,
        {
            "ids": list(next_polls),
            "nexts": list(next_polls.values()),
            "at": polled_at,
            "answers_until": answers_until,
            "now": now,
        },
    )
