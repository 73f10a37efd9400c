"""What has been spent, or may yet be, within a time: what a spend cap is held against."""

from datetime import datetime, timedelta

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
       -- Between two bounds: of one alone, whose value no plan knows, a third of all is expected.
       AND (a.confirmed_at > %(since)s AND a.confirmed_at <= 'infinity'
            OR a.confirmed_at IS NULL AND (a.ended_at IS NULL OR a.ended_at > %(since)s)
               -- Posted no more, also where nobody ever tells what became of it.
               AND (o.status = 'needs_review' AND a.unknown_since IS NOT NULL
                    AND a.last_post_at + %(longest_call)s <= %(since)s) IS NOT TRUE)
    """
_SPENT_BY_ONE = _SPENT.format(of=f"ANY({SAME_WALLET})")
_SPENT_BY_ALL = _SPENT.format(of="ANY(ARRAY(SELECT name FROM accounts))")


def spent_mills(
    session: Session, account: str | None, since: datetime, longest_call: timedelta
) -> int:
    """Give the most that the account, or all together, can have spent after `since`.

    The provider takes an order at some time between its hold and its confirmation, so an attempt
    counts until its confirmation is older; what was refused or released was not spent. One that a
    person is to look into was taken at most `longest_call` after its last post, or never. A charge
    counts from when it is told.
    """
    statement = _SPENT_BY_ALL if account is None else _SPENT_BY_ONE
    values = {"account": account, "since": since, "longest_call": longest_call}
    return int(session.scalar(statement, values))
