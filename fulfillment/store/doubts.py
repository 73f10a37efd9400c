"""Whether this database may lack what was last done: it was restored, or another server took over.

Then a purchase may have been made that no row tells of. For a while each order is looked for at the
accounts of its route before anything is bought or concluded for it (services/recovery.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fulfillment.log import get_logger
from fulfillment.store.engine import Session
from fulfillment.store.purchases import Purchases

log = get_logger(__name__)

#: How long after a restore the store may still send again what it had sent before it.
DOUBTED_FOR = timedelta(hours=24)

# The cluster, its timeline (each promotion and each recovery to a point in time begins another) and
# the database in it: a dump that is read back into another one, or anew, brings the old name along.
_SERVER = """(SELECT system_identifier FROM pg_control_system()) || ':'
    || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || ':'
    || (SELECT oid FROM pg_database WHERE datname = current_database())"""

#: Of an order's row: nobody has looked for it since the database is in doubt.
UNSEARCHED = """EXISTS (SELECT 1 FROM accounts d
    WHERE d.name = orders.account AND d.doubted_until > %(now)s
      AND coalesce(orders.searched_at, '-infinity') < d.doubted_since)"""


@dataclass(frozen=True, slots=True)
class Condition:
    """How an account stands: requests that failed in a row, and since when our rows are doubted.

    And what was heard of its purchases.
    """

    failures: int
    doubted_since: datetime | None
    purchases: Purchases


def note_server(session: Session) -> None:
    """Write down which server this is where nobody has yet."""
    session.execute(
        f"UPDATE accounts SET server = {_SERVER} WHERE server IS NULL"  # noqa: S608 - a constant
    )


def condition(session: Session, account: str, now: datetime) -> Condition:
    """Say how an account stands; notes on the way that the server is another one than before."""
    row = session.one(
        f"SELECT failures, doubted_since, doubted_until, server, {_SERVER} AS present, "  # noqa: S608
        "purchases_unanswered, purchase_pauses, purchases_paused_until "
        "FROM accounts WHERE name = %(account)s",
        {"account": account},
    )
    if row.server != row.present and _is_other(session, row.present, now):
        since: datetime | None = now
    else:
        is_doubted = row.doubted_until is not None and row.doubted_until > now
        since = row.doubted_since if is_doubted else None
    told = row.purchases_unanswered, row.purchase_pauses, row.purchases_paused_until
    return Condition(row.failures, since, Purchases(*told))


def notice(session: Session, now: datetime) -> None:
    """Compare the server with the one that was last seen."""
    rows = session.rows(f"SELECT server, {_SERVER} FROM accounts")  # noqa: S608 - a constant
    present = next((present for server, present in rows if server != present), None)
    if present is not None:
        _is_other(session, present, now)


def _is_other(session: Session, present: str, now: datetime) -> bool:
    """Write down which server this is; say whether it is not the one that was known."""
    moved = session.rows(
        "UPDATE accounts SET server = %(present)s, "
        "doubted_since = CASE WHEN server IS NULL THEN doubted_since ELSE %(now)s END, "
        "doubted_until = CASE WHEN server IS NULL THEN doubted_until ELSE %(until)s END "
        "WHERE server IS DISTINCT FROM %(present)s RETURNING doubted_since = %(now)s",
        {"present": present, "now": now, "until": now + DOUBTED_FOR},
    )
    is_other = any(is_doubted for (is_doubted,) in moved)
    if is_other:
        log.error("database.is_another", doubted_for_h=DOUBTED_FOR.total_seconds() / 3600)
    return is_other


def doubt(session: Session, now: datetime, until: datetime) -> None:
    """Doubt all accounts' orders from now on, as a person knows to."""
    session.execute(
        "UPDATE accounts SET doubted_since = %(now)s, doubted_until = %(until)s",
        {"now": now, "until": until},
    )


def note_searched(session: Session, order_ids: Sequence[int], at: datetime) -> None:
    """Note when orders were looked for at all accounts, and found nowhere."""
    session.execute(
        "UPDATE orders SET searched_at = %(at)s WHERE id IN ("
        "SELECT id FROM orders WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE)",
        {"ids": list(order_ids), "at": at},
    )
