"""Who waits for money: in which order it is shared out, and when each looks again."""

from collections.abc import Sequence
from datetime import datetime

from fulfillment.store.doubts import TO_SEARCH
from fulfillment.store.engine import Session


def waiting_for_funds(
    session: Session, account: str, now: datetime
) -> list[tuple[int, int, datetime | None]]:
    """Give the account's orders that wait for money, oldest first: id, price in mills, due time.

    Also those whose money is free until they are priced afresh: none that came later is to have it,
    unless what it waits for is not money. They are without a due time here: it is not the money's.
    So are those whose time for money is over: they look once more, at once. Not those that are
    looked for first: whether money helps them is open.
    """
    rows = session.rows(
        f"""
            SELECT o.id, coalesce(o.quoted_mills, aside.mills),
                   CASE WHEN coalesce(o.funds_deadline_at > %(now)s, o.status = 'awaiting_funds')
                        THEN o.next_attempt_at END
              FROM orders o LEFT JOIN LATERAL (
                   SELECT a.hold_mills AS mills FROM attempts a
                    WHERE a.order_id = o.id AND a.account = o.account
                      AND a.external_id = '#' || a.id
                    ORDER BY a.id DESC LIMIT 1) aside ON o.between_attempts
             WHERE o.account = %(account)s AND o.next_attempt_at IS NOT NULL
               -- By itself, so that of the other orders before us nothing is looked up.
               AND (o.status = 'awaiting_funds' OR o.status = 'submitting' AND o.between_attempts)
               AND (o.status = 'awaiting_funds' OR o.funds_deadline_at IS NOT NULL
                    OR aside.mills IS NOT NULL AND o.next_attempt_at <= %(now)s)
               AND coalesce(o.quoted_mills, aside.mills) IS NOT NULL
               AND (coalesce(o.funds_deadline_at > %(now)s, true) OR o.next_attempt_at <= %(now)s)
               AND o.submit_by > %(now)s AND NOT {TO_SEARCH}
             ORDER BY o.id
            """,  # noqa: S608 - the part is a constant
        {"account": account, "now": now},
    )
    return [(order_id, mills, due_at) for order_id, mills, due_at in rows]


def line_up(session: Session, order_ids: Sequence[int], at: datetime) -> None:
    """Make orders that wait for an attempt due at that time, in this order.

    Or when their time for money is over, if that is sooner.
    """
    if not order_ids:
        return
    session.execute(
        """
            UPDATE orders o SET next_attempt_at =
                   least(%(at)s + n.place * interval '1 us', o.funds_deadline_at)
              FROM unnest(CAST(%(ids)s AS bigint[])) WITH ORDINALITY AS n(id, place)
             WHERE o.id = n.id AND o.id IN (
                   SELECT id FROM orders WHERE id = ANY(%(ids)s) AND next_attempt_at IS NOT NULL
                    ORDER BY id FOR NO KEY UPDATE)
            """,
        {"ids": list(order_ids), "at": at},
    )
