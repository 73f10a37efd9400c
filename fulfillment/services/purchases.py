"""Heed what purchases tell of an account: it may sell nothing although all else is answered.

Then its purchases rest, and nothing else; after each pause one goes ahead (store/purchases.py).
"""

from collections.abc import Sequence
from datetime import datetime

from fulfillment.crash import crash_point
from fulfillment.errors import (
    OverBudget,
    ProviderDeniesAccount,
    ProviderError,
    ProviderOutcomeUnknown,
)
from fulfillment.log import get_logger
from fulfillment.services import outages
from fulfillment.services.answers import Answer, Answered, Unknown
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.store import purchases
from fulfillment.store.engine import repeated
from fulfillment.store.models import Order

log = get_logger(__name__)

#: So many orders in a row without a yes or a no are an outage; one or two are only slow.
SEVERAL = 3


@repeated
def fail(
    context: Context,
    account: str,
    errors: Sequence[ProviderError],
    *,
    is_ahead: bool = False,
    is_read: bool = False,
) -> datetime | None:
    """Count purchases that brought neither a yes nor a no; give until when purchases rest by that.

    None where that is no outage yet. While they are broken only what was sent after a pause, ahead
    of all others, makes a further one (`is_ahead`): what was sent before they broke may fail long
    after it. And what was to be read for a purchase (`is_read`), unless a pause goes on or one is
    ahead: its time is not cut short.
    """
    now = context.now()
    with context.database.transaction() as session:
        known = purchases.count_unanswered(session, account, len(errors))
        is_after = is_ahead or (is_read and not known.are_paused(now))
        if known.are_broken and not is_after:
            return known.paused_until
        away = next((error for error in errors if outages.is_away(error)), None)
        if away is None and known.unanswered < SEVERAL and not known.are_broken:
            return None
        error = away or errors[-1]
        length = outages.pause_length(context, error, known.pauses)
        purchases.pause(session, account, now + length, str(error))
    crash_point("purchases.paused")
    log.warning("purchases.paused", account=account, seconds=length.total_seconds(), why=str(error))
    return now + length


@repeated
def go_ahead(context: Context, account: str) -> datetime | None:
    """Let one purchase of this caller go ahead of all others; give until when it alone may.

    None where it may not. Whoever dies with it keeps the others for that long.
    """
    now = context.now()
    until = now + context.longest_call(account)
    with context.database.transaction() as session:
        is_first = purchases.go_ahead(session, account, now, until)
    crash_point("purchases.went_ahead")
    return until if is_first else None


class Watch:
    """What one round of submits hears of its account; `until` is set where one goes ahead."""

    def __init__(self, context: Context, claim: KeptClaim, until: datetime | None = None) -> None:
        self._context = context
        self.account = claim.account
        self._attempts = claim.attempts
        self._until = until
        self._is_counted = claim.purchases.unanswered > 0
        #: Lookups that failed, and whether any was answered.
        self._failed: list[ProviderError] = []
        self._is_any_answered = False
        #: Nobody knows yet whether purchases are answered again: no second one may leave.
        self.is_ahead = until is not None

    def hear(self, claim: KeptClaim) -> None:
        """Note what was heard of the account's purchases when more was taken for the round."""
        self._is_counted |= claim.purchases.unanswered > 0

    def heed(self, answers: Sequence[tuple[Order, Answer]]) -> bool:
        """Note what came back; say whether to stop here, since the account is to be left alone."""
        unasked = [answer.error for _, answer in answers if answer.was_answered is None]
        is_spent = any(isinstance(error, OverBudget) for error in unasked)
        self._failed += filter(None, unasked)
        is_answered = any(answer.was_answered for _, answer in answers)
        self._is_any_answered |= is_answered or any(_has_told(answer) for _, answer in answers)
        away = outages.of_the_account(self._failed, is_answered=self._is_any_answered)
        if away is not None:
            outages.pause(self._context, self.account, away)
        if is_answered and (self.is_ahead or self._is_counted):
            _work(self._context, self.account, went_ahead=self.is_ahead)
            self.is_ahead = self._is_counted = False
        errors = [
            error
            for order, answer in answers
            if answer.was_answered is False
            and self._counts(order, error := _error(answer), is_answered=is_answered)
        ]
        return self._fail(errors) or away is not None or is_spent

    def _counts(self, order: Order, error: ProviderError, *, is_answered: bool) -> bool:
        """Say whether a purchase without a yes or a no tells of the account.

        A slow one among others that are answered does not, and one order that is slow again and
        again does not either, unless it went ahead for all.
        """
        if outages.is_away(error) or self.is_ahead:
            return True
        attempt = self._attempts.get(order.id)
        return not is_answered and (attempt is None or attempt.unknown_since is None)

    def _fail(self, errors: Sequence[ProviderError]) -> bool:
        if not errors:
            return False
        self._is_counted = True
        for error in errors:
            is_wish = outages.is_away(error) and error.retry_after is not None
            if is_wish or isinstance(error, ProviderDeniesAccount):
                outages.pause(self._context, self.account, error)  # it is about all requests
                break
        until = fail(self._context, self.account, errors, is_ahead=self.is_ahead)
        self.is_ahead = False
        return until is not None

    def end(self) -> None:
        """Let another go ahead where none was sent after all."""
        if self.is_ahead and self._until is not None:
            _come_back(self._context, self.account, self._until)


def _has_told(answer: Answer) -> bool:
    """Say whether the provider was asked what it has, and said so."""
    is_empty = isinstance(answer, Unknown) and answer.empty_at is not None
    return is_empty or isinstance(answer, Answered)


def _error(answer: Answer) -> ProviderError:
    """Give what went wrong; how long we ourselves want to wait for a lookup is no part of it."""
    is_odd = isinstance(answer, Unknown) and answer.odd_refusal is not None
    if answer.error is None or is_odd:
        return ProviderOutcomeUnknown(getattr(answer, "reason", "no answer"))
    return answer.error


@repeated
def _work(context: Context, account: str, *, went_ahead: bool) -> None:
    with context.database.transaction() as session:
        if went_ahead:
            purchases.mend(session, account)
        else:
            purchases.note_answered(session, account)


@repeated
def _come_back(context: Context, account: str, until: datetime) -> None:
    with context.database.transaction() as session:
        purchases.come_back(session, account, until, context.now())
