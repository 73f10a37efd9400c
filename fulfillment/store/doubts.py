"""Whether this database may lack what was last done: it was restored, or another server took over.

Then a purchase may have been made that no row tells of. For a while each order is looked for at the
accounts that may have bought it before anything is bought or concluded for it
(services/recovery.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fulfillment.log import get_logger
from fulfillment.store.engine import Session
from fulfillment.store.models import Doubt
from fulfillment.store.purchases import Purchases

log = get_logger(__name__)

#: How long after a restore the store may still send again what it had sent before it.
DOUBTED_FOR = timedelta(hours=24)
#: What a person has to see to: a stop is a row, and is lost with the others.
ACT = (
    "stops that were made after the backup are missing: see `fulfillment accounts`, "
    "and pause again what must not buy"
)

# The cluster, its timeline (each promotion and each recovery to a point in time begins another) and
# the database in it: a dump that is read back into another one, or anew, brings the old name along.
_SERVER = """(SELECT system_identifier FROM pg_control_system()) || ':'
    || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || ':'
    || (SELECT oid FROM pg_database WHERE datname = current_database())"""

_UNSEARCHED = """EXISTS (SELECT 1 FROM accounts d
    WHERE d.name = {order}.account AND d.doubted_since < d.doubted_until
      AND {order}.created_at < d.doubted_until
      AND coalesce({order}.searched_at, '-infinity') < d.doubted_since{more})"""
#: Of an order's row: it is as old as what is in doubt, and nobody has looked for it since. As
#: `Order.is_doubted` has it; no clock ends that.
UNSEARCHED = _UNSEARCHED.format(order="orders", more="")
#: The same, for as long as the store may send again what it had sent before.
UNSEARCHED_YET = _UNSEARCHED.format(order="orders", more=" AND d.doubted_until > %(now)s")
#: No provider has told of it since it was looked for. As `Order.was_searched(None)` has it.
LOOKED_FOR = "coalesce(told_early_at <= searched_at, told_early_at IS NULL)"
#: Of a row `o`: it may be bought already, and is looked for before it is. As not
#: `Order.was_searched` has it.
TO_SEARCH = f"(NOT {LOOKED_FOR} OR {_UNSEARCHED.format(order='o', more='')})"

#: What the numbers of messages to the store begin at: null where there was no restore, then about
#: the second of the last one. The store may have had higher numbers of an order than our rows tell
#: of, and drops what is not newer. Each restore leaves room to the one before, and so does its
#: being noted to its being met: ten minutes, for clocks that differ, or as many events of an order.
_NEXT_TOLD_FROM = """greatest(coalesce(max(told_from), 0) + 1200,
    CAST(extract(epoch FROM CAST(%(now)s AS timestamptz)) AS bigint) + 600)"""
TOLD_FROM = f"""(SELECT CASE WHEN bool_or(server <> (SELECT {_SERVER}))
    THEN {_NEXT_TOLD_FROM} - 600 ELSE max(told_from) END FROM accounts)"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Condition:
    """How an account stands: requests that failed in a row, and which of our rows are doubted.

    And what was heard of its purchases.
    """

    failures: int
    doubt: Doubt | None
    purchases: Purchases


def condition(session: Session, account: str, now: datetime) -> Condition:
    """Say how an account stands; notes on the way that the server is another one than before."""
    row = _condition(session, account)
    if row.server != row.present:
        # Also where another process notes it at the same time: then its doubt is read.
        _note_server(session, row.present, now)
        row = _condition(session, account)
    told = row.purchases_unanswered, row.purchase_pauses, row.purchases_paused_until
    doubt = Doubt.of(row.doubted_since, row.doubted_until)
    return Condition(row.failures, doubt, Purchases(*told))


def _condition(session: Session, account: str) -> Any:
    return session.one(
        f"SELECT failures, doubted_since, doubted_until, server, {_SERVER} AS present, "  # noqa: S608
        "purchases_unanswered, purchase_pauses, purchases_paused_until "
        "FROM accounts WHERE name = %(account)s",
        {"account": account},
    )


def notice(session: Session, now: datetime) -> None:
    """Compare the server with the one that was last seen."""
    rows = session.rows(f"SELECT server, {_SERVER} FROM accounts")  # noqa: S608 - a constant
    present = next((present for server, present in rows if server != present), None)
    if present is not None:
        _note_server(session, present, now)


