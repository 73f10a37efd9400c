"""Leases: who alone may do something for now; heartbeats: when something periodic last ran."""

from datetime import datetime

from sqlalchemy import text
from sqlmodel import Session, select

from schemas.tables import HeartbeatRow


def acquire(session: Session, name: str, holder: str, now: datetime, until: datetime) -> bool:
    """Take or renew a lease; say whether `holder` has it now."""
    row = session.execute(
        text(
            """
            INSERT INTO leases (name, holder, until) VALUES (:name, :holder, :until)
            ON CONFLICT (name) DO UPDATE SET holder = :holder, until = :until
             WHERE leases.holder = :holder OR leases.until <= :now
            RETURNING name
            """
        ),
        {"name": name, "holder": holder, "now": now, "until": until},
    ).first()
    return row is not None


def until(session: Session, name: str) -> datetime | None:
    """Give the end of a lease, also of one that is over; None where there is none."""
    row = session.execute(text("SELECT until FROM leases WHERE name = :name"), {"name": name})
    return row.scalar_one_or_none()


def give_up(session: Session, name: str, holder: str) -> None:
    """End a lease if `holder` still has it."""
    session.execute(
        text("DELETE FROM leases WHERE name = :name AND holder = :holder"),
        {"name": name, "holder": holder},
    )


def beat(session: Session, name: str, now: datetime) -> None:
    """Note that the periodic activity ran."""
    session.execute(
        text(
            "INSERT INTO heartbeats (name, at) VALUES (:name, :now) "
            "ON CONFLICT (name) DO UPDATE SET at = greatest(heartbeats.at, :now)"
        ),
        {"name": name, "now": now},
    )


def heartbeats(session: Session) -> dict[str, datetime]:
    """Give when each periodic activity last ran."""
    return {row.name: row.at for row in session.exec(select(HeartbeatRow))}
