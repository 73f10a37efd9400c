"""The operator's kill switch: an append-only log of which the newest row of an account counts.

It is apart from the automatic pause of an account whose provider is away: nothing but a person
turns it back. Turns of one account wait for each other, so that the newest is also the last that
was committed.
"""

from dataclasses import dataclass
from datetime import datetime

from fulfillment.store.engine import Session

#: Stands for every account; no account can have this name.
ALL = "*"

_NEWEST = """
    SELECT DISTINCT ON (account) id, account, is_stopped, at, by, reason
      FROM account_switches ORDER BY account, id DESC
"""
# Names of one merchant share their switches: an account may have been renamed, or be known to
# processes of before by its former name. The newest of all counts, beside the name's own.
_NEWEST_OF_MERCHANTS = """
    SELECT DISTINCT ON (n.merchant) n.merchant, t.id, t.account, t.is_stopped, t.at, t.by, t.reason
      FROM account_switches t JOIN accounts n ON n.name = t.account
     WHERE n.merchant NOT LIKE '%% -' ORDER BY n.merchant, t.id DESC
"""
#: Says whether the account `a` is stopped, by itself or with all.
STOPPED = f"""(
    EXISTS (SELECT 1 FROM ({_NEWEST}) s WHERE s.is_stopped AND s.account IN (a.name, '{ALL}'))
    OR EXISTS (SELECT 1 FROM ({_NEWEST_OF_MERCHANTS}) s
                WHERE s.is_stopped AND s.merchant = a.merchant))
"""  # noqa: S608 - constants
_STOPS = f"""
    SELECT DISTINCT ON (account) id, account, at, by, reason FROM (
        SELECT id, account, at, by, reason, 1 AS rank FROM ({_NEWEST}) s WHERE is_stopped
        UNION ALL
        SELECT s.id, a.name, s.at, s.by, 'stopped as ' || s.account || ': ' || s.reason, 2
          FROM ({_NEWEST_OF_MERCHANTS}) s JOIN accounts a ON a.merchant = s.merchant
         WHERE s.is_stopped AND s.account <> a.name) stops
     ORDER BY account, rank
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Stop:
    """Since when an account (or ALL) is stopped, by whom and why; `id` is the turn's."""

    id: int
    account: str
    at: datetime
    by: str
    reason: str


def stops(session: Session) -> dict[str, Stop]:
    """Give what is stopped now, by account or ALL."""
    return {row.account: Stop(*row) for row in session.execute(_STOPS)}


def stop_of(session: Session, account: str) -> Stop | None:
    """Say what stops the account: its own switch before that of all."""
    found = stops(session)
    return found.get(account) or found.get(ALL)


# The last stop by `watch`, and the first resume after it: that one was told of it.
_JUDGED_AT = """
    SELECT max(at) FROM account_switches
     WHERE account = %(account)s AND id IN (
         SELECT max(id) FROM account_switches WHERE account = %(account)s AND by = %(watch)s
         UNION ALL
         SELECT min(id) FROM account_switches
          WHERE account = %(account)s AND NOT is_stopped AND id > (
              SELECT max(id) FROM account_switches
               WHERE account = %(account)s AND by = %(watch)s))
"""


def unjudged_reversals(session: Session, account: str, since: datetime, watch: str) -> int:
    """Count the account's deliveries undone after `since` that have not stopped it yet.

    A stop by `watch` is about those until then, and the resume after it about those until that;
    any other turn of the switch is about something else.
    Locks until the transaction ends, so that of two that count at once the second sees the first.
    """
    session.execute(
        "SELECT pg_advisory_xact_lock(hashtext(%(name)s))", {"name": f"reversals:{account}"}
    )
    return int(
        session.scalar(
            f"""
            SELECT count(DISTINCT o.id) FROM orders o JOIN order_events e ON e.order_id = o.id
             WHERE o.account = %(account)s AND o.status = 'reversed' AND o.updated_at > %(since)s
               AND e.to_status = 'reversed' AND e.from_status <> 'reversed' AND e.at > %(since)s
               AND e.at > coalesce(({_JUDGED_AT}), '-infinity')
            """,  # noqa: S608 - a constant
            {"account": account, "since": since, "watch": watch},
        )
    )


def lock(session: Session, account: str) -> None:
    """Make this transaction the only one that turns the switch of the account (or ALL).

    Only after the wallet's lock, and before the one of all spending (store/ledger.py): whoever
    holds this one waits for no wallet.
    """
    session.execute(
        "SELECT pg_advisory_xact_lock(hashtext('switch:' || coalesce("
        "(SELECT merchant FROM accounts WHERE name = %(name)s AND merchant NOT LIKE '%% -'), "
        "%(name)s)))",
        {"name": account},
    )


def turn(
    session: Session, account: str, *, is_stopped: bool, by: str, reason: str, now: datetime
) -> None:
    """Write down a turn of the switch; who has to look at it before locks it before that."""
    lock(session, account)
    session.execute(
        "INSERT INTO account_switches (account, is_stopped, at, by, reason) "
        "VALUES (%(account)s, %(is_stopped)s, %(at)s, %(by)s, %(reason)s)",
        {"account": account, "is_stopped": is_stopped, "at": now, "by": by, "reason": reason},
    )
