"""What a process whose clock was far ahead has put off, brought back to what is possible.

Only who agrees with the database's clock may judge that (store/leases.py).
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from fulfillment.store.engine import Session
from fulfillment.store.leases import APART


class Latest(NamedTuple):
    """How far off the due times of orders can be now, by clocks that are right."""

    claimed_until: datetime
    next_attempt_at: datetime
    next_poll_at: datetime
    next_watch_at: datetime


_FAR_OFF = """
    SELECT id FROM orders WHERE next_attempt_at > %(far_attempt)s
    UNION SELECT id FROM orders WHERE next_attempt_at IS NOT NULL AND claimed_until > %(far_claim)s
    UNION SELECT id FROM orders WHERE next_poll_at > %(far_poll)s
    UNION SELECT id FROM orders WHERE next_watch_at > %(far_watch)s
       AND next_watch_at > coalesce(trade_deadline_at, '-infinity') + interval '1 hour'
    LIMIT %(limit)s
"""
# A claim goes on for a while: its holder may live, and believes in it.
_BRING_BACK = """
    UPDATE orders SET
           claimed_until = CASE WHEN claimed_until > %(claim)s THEN %(now)s + interval '10 min'
                                ELSE claimed_until END,
           next_attempt_at = CASE WHEN next_attempt_at > %(attempt)s THEN %(now)s
                                  ELSE next_attempt_at END,
           next_poll_at = CASE WHEN next_poll_at > %(poll)s THEN %(now)s ELSE next_poll_at END,
           next_watch_at = CASE
               WHEN next_watch_at > %(watch)s AND trade_deadline_at IS NOT NULL THEN %(now)s
               WHEN next_watch_at > %(watch)s THEN %(now)s + %(patience)s
               ELSE next_watch_at END
     WHERE id IN (SELECT id FROM orders WHERE id = ANY(%(ids)s)
                   ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING external_id
"""
_MOST_BACK = 500
_TIMES = ("claim", "attempt", "poll", "watch")


def bring_back_orders(
    session: Session, latest: Latest, patience: timedelta, now: datetime
) -> list[str]:
    """Make orders due that are put off for longer than is possible; name them.

    `patience` is how long a provider may leave one as it is.
    """
    times = dict(zip(_TIMES, latest, strict=True))
    far = {f"far_{name}": at + APART for name, at in times.items()}
    ids = [order_id for (order_id,) in session.rows(_FAR_OFF, {**far, "limit": _MOST_BACK})]
    if not ids:
        return []
    values = {**times, "now": now, "ids": ids, "patience": patience}
    back = session.rows(_BRING_BACK, values)
    return [name for (name,) in back]


def bring_back_deliveries(session: Session, latest: datetime, now: datetime) -> list[str]:
    """Make stored webhooks due that are put off for longer than is possible; name their orders."""
    rows = session.rows(
        """
            UPDATE webhook_deliveries d SET next_apply_at = %(now)s FROM orders o
             WHERE d.next_apply_at > %(latest)s AND o.id = d.order_id RETURNING o.external_id
            """,
        {"latest": latest + APART, "now": now},
    )
    return [name for (name,) in rows]


def bring_back_posts(session: Session, now: datetime) -> list[str]:
    """Take posts that seem to be later than they can be for posts of now; name their orders."""
    rows = session.rows(
        """
            UPDATE attempts a SET last_post_at = %(now)s,
                   sending_at = least(sending_at, %(now)s),
                   unknown_since = least(unknown_since, %(now)s)
              FROM orders o
             WHERE o.status = 'submitting' AND a.order_id = o.id AND a.state = 'sending'
               AND a.last_post_at > %(latest)s
            RETURNING a.external_id
            """,
        {"latest": now + APART, "now": now},
    )
    return [name for (name,) in rows]


def bring_back_accounts(session: Session, longest_pause: timedelta, now: datetime) -> list[str]:
    """End pauses, doubts and balances that lie farther in the future than any can; name their
    accounts."""
    values = {"now": now, "far": now + APART, "pause": now + longest_pause + APART}
    paused = session.rows(
        """
            UPDATE accounts SET
                   paused_until = CASE WHEN paused_until <= %(pause)s THEN paused_until END,
                   purchases_paused_until = CASE WHEN purchases_paused_until <= %(pause)s
                                                 THEN purchases_paused_until END,
                   doubted_until = CASE WHEN doubted_since > %(far)s
                                        THEN %(now)s + (doubted_until - doubted_since)
                                        ELSE doubted_until END,
                   doubted_since = least(doubted_since, %(now)s)
             WHERE paused_until > %(pause)s OR purchases_paused_until > %(pause)s
                OR doubted_since > %(far)s
            RETURNING name
            """,
        values,
    )
    # When it was read nobody knows; so it is read again.
    read = session.rows(
        "UPDATE wallets SET requested_at = %(now)s - interval '1 hour' "
        "WHERE requested_at > %(far)s RETURNING account",
        values,
    )
    return sorted({name for (name,) in (*paused, *read)})
