"""What has been spent, or may yet be, within a time: what a spend cap is held against."""

from datetime import datetime

from fulfillment.store.accounts import SAME_WALLET
from fulfillment.store.engine import Session


def lock_spending(session: Session) -> None:
    """Make this transaction the only one that allocates under the cap of all accounts.

    Only after the wallet's lock: whoever holds this one waits for no wallet.
    """
    session.execute("SELECT pg_advisory_xact_lock(hashtext('spending'))")


_SPENT = """
    SELECT coalesce(sum(greatest(a.hold_mills, o.charged_mills, coalesce(e.amount_mills, 0) + (
               SELECT coalesce(sum(j.amount_mills), 0) FROM wallet_entries j
                WHERE a.state = 'completed' AND j.order_id = a.order_id
                  AND j.account = a.account AND j.kind = 'adjust'))), 0)
      FROM attempts a
      LEFT JOIN orders o ON o.id = a.order_id AND o.account = a.account
      LEFT JOIN wallet_entries e ON e.attempt_id = a.id AND e.kind = 'settle'
     WHERE a.account = {of} AND a.state <> 'refused'
       AND NOT (a.state = 'ended' AND a.hold_closed_at IS NOT NULL)
       AND (a.confirmed_at > %(since)s
            OR a.confirmed_at IS NULL AND (a.ended_at IS NULL OR a.ended_at > %(since)s))
    """
_SPENT_BY_ONE = _SPENT.format(of=f"ANY({SAME_WALLET})")
_SPENT_BY_ALL = _SPENT.format(of="ANY(ARRAY(SELECT name FROM accounts))")


def spent_mills(session: Session, account: str | None, since: datetime) -> int:
    """Give the most that the account, or all together, can have spent after `since`.

    The provider takes an order at some time between its hold and its confirmation, so an attempt
    counts until its confirmation is older; what was refused or released was not spent. A charge
    counts from when it is told.
    """
    statement = _SPENT_BY_ALL if account is None else _SPENT_BY_ONE
    return int(session.scalar(statement, {"account": account, "since": since}))
