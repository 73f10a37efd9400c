"""What to do when an account's provider cannot be asked: leave the account alone for a while."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import (
    OverBudget,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
)
from fulfillment.log import get_logger
from fulfillment.services.context import Context
from fulfillment.store import accounts
from fulfillment.store.engine import repeated

log = get_logger(__name__)

#: Wrong credentials do not heal in seconds; asking on would only be a storm.
_DENIED_PAUSE = timedelta(seconds=30)
#: Whoever waits for the same date comes back in turn: up to this share later.
_SPREAD = 0.1


def is_away(error: ProviderError | None) -> bool:
    """Say whether an error tells of the account and not of one order."""
    if isinstance(error, ProviderNotReached | ProviderDeniesAccount):
        return True
    return error is not None and error.is_outage


def of_the_account(errors: Sequence[ProviderError], *, is_answered: bool) -> ProviderError | None:
    """Give what tells of all these failed lookups that the account is to be left alone.

    One lookup that failed is about its orders; several, and none that was answered, are not.
    """
    for error in errors:
        if isinstance(error, ProviderDeniesAccount) or error.retry_after is not None:
            return error
    away = [error for error in errors if is_away(error) and not isinstance(error, OverBudget)]
    return away[0] if len(away) > 1 and not is_answered else None


@repeated
def pause(context: Context, account: str, error: ProviderError) -> datetime | None:
    """Pause the account after a failed request, longer with each failure; give its end.

    None where it was only our own rate budget that let nothing through: that is no failure.
    """
    if isinstance(error, OverBudget):
        return None
    now = context.now()
    with context.database.transaction() as session:
        length = pause_length(context, error, accounts.failures(session, account))
        accounts.pause(session, account, now + length, str(error))
    crash_point("outage.paused")
    log.warning("account.paused", account=account, seconds=length.total_seconds(), why=str(error))
    return now + length


def pause_length(context: Context, error: ProviderError, failed: int) -> timedelta:
    """Say how long to pause after this error, and this many failures in a row before it."""
    least = error.retry_after or timedelta()
    if isinstance(error, ProviderDeniesAccount):
        least = max(least, _DENIED_PAUSE)
    jitter = context.jitter()
    return max(accounts.pause_length(failed, jitter), least * (1 + _SPREAD * jitter))


@repeated
def works(context: Context, account: str) -> None:
    """Note that the provider answers again."""
    with context.database.transaction() as session:
        accounts.works(session, account)