def _note_server(session: Session, present: str, now: datetime) -> None:
    """Write down which server this is; where another one was known to any account, doubt all.

    An account that is new to this database may have bought all the same, after the backup.
    """
    moved = session.rows(
        "UPDATE accounts SET server = %(present)s, "  # noqa: S608 - a constant
        "doubted_since = CASE WHEN known.is_other THEN %(now)s ELSE doubted_since END, "
        "doubted_until = CASE WHEN known.is_other THEN %(until)s ELSE doubted_until END, "
        "told_from = CASE WHEN known.is_other THEN known.next ELSE told_from END "
        "FROM (SELECT bool_or(server <> %(present)s) AS is_other, "
        f"{_NEXT_TOLD_FROM} AS next FROM accounts) AS known "
        "WHERE server IS DISTINCT FROM %(present)s RETURNING known.is_other",
        {"present": present, "now": now, "until": now + DOUBTED_FOR},
    )
    if any(is_other for (is_other,) in moved):
        hours = DOUBTED_FOR.total_seconds() / 3600
        log.error("database.is_another", doubted_for_h=hours, act=ACT)


def inherit(session: Session, names: Sequence[str]) -> None:
    """Doubt accounts that are new to this database as long as the others are doubted."""
    session.execute(
        "UPDATE accounts SET doubted_since = known.since, doubted_until = known.until "
        "FROM (SELECT max(doubted_since) AS since, max(doubted_until) AS until FROM accounts) "
        "AS known WHERE name = ANY(%(names)s)",
        {"names": list(names)},
    )


def note_merchants(session: Session, merchants: Mapping[str, str], now: datetime) -> None:
    """Write down whose accounts these are; of a change, whose it was, while in doubt the first."""
    is_kept = "a.merchant IS NULL OR a.merchant_left_at >= a.doubted_since"
    session.execute(
        "UPDATE accounts AS a SET merchant = n.merchant, "  # noqa: S608 - a constant
        f"merchant_before = CASE WHEN {is_kept} THEN a.merchant_before ELSE a.merchant END, "
        f"merchant_left_at = CASE WHEN {is_kept} THEN a.merchant_left_at ELSE %(now)s END "
        "FROM unnest(CAST(%(names)s AS text[]), CAST(%(merchants)s AS text[])) "
        "AS n(name, merchant) "
        "WHERE a.name = n.name AND a.merchant IS DISTINCT FROM n.merchant",
        {"names": list(merchants), "merchants": list(merchants.values()), "now": now},
    )


def left(session: Session) -> dict[str, str]:
    """Give the accounts that became another merchant's after what our rows lack: whose they were.

    What was bought there in between, only that merchant knows.
    """
    rows = session.rows(
        "SELECT name, merchant_before FROM accounts WHERE doubted_since < doubted_until "
        "AND merchant_left_at >= doubted_since AND merchant_before IS NOT NULL"
    )
    return dict(rows)


def trust(session: Session, account: str) -> None:
    """Take the account for the merchant that it was, as a person knows."""
    session.execute(
        "UPDATE accounts SET merchant_before = NULL, merchant_left_at = NULL "
        "WHERE name = %(account)s",
        {"account": account},
    )


def of_accounts(session: Session) -> dict[str, Doubt | None]:
    """Say which orders of each account are doubted."""
    rows = session.rows("SELECT name, doubted_since, doubted_until FROM accounts")
    return {name: Doubt.of(since, until) for name, since, until in rows}


def standing(session: Session, now: datetime) -> Doubt | None:
    """Say whether our rows are doubted now, at any account: until a time, or for what waits yet."""
    row = session.one(
        "SELECT max(doubted_since) AS since, max(doubted_until) AS until FROM accounts a "  # noqa: S608
        "WHERE doubted_since < doubted_until AND (doubted_until > %(now)s OR EXISTS ("
        "    SELECT 1 FROM orders WHERE account = a.name AND next_attempt_at IS NOT NULL "
        f"       AND {UNSEARCHED}))",
        {"now": now},
    )
    return Doubt.of(row.since, row.until)


def doubt(session: Session, now: datetime, until: datetime) -> None:
    """Doubt all accounts' orders from now on, as a person knows to; `until` now: none any more."""
    session.execute(
        "UPDATE accounts SET doubted_since = %(now)s, doubted_until = %(until)s, "  # noqa: S608
        "told_from = CASE WHEN %(is_restored)s THEN known.next ELSE told_from END "
        f"FROM (SELECT {_NEXT_TOLD_FROM} AS next FROM accounts) AS known",
        {"now": now, "until": until, "is_restored": until > now},
    )


def note_searched(session: Session, order_ids: Sequence[int], at: datetime) -> None:
    """Note when orders were looked for at all accounts, and found nowhere."""
    session.execute(
        "UPDATE orders SET searched_at = %(at)s WHERE id IN ("
        "SELECT id FROM orders WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE)",
        {"ids": list(order_ids), "at": at},
    )
