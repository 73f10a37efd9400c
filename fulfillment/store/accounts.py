"""What all processes share about one provider account: its pause, its rate budget, its money."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import text
from sqlmodel import Session, select

from schemas.money import cap_in_cents, charge_in_cents
from schemas.orders import WalletView
from schemas.tables import AccountRow


class Purpose(StrEnum):
    """Why the provider is asked; the budget serves them in this order (DESIGN section 6)."""

    URGENT = "urgent"  # unknown outcomes and deadlines
    SUBMIT = "submit"  # catalog, wallet and purchases
    POLL = "poll"  # routine: has a tenth of its own


# burst + a minute's refill stay below the limit: a tenth bursts, nine tenths flow in.
_BURST_SHARE = 0.1
_POLL_SHARE = 0.1
# Under a small limit the burst is larger and the refill smaller: less would never let a batch
# gather (a catalog and a wallet request) beside what is kept for urgent ones.
_SMALLEST_BURST = 4.0
# The part of the burst that only urgent requests may touch.
_URGENT_SHARE = 0.3


def ensure(session: Session, names: Iterable[str]) -> None:
    """Have a row for every configured account."""
    session.execute(
        text(
            "INSERT INTO accounts (name, failures, budget, poll_budget) "
            "SELECT name, 0, 0, 0 FROM unnest(CAST(:names AS text[])) AS n(name) "
            "ON CONFLICT DO NOTHING"
        ),
        {"names": list(names)},
    )


def paused_until(session: Session, account: str, now: datetime) -> datetime | None:
    """Say until when the account is left alone; None when it is not."""
    until = session.exec(
        select(AccountRow.paused_until).where(AccountRow.name == account)
    ).one_or_none()
    return until if until is not None and until > now else None


def pauses(session: Session, now: datetime) -> dict[str, tuple[datetime, str | None]]:
    """Give which accounts are left alone now: until when and why."""
    rows = session.execute(
        text("SELECT name, paused_until, pause_reason FROM accounts WHERE paused_until > :now"),
        {"now": now},
    )
    return {row.name: (row.paused_until, row.pause_reason) for row in rows}


def pause(session: Session, account: str, until: datetime, reason: str) -> None:
    """Leave the account alone for a while; never shortens a pause."""
    session.execute(
        text(
            "UPDATE accounts SET paused_until = greatest(coalesce(paused_until, :until), :until), "
            "pause_reason = :reason, failures = failures + 1 WHERE name = :account"
        ),
        {"account": account, "until": until, "reason": reason},
    )


def failures(session: Session, account: str) -> int:
    """Count the requests that failed in a row."""
    return session.exec(select(AccountRow.failures).where(AccountRow.name == account)).one()


def works(session: Session, account: str) -> None:
    """Note that the provider answers again."""
    session.execute(
        text(
            "UPDATE accounts SET paused_until = NULL, pause_reason = NULL, failures = 0 "
            "WHERE name = :account AND (failures > 0 OR paused_until IS NOT NULL)"
        ),
        {"account": account},
    )


def note_catalog(session: Session, account: str, items: int, requested_at: datetime) -> None:
    """Keep how large the last catalog was and when it was asked for."""
    session.execute(
        text("UPDATE accounts SET catalog_items = :items, catalog_at = :at WHERE name = :account"),
        {"account": account, "items": items, "at": requested_at},
    )


def take(
    session: Session,
    account: str,
    limit_per_minute: int | None,
    purpose: Purpose,
    wanted: int,
    now: datetime,
    *,
    is_whole: bool = False,
) -> int:
    """Take requests out of the account's budget; give how many may be sent now (0 to wanted).

    With `is_whole` they are of no use one by one: all are given, or none.
    """
    if limit_per_minute is None or wanted == 0:
        return wanted
    row = session.execute(
        text(
            "SELECT budget, poll_budget, budget_at FROM accounts WHERE name = :account FOR UPDATE"
        ),
        {"account": account},
    ).one()
    burst = max(limit_per_minute * _BURST_SHARE, _SMALLEST_BURST)
    flow_per_s = (limit_per_minute - burst) / 60
    poll_burst = max(burst * _POLL_SHARE, 1.0)
    burst -= poll_burst
    elapsed = max((now - row.budget_at).total_seconds(), 0.0) if row.budget_at else 3600.0
    budget = min(row.budget + elapsed * flow_per_s * (1 - _POLL_SHARE), burst)
    poll_budget = min(row.poll_budget + elapsed * flow_per_s * _POLL_SHARE, poll_burst)
    if purpose is Purpose.POLL:
        granted = min(wanted, int(poll_budget))
        poll_budget -= granted
        # What submits and deadlines leave over serves routine polls as well.
        more = min(wanted - granted, max(int(budget - burst / 2), 0))
        budget -= more
        granted += more
    else:
        kept = burst * _URGENT_SHARE if purpose is Purpose.SUBMIT else 0.0
        granted = min(wanted, max(int(budget - kept), 0))
        if is_whole and granted < wanted:
            granted = 0
        budget -= granted
    session.execute(
        text(
            "UPDATE accounts SET budget = :budget, poll_budget = :poll_budget, "
            "budget_at = greatest(coalesce(budget_at, :now), :now) WHERE name = :account"
        ),
        {"account": account, "budget": budget, "poll_budget": poll_budget, "now": now},
    )
    return granted


def wallets(session: Session) -> list[WalletView]:
    """Show every account's money."""
    rows = session.execute(
        text(
            """
            SELECT a.name, a.paused_until, a.pause_reason, w.figure_mills, w.requested_at,
                   (SELECT coalesce(sum(hold_mills), 0) FROM attempts t
                     WHERE t.account = a.name AND t.hold_closed_at IS NULL) AS held,
                   (SELECT coalesce(sum(hold_mills), 0) FROM attempts t
                     WHERE t.account = a.name AND t.absorbed_at IS NULL) AS unabsorbed,
                   coalesce(sum(e.amount_mills) FILTER (WHERE e.kind = 'settle'), 0) AS settled,
                   coalesce(sum(e.amount_mills) FILTER (WHERE e.kind = 'refund'), 0) AS refunded
              FROM accounts a
              LEFT JOIN wallets w ON w.account = a.name
              LEFT JOIN wallet_entries e ON e.account = a.name
             GROUP BY a.name, w.account ORDER BY a.name
            """
        )
    )
    views = []
    for row in rows:
        known = row.figure_mills is not None
        views.append(
            WalletView(
                account=row.name,
                balance=cap_in_cents(row.figure_mills) if known else None,
                balance_requested_at=row.requested_at,
                held=charge_in_cents(int(row.held)),
                available=max(cap_in_cents(int(row.figure_mills - row.unabsorbed)), 0)
                if known
                else None,
                settled=charge_in_cents(int(row.settled)),
                refunded=charge_in_cents(int(row.refunded)),
                paused_until=row.paused_until,
                pause_reason=row.pause_reason,
            )
        )
    return views


def pause_length(failed: int, jitter: float) -> timedelta:
    """Give the pause after this many failures in a row: 1 s doubling to 60 s, half to all of it.

    `jitter` is between 0 and 1.
    """
    longest = min(60.0, 2.0 ** min(failed, 6))
    return timedelta(seconds=longest * (0.5 + jitter / 2))
