"""Leases: who alone may do something for now; heartbeats: when something periodic last ran."""

from datetime import datetime

from fulfillment.store.engine import Session


def acquire(session: Session, name: str, holder: str, now: datetime, until: datetime) -> bool:
    """Take or renew a lease; say whether `holder` has it now."""
    row = session.one(
        """
            INSERT INTO leases (name, holder, until) VALUES (%(name)s, %(holder)s, %(until)s)
            ON CONFLICT (name) DO UPDATE SET holder = %(holder)s, until = %(until)s
             WHERE leases.holder = %(holder)s OR leases.until <= %(now)s
            RETURNING name
            """,
        {"name": name, "holder": holder, "now": now, "until": until},
    )
    return row is not None


def until(session: Session, name: str) -> datetime | None:
    """Give the end of a lease, also of one that is over; None where there is none."""
    end: datetime | None = session.scalar(
        "SELECT until FROM leases WHERE name = %(name)s", {"name": name}
    )
    return end


def give_up(session: Session, name: str, holder: str) -> None:
    """End a lease if `holder` still has it."""
    session.execute(
        "DELETE FROM leases WHERE name = %(name)s AND holder = %(holder)s",
        {"name": name, "holder": holder},
    )


def beat(session: Session, name: str, now: datetime) -> None:
    """Note that the periodic activity ran."""
    session.execute(
        "INSERT INTO heartbeats (name, at) VALUES (%(name)s, %(now)s) "
        "ON CONFLICT (name) DO UPDATE SET at = greatest(heartbeats.at, %(now)s)",
        {"name": name, "now": now},
    )


def heartbeats(session: Session) -> dict[str, datetime]:
    """Give when each periodic activity last ran."""
    return {row.name: row.at for row in session.execute("SELECT name, at FROM heartbeats")}
