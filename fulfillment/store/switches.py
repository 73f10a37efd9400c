"""The operator's kill switch: an append-only log of which the newest row of an account counts.

It is apart from the automatic pause of an account whose provider is away: nothing but a person
turns it back.
"""

from dataclasses import dataclass
from datetime import datetime

from fulfillment.store.engine import Session

#: Stands for every account; no account can have this name.
ALL = "*"

_NEWEST = """
    SELECT DISTINCT ON (account) account, is_stopped, at, by, reason
      FROM account_switches ORDER BY account, id DESC
"""
#: Says whether the account `a` is stopped, by itself or with all.
STOPPED = f"""
    EXISTS (SELECT 1 FROM ({_NEWEST}) s WHERE s.is_stopped AND s.account IN (a.name, '{ALL}'))
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Stop:
    """Since when an account (or ALL) is stopped, by whom and why."""

    account: str
    at: datetime
    by: str
    reason: str


def stops(session: Session) -> dict[str, Stop]:
    """Give what is stopped now, by account or ALL."""
    rows = session.execute(f"SELECT * FROM ({_NEWEST}) s WHERE is_stopped")  # noqa: S608
    return {row.account: Stop(row.account, row.at, row.by, row.reason) for row in rows}


def stop_of(session: Session, account: str) -> Stop | None:
    """Say what stops the account: its own switch before that of all."""
    found = stops(session)
    return found.get(account) or found.get(ALL)


def reversals_since_turn(session: Session, account: str, since: datetime) -> int:
    """Count the account's deliveries undone after `since` and after the last turn of its switch.

    Locks until the transaction ends, so that of two that count at once the second sees the first.
    """
    session.execute(
        "SELECT pg_advisory_xact_lock(hashtext(%(name)s))", {"name": f"reversals:{account}"}
    )
    return int(
        session.scalar(
            """
            SELECT count(DISTINCT o.id) FROM orders o JOIN order_events e ON e.order_id = o.id
             WHERE o.account = %(account)s AND o.status = 'reversed' AND o.updated_at > %(since)s
               AND e.to_status = 'reversed' AND e.from_status <> 'reversed' AND e.at > %(since)s
               AND e.at > coalesce((SELECT max(at) FROM account_switches
                                     WHERE account = %(account)s), '-infinity')
            """,
            {"account": account, "since": since},
        )
    )


def turn(
    session: Session, account: str, *, is_stopped: bool, by: str, reason: str, now: datetime
) -> None:
    """Write down a turn of the switch."""
    session.execute(
        "INSERT INTO account_switches (account, is_stopped, at, by, reason) "
        "VALUES (%(account)s, %(is_stopped)s, %(at)s, %(by)s, %(reason)s)",
        {"account": account, "is_stopped": is_stopped, "at": now, "by": by, "reason": reason},
    )
