"""The proof of a wallet: each balance that is read is held against what our own books expect.

Expected is the opening balance less what our orders were charged, plus what they were given back. A
balance may lie below by what is open (bought, and perhaps not debited yet) and above by what may
come back (held for an order that may have ended, refunds just told of). Outside of that, money went
or came that no order of ours explains; the expectation is moved there, so that it is told of once.
What something open hides for now comes out when it is open no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fulfillment.crash import crash_point
from fulfillment.store.accounts import SAME_WALLET
from fulfillment.store.engine import Session
from schemas.enums import DebitsAt

#: So often a wallet is read although nothing happens: what others take from it is to be seen.
_GAP = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Figure:
    """What a provider said is spendable, and when we asked."""

    mills: int
    requested_at: datetime


_IS_NEWER = """EXISTS (SELECT 1 FROM wallets w WHERE w.account = %(account)s
                          AND (w.requested_at IS NULL OR w.requested_at < %(at)s))"""

# A hold is absorbed by a figure requested at least `lag` after the provider debited it; the hold of
# an order that ended after acceptance is released at a figure requested that much later.
_ABSORB = """
    WITH known AS (
        UPDATE attempts
           SET absorbed_at = coalesce(absorbed_at, %(at)s),
               hold_closed_at = CASE WHEN ended_at + %(lag)s <= %(at)s
                                     THEN coalesce(hold_closed_at, %(at)s)
                                     ELSE hold_closed_at END,
               unbooked = unbooked + 1
         WHERE account = ANY({same_wallet})
           AND state NOT IN ('reserved', 'sending')
           AND (absorbed_at IS NULL AND {debited} + %(lag)s <= %(at)s
                OR absorbed_at IS NULL AND ended_at + %(lag)s <= %(at)s
                OR hold_closed_at IS NULL AND ended_at + %(lag)s <= %(at)s)
           AND {is_newer}
        RETURNING *
    )
    INSERT INTO wallet_entries
           (account, order_id, attempt_id, kind, amount_mills, at, reason)
    SELECT account, order_id, id, 'release', hold_mills, %(at)s, 'ended without the item'
      FROM known WHERE state = 'ended' AND hold_closed_at = %(at)s
    ON CONFLICT (attempt_id, kind) DO NOTHING
    """

# `unbooked` counts what has happened to an attempt's money: a row that changes while it is booked
# is booked by the next figure. A refund is expected to be seen `lag` after it was told of, and so
# is a charge that was told anew, or not as its hold: until then a figure may tell of it or not.
# Nothing is booked by a figure that comes later than one that was asked for after it.
_PROVE = f"""
    WITH told_of AS (
        SELECT a.id, a.booked_mills, a.unbooked, a.absorbed_at, a.hold_closed_at,
               CASE WHEN a.absorbed_at IS NULL OR a.state = 'refused'
                      OR (a.state = 'ended' AND a.hold_closed_at IS NOT NULL) THEN 0
                    ELSE coalesce(s.amount_mills, greatest(a.hold_mills, c.mills)) + j.booked
                         - CASE WHEN r.at + %(lag)s <= %(at)s THEN r.amount_mills ELSE 0 END
                    END AS cost,
               -- What the end gives back may be seen later than it is told of.
               CASE WHEN a.state IN ('completed', 'ended')
                     AND greatest(a.ended_at, s.at) + %(lag)s > %(at)s
                    THEN CASE WHEN a.absorbed_at = %(at)s THEN a.hold_mills ELSE a.booked_mills END
                    ELSE 0 END AS least,
               CASE WHEN r.at + %(lag)s > %(at)s THEN r.amount_mills ELSE 0 END + j.awaited
                    + CASE WHEN c.told_at + %(lag)s > %(at)s THEN c.mills - a.hold_mills ELSE 0 END
                    + CASE WHEN s.at + %(lag)s > %(at)s
                           THEN greatest(s.amount_mills - a.hold_mills, 0) ELSE 0 END
                    AS awaited
          FROM attempts a
          LEFT JOIN wallet_entries s ON s.attempt_id = a.id AND s.kind = 'settle'
          LEFT JOIN wallet_entries r ON r.attempt_id = a.id AND r.kind = 'refund'
          LEFT JOIN LATERAL (
               -- A charge above the hold, told before the delivery, and when at the latest.
               SELECT o.charged_mills AS mills, o.updated_at AS told_at FROM orders o
                WHERE o.id = a.order_id AND o.account = a.account AND a.state = 'accepted'
                  AND o.charged_mills > a.hold_mills) c ON true
         CROSS JOIN LATERAL (
               SELECT coalesce(sum(e.amount_mills) FILTER (
                          WHERE e.amount_mills > 0 OR e.at + %(lag)s <= %(at)s), 0) AS booked,
                      coalesce(sum(abs(e.amount_mills)) FILTER (
                          WHERE e.at + %(lag)s > %(at)s), 0) AS awaited
                 FROM wallet_entries e
                WHERE a.state = 'completed' AND e.order_id = a.order_id
                  AND e.account = a.account AND e.kind = 'adjust') j
         WHERE a.account = %(account)s AND a.unbooked > 0 AND {_IS_NEWER}
    ), followed AS (
        SELECT id, booked_mills, unbooked, absorbed_at, hold_closed_at,
               greatest(cost, least) AS cost, awaited + greatest(least - cost, 0) AS awaited
          FROM told_of
    ), booked AS (
        UPDATE attempts a SET booked_mills = f.cost,
               unbooked = CASE WHEN f.awaited > 0 THEN a.unbooked ELSE 0 END
          FROM followed f
         WHERE a.id = f.id AND f.unbooked > 0 AND a.unbooked = f.unbooked
        -- What we found, and never sent, was bought before: its money may have been seen by then.
        RETURNING f.cost - f.booked_mills AS change,
                  f.absorbed_at = %(at)s AND a.posts > 0 AS is_new,
                  a.hold_mills AS hold
    ), sums AS (
        -- What was charged above the hold may have been seen, and told of, before the rest.
        SELECT coalesce(sum(least(change, hold)) FILTER (WHERE is_new), 0) AS fresh,
               coalesce(sum(greatest(CASE WHEN is_new THEN change - hold ELSE change END, 0)), 0)
                   AS late,
               coalesce(sum(greatest(-change, 0)) FILTER (WHERE NOT is_new), 0) AS back
          FROM booked
    ), open AS (
        -- Of a former name of the account nothing is booked here, but for a day it may be open.
        SELECT coalesce(sum(greatest(a.hold_mills, coalesce(o.charged_mills, 0))), 0) AS mills
          FROM attempts a JOIN orders o ON o.id = a.order_id
         WHERE a.account = ANY({SAME_WALLET})
           AND (a.account = %(account)s OR a.created_at > %(at)s - interval '1 day')
           AND a.absorbed_at IS NULL AND a.state <> 'reserved'
    ), kept AS (
        -- What was booked of the others stands as it is: nothing has happened to them since. They
        -- are all that is open: summed up only where a balance is above what is expected.
        SELECT coalesce(sum(CASE WHEN a.account = %(account)s THEN a.booked_mills
                                 ELSE a.hold_mills END), 0) AS mills
          FROM attempts a
         WHERE a.account = ANY({SAME_WALLET})
           AND (a.account = %(account)s OR a.created_at > %(at)s - interval '1 day')
           AND a.absorbed_at IS NOT NULL AND a.hold_closed_at IS NULL
           AND (a.unbooked = 0 OR a.account <> %(account)s)
    ), bounds AS (
        SELECT o.mills AS open,
               coalesce(sum(f.cost) FILTER (WHERE f.absorbed_at IS NOT NULL
                                              AND f.hold_closed_at IS NULL), 0)
                   + coalesce(sum(f.awaited), 0) AS may_return
          FROM open o LEFT JOIN followed f ON true
         GROUP BY o.mills
    ), expected AS (
        -- What is learned later than its money was seen was taken for unexplained: it is no more.
        SELECT w.account, w.opening_mills IS NULL AS is_first,
               least(w.unexplained_mills, s.late) AS was_missing,
               least(w.credited_mills, s.back) AS was_credited,
               coalesce(w.expected_mills - s.fresh - s.late + s.back
                        + least(w.unexplained_mills, s.late) - least(w.credited_mills, s.back),
                        CASE WHEN b.open = 0 AND b.may_return + (SELECT mills FROM kept) = 0
                             THEN %(mills)s END) AS mills,
               b.open, b.may_return
          FROM wallets w, sums s, bounds b WHERE w.account = %(account)s
    ), told AS (
        SELECT *, coalesce(greatest(mills - open - %(mills)s, 0), 0) AS missing,
               CASE WHEN %(mills)s <= mills THEN 0
                    WHEN %(mills)s > mills + may_return + (SELECT mills FROM kept)
                    THEN %(mills)s - mills ELSE 0 END AS credit
          FROM expected
    )
    UPDATE wallets w
       SET figure_mills = %(mills)s, requested_at = %(at)s,
           opening_mills = coalesce(w.opening_mills, t.mills),
           expected_mills = t.mills - t.missing + t.credit,
           unexplained_mills = w.unexplained_mills - t.was_missing + t.missing,
           stopped_at_mills = least(w.stopped_at_mills, w.unexplained_mills - t.was_missing),
           credited_mills = w.credited_mills - t.was_credited + t.credit
      FROM told t
     WHERE w.account = t.account AND (w.requested_at IS NULL OR w.requested_at < %(at)s)
    RETURNING t.missing, t.is_first AND w.opening_mills IS NOT NULL
    """  # noqa: S608 - a constant
# Orders that were bought before the first balance are in it: the opening balance is before them.
_OPEN = """
    UPDATE wallets SET opening_mills = opening_mills + (
               SELECT coalesce(sum(booked_mills), 0) FROM attempts WHERE account = %(account)s)
     WHERE account = %(account)s
    """
_HAS_ATTEMPTS = "SELECT 1 FROM attempts WHERE account = %(account)s AND state <> 'refused' LIMIT 1"


def record_figure(
    session: Session, account: str, figure: Figure, debits_at: DebitsAt, lag: timedelta
) -> int:
    """Store a figure if it was asked for later than the stored one; see which money it tells of.

    Gives how many mills are missing that no order of ours can have taken. The wallet's row must be
    locked.
    """
    debited = "confirmed_at" if debits_at is DebitsAt.ACCEPT else "ended_at"
    values = {"account": account, "mills": figure.mills, "at": figure.requested_at, "lag": lag}
    session.execute(
        _ABSORB.format(debited=debited, is_newer=_IS_NEWER, same_wallet=SAME_WALLET), values
    )
    crash_point("ledger.absorbed")
    row = session.rows(_PROVE, values)
    if not row:
        return 0
    missing, is_opened = row[0]
    if is_opened and session.scalar(_HAS_ATTEMPTS, values):
        session.execute(_OPEN, values)
    return int(missing)


def asked_at(session: Session, account: str) -> datetime | None:
    """Say when the stored figure was asked for; None where none was ever read."""
    query = "SELECT requested_at FROM wallets WHERE account = %(account)s"
    found: datetime | None = session.scalar(query, {"account": account})
    return found


def unsure_mills(session: Session, account: str, debits_at: DebitsAt, lag: timedelta) -> int:
    """Give what is held (mills) although the stored figure may tell of it already.

    It was just bought, or nobody knows yet whether it was. Not what a person is to look into: that
    may last.
    """
    query = f"""
        SELECT coalesce(sum(a.hold_mills), 0) FROM attempts a
          JOIN wallets w ON w.account = %(account)s
          JOIN orders o ON o.id = a.order_id
         WHERE a.account = ANY({SAME_WALLET}) AND a.absorbed_at IS NULL
           AND (a.ended_at IS NOT NULL OR %(is_at_accept)s AND (
                a.confirmed_at IS NOT NULL
                OR a.state = 'sending' AND (
                   a.last_post_at > w.requested_at - %(lag)s
                   OR a.unknown_since IS NOT NULL AND o.status = 'submitting')))
        """  # noqa: S608 - a constant
    values = {"account": account, "is_at_accept": debits_at is DebitsAt.ACCEPT, "lag": lag}
    return int(session.scalar(query, values))


def unexplained_since_stop(session: Session, account: str) -> int:
    """Give the mills that went without an order of ours and have not stopped the account yet."""
    query = "SELECT unexplained_mills - stopped_at_mills FROM wallets WHERE account = %(account)s"
    return int(session.scalar(query, {"account": account}) or 0)


def note_stop(session: Session, account: str) -> None:
    """Note that what is unexplained until now has stopped the account."""
    session.execute(
        "UPDATE wallets SET stopped_at_mills = unexplained_mills WHERE account = %(account)s",
        {"account": account},
    )


def accounts_to_read(
    session: Session, now: datetime, lag: timedelta, debited_at_end: Sequence[str]
) -> list[str]:
    """Name the accounts where a figure read now would release or absorb money.

    `debited_at_end` are those whose provider takes the money when an order ends.
    """
    rows = session.execute(
        """
            SELECT DISTINCT account FROM attempts
             WHERE (absorbed_at IS NULL AND ended_at + %(lag)s <= %(now)s
                    OR hold_closed_at IS NULL AND ended_at + %(lag)s <= %(now)s
                    OR (absorbed_at IS NULL AND account <> ALL(%(debited_at_end)s)
                        AND confirmed_at + %(lag)s <= %(now)s))
               AND NOT EXISTS (SELECT 1 FROM accounts a
                                WHERE a.name = account AND a.paused_until > %(now)s)
            """,
        {"now": now, "lag": lag, "debited_at_end": list(debited_at_end)},
    )
    return [row.account for row in rows]


def overdue(session: Session, now: datetime) -> list[str]:
    """Name the accounts in use whose balance was not read for an hour."""
    rows = session.execute(
        "SELECT w.account FROM wallets w JOIN accounts a ON a.name = w.account "
        "WHERE w.requested_at <= %(since)s AND (paused_until IS NULL OR paused_until <= %(now)s)",
        {"since": now - _GAP, "now": now},
    )
    return [row.account for row in rows]
