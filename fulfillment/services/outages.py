"""What to do when an account's provider cannot be asked: leave the account alone for a while."""

from datetime import datetime, timedelta

from fulfillment.errors import ProviderDeniesAccount, ProviderError
from fulfillment.log import get_logger
from fulfillment.services.context import Context
from fulfillment.store import accounts
from fulfillment.store.accounts import Purpose

log = get_logger(__name__)

#: Wrong credentials do not heal in seconds; asking on would only be a storm.
_DENIED_PAUSE = timedelta(seconds=30)
#: How soon to look whether the rate budget has refilled.
_BUDGET_PAUSE = timedelta(seconds=1)


def pause(context: Context, account: str, error: ProviderError) -> datetime:
    """Pause the account after a failed request, longer with each failure; give its end."""
    now = context.now()
    with context.database.transaction() as session:
        failed = accounts.failures(session, account)
        length = accounts.pause_length(failed, context.jitter())
        if isinstance(error, ProviderDeniesAccount):
            length = max(length, _DENIED_PAUSE)
        if error.retry_after is not None:
            length = max(length, error.retry_after)
        accounts.pause(session, account, now + length, str(error))
    log.warning("account.paused", account=account, seconds=length.total_seconds(), why=str(error))
    return now + length


def take_budget(
    context: Context, account: str, purpose: Purpose, wanted: int = 1, *, is_whole: bool = False
) -> int:
    """Take requests out of the account's rate budget; give how many may be sent now."""
    limit = context.account(account).requests_per_minute
    if limit is None:
        return wanted
    with context.database.transaction() as session:
        now = context.now()
        return accounts.take(session, account, limit, purpose, wanted, now, is_whole=is_whole)


def budget_refilled_at(context: Context) -> datetime:
    return context.now() + _BUDGET_PAUSE
