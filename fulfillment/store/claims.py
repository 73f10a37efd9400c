"""Claims: which worker may act on an order now, and until when.

A claim is a text `<batch token>/<step>`. A step takes its orders over by writing its own name into
the claim, so that a redelivered, doubled or late copy of the step finds nothing left to do; every
later write of the step is guarded by it.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlmodel import Session

# Due, and not claimed by a living worker.
_FREE = "o.next_attempt_at <= :now AND (o.claimed_until IS NULL OR o.claimed_until <= :now)"
# Waits for a catalog and a wallet answer; the rest of what is due is to be submitted. Told by the
# order's row alone: a condition on its attempts would be as old as the statement, and not as the
# lock on the row.
_BETWEEN = "(o.status = 'submitting' AND o.between_attempts)"
_WAITING = f"(o.status IN ('received', 'quoted', 'awaiting_funds') OR {_BETWEEN})"
_TO_SUBMIT = f"(o.status IN ('reserved', 'submitting') AND NOT {_BETWEEN})"
_UNPAUSED = (
    "NOT EXISTS (SELECT 1 FROM accounts a WHERE a.name = o.account AND a.paused_until > :now)"
)


def claim_waiting(
    session: Session, account: str, claim: str, now: datetime, until: datetime, limit: int
) -> list[int]:
    """Claim the oldest orders of an account that wait for a catalog and a wallet answer."""
    rows = session.execute(
        text(
            f"""
            UPDATE orders SET claim = :claim, claimed_until = :until WHERE id IN (
                SELECT o.id FROM orders o
                 WHERE o.account = :account AND {_FREE} AND {_WAITING}
                 ORDER BY o.id LIMIT :limit FOR UPDATE SKIP LOCKED)
            RETURNING id
            """  # noqa: S608 - constants
        ),
        {"account": account, "claim": claim, "now": now, "until": until, "limit": limit},
    )
    return sorted(row.id for row in rows)


def claim_stuck(
    session: Session, claim: str, now: datetime, until: datetime, limit: int
) -> list[tuple[int, str]]:
    """Claim orders whose submission is due again: never sent, or of unknown outcome.

    Of each account up to `limit`, the longest due first: none stands in another's way.
    """
    rows = session.execute(
        text(
            f"""
            UPDATE orders SET claim = :claim, claimed_until = :until WHERE id IN (
                SELECT due.id FROM accounts a CROSS JOIN LATERAL (
                    SELECT o.id FROM orders o
                     WHERE o.account = a.name AND {_FREE}
                       AND {_TO_SUBMIT} AND {_UNPAUSED}
                     ORDER BY o.next_attempt_at, o.id LIMIT :limit FOR UPDATE SKIP LOCKED) due)
            RETURNING id, account
            """  # noqa: S608 - constants
        ),
        {"claim": claim, "now": now, "until": until, "limit": limit},
    )
    return sorted((row.id, row.account) for row in rows)


def accounts_waiting(session: Session, now: datetime) -> list[str]:
    """Name the accounts that have something for `checkout.dispatch` to claim."""
    rows = session.execute(
        text(
            f"""
            SELECT a.name FROM accounts a WHERE EXISTS (
                 SELECT 1 FROM orders o
                  WHERE o.account = a.name AND {_FREE} AND {_WAITING} AND {_UNPAUSED})
            """  # noqa: S608 - constants
        ),
        {"now": now},
    )
    return [row.name for row in rows]


def is_waiting(session: Session, account: str, now: datetime) -> bool:
    """Say whether the account has something to claim."""
    row = session.execute(
        text(
            f"""
            SELECT EXISTS (SELECT 1 FROM orders o
                            WHERE o.account = :account AND {_FREE} AND {_WAITING})
            """  # noqa: S608 - constants
        ),
        {"account": account, "now": now},
    )
    return bool(row.scalar_one())


def in_submission(session: Session, account: str, now: datetime) -> int:
    """Count the account's orders that wait for submission or that living workers are submitting."""
    row = session.execute(
        text(
            f"""
            SELECT count(*) FROM orders o WHERE o.account = :account
               AND o.next_attempt_at IS NOT NULL AND {_TO_SUBMIT}
               AND (o.status = 'reserved' OR o.claimed_until > :now)
            """  # noqa: S608 - constants
        ),
        {"account": account, "now": now},
    )
    return int(row.scalar_one())


def take_over(
    session: Session, order_ids: Sequence[int], old: str, new: str, until: datetime
) -> list[int]:
    """Move a batch's claim on to its next step; give the orders that were still under `old`."""
    rows = session.execute(
        text(
            """
            UPDATE orders SET claim = :new, claimed_until = :until WHERE id IN (
                SELECT id FROM orders WHERE id = ANY(:ids) AND claim = :old
                 ORDER BY id FOR UPDATE)
            RETURNING id
            """
        ),
        {"ids": list(order_ids), "old": old, "new": new, "until": until},
    )
    return sorted(row.id for row in rows)


def renew(session: Session, order_ids: Sequence[int], claim: str, until: datetime) -> int:
    """Lengthen a claim; give how many orders are still under it."""
    rows = session.execute(
        text(
            """
            UPDATE orders SET claimed_until = :until WHERE id IN (
                SELECT id FROM orders WHERE id = ANY(:ids) AND claim = :claim
                 ORDER BY id FOR UPDATE)
            RETURNING id
            """
        ),
        {"ids": list(order_ids), "claim": claim, "until": until},
    )
    return len(rows.all())


def release(
    session: Session, order_ids: Sequence[int], claim: str, due_at: datetime | None = None
) -> None:
    """Give orders back, to be taken up again at `due_at`."""
    session.execute(
        text(
            """
            UPDATE orders SET claim = NULL, claimed_until = NULL,
                   next_attempt_at = coalesce(:due_at, next_attempt_at)
             WHERE id IN (SELECT id FROM orders WHERE id = ANY(:ids) AND claim = :claim
                           ORDER BY id FOR UPDATE)
            """
        ),
        {"ids": list(order_ids), "claim": claim, "due_at": due_at},
    )
