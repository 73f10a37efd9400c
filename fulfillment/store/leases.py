"""Leases: who alone may do something for now; heartbeats: when something periodic last ran.

A process may have written them by a clock that was far ahead, and be dead: what lies farther in the
future than it can counts as not written. Only who agrees with the database's clock may judge that.
"""

from datetime import datetime, timedelta

from fulfillment.store.engine import Session

#: Clocks that are right are no farther apart.
APART = timedelta(minutes=1)
#: Whether the present time of this process is right, by the database's clock.
IS_RIGHT = (
    "%(now)s BETWEEN clock_timestamp() - interval '30 s' AND clock_timestamp() + interval '30 s'"
)


def acquire(session: Session, name: str, holder: str, now: datetime, until: datetime) -> bool:
    """Take or renew a lease, which is as long for everybody; say whether `holder` has it now."""
    row = session.one(
        f"""
            INSERT INTO leases (name, holder, until) VALUES (%(name)s, %(holder)s, %(until)s)
            ON CONFLICT (name) DO UPDATE SET holder = %(holder)s, until = %(until)s
             WHERE leases.holder = %(holder)s OR leases.until <= %(now)s
                OR leases.until > %(wrong)s AND {IS_RIGHT}
            RETURNING name
            """,  # noqa: S608 - a constant
        {"name": name, "holder": holder, "now": now, "until": until, "wrong": until + APART},
    )
    return row is not None


def until(session: Session, name: str, latest: datetime) -> datetime | None:
    """Give the end of a lease that ends by `latest`, also of one that is over; None without one."""
    end: datetime | None = session.scalar(
        "SELECT until FROM leases WHERE name = %(name)s AND until <= %(wrong)s",
        {"name": name, "wrong": latest + APART},
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
        "INSERT INTO heartbeats (name, at) VALUES (%(name)s, %(now)s) "  # noqa: S608 - a constant
        "ON CONFLICT (name) DO UPDATE SET at = "
        f"CASE WHEN heartbeats.at > %(wrong)s AND {IS_RIGHT} THEN %(now)s "
        "ELSE greatest(heartbeats.at, %(now)s) END",
        {"name": name, "now": now, "wrong": now + APART},
    )


def heartbeats(session: Session, now: datetime) -> dict[str, datetime]:
    """Give when each periodic activity last ran."""
    query = f"SELECT name, at FROM heartbeats WHERE at <= %(wrong)s OR NOT {IS_RIGHT}"  # noqa: S608
    values = {"now": now, "wrong": now + APART}
    return {row.name: row.at for row in session.execute(query, values)}


def is_right(session: Session, now: datetime) -> bool:
    """Say whether a time of now is right, by the database's clock."""
    return bool(session.scalar(f"SELECT {IS_RIGHT}", {"now": now}))
