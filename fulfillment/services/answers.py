"""Ask the provider to buy, or what became of an earlier request, and classify what comes back.

An answer is definite-yes, definite-no or unknown (DESIGN section 3); nothing here touches the
database.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from fulfillment.crash import crash_point
from fulfillment.errors import (
    NotLetGo,
    OverBudget,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import backstop
from fulfillment.services.brakes import STOPPED_GAP
from fulfillment.services.context import Context
from fulfillment.services.unknowns import Step
from fulfillment.store.models import Attempt, Order
from schemas.enums import FailureCode
from schemas.money import cents_to_mills
from schemas.provider import OrderReport

# Of each, `was_answered` says whether a request to buy brought a documented yes or no; None where
# none was sent.

#: What leaves no later than so many seconds after the intent looked at the switch leaves at once.
_AT_ONCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A definite yes: the provider has the order."""

    report: OrderReport
    error: None = None
    was_answered: bool | None = None
    is_of_a_post: bool = False  # the purchase itself was answered so, and no lookup after it


@dataclass(frozen=True, slots=True)
class Refused:
    """A definite no: the provider created nothing."""

    error: ProviderRefused
    was_answered: bool | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing left this machine, or the provider turned the account away at the door."""

    reason: str
    error: ProviderError | None = None
    was_answered: bool | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Only the provider's own later answer can say what happened.

    `empty_at` is when the provider was asked, where it was and did not know the order, and
    `empty_told_at` when it had said so;
    `odd_refusal` is what it refused the purchase with, where its contract knows no such no.
    """

    reason: str
    error: ProviderError | None = None
    empty_at: datetime | None = None
    empty_told_at: datetime | None = None
    odd_refusal: str | None = None
    was_answered: bool | None = None

    @property
    def is_failed_lookup(self) -> bool:
        """Say whether nothing was sent but a lookup, and that failed."""
        is_asked = self.error is not None and not isinstance(self.error, OverBudget)
        return is_asked and self.was_answered is None and self.empty_at is None


Answer = Answered | Refused | NotSent | Unknown


def ask(
    context: Context,
    order: Order,
    attempt: Attempt,
    body: bytes,
    step: Step,
    is_held: Callable[[], bool],
    why_stopped: Callable[[], str | None],
    looked_at_s: float,
) -> Answer:
    """Take the step; after an earlier post of unknown outcome, a no needs a lookup to be sure.

    `attempt` is the attempt as it was before this step. No purchase leaves for more than may be
    paid now, nor when `is_held` says no at the last moment or the order's time is over by then.
    Where something was waited for since the intent looked, at `looked_at_s` by the monotonic clock,
    `why_stopped` is asked too: it says why the account buys nothing, None if it does.
    """
    if step is Step.LOOK_UP:
        return _look_up(context, order, attempt)
    was_unknown = attempt.unknown_since is not None
    if _is_late(context, order):
        # Too late to buy for this customer: find out what was sent, but do not ask again.
        too_late = ProviderRefused(FailureCode.TOO_LATE, "not submitted in time", is_ours=True)
        return _confirm(context, order, attempt, too_late) if was_unknown else Refused(too_late)
    if attempt.hold_mills > cents_to_mills(_limit_cents(context, order)):
        message = "the price is above what the account's settings allow now"
        too_dear = ProviderRefused(FailureCode.PRICE_CHANGED, message, is_ours=True)
        return _confirm(context, order, attempt, too_dear) if was_unknown else Refused(too_dear)
    if was_unknown:
        crash_point("replay.begins")
    try:
        go = partial(_go_or_not, context, order, is_held, why_stopped, looked_at_s)
        report = context.provider(order.account).purchase(body, go)
        crash_point("post.read")
        return Answered(report, was_answered=True, is_of_a_post=True)
    except ProviderRefused as error:
        if not error.is_documented:
            return replace(_doubt(context, order, error), was_answered=False)
        answer = _confirm(context, order, attempt, error) if was_unknown else Refused(error)
        return replace(answer, was_answered=None if error.is_ours else True)
    except ProviderOutcomeUnknown as error:
        return Unknown(str(error), error, was_answered=False)
    except (ProviderNotReached, ProviderDeniesAccount) as error:
        kept = Unknown(str(error), error) if was_unknown else NotSent(str(error), error)
        return replace(kept, was_answered=None if isinstance(error, OverBudget) else False)
    except NotLetGo as error:
        # That this request was not sent says nothing about an earlier one.
        return Unknown(str(error)) if was_unknown else NotSent(str(error), error)


def _go_or_not(
    context: Context,
    order: Order,
    is_held: Callable[[], bool],
    why_stopped: Callable[[], str | None],
    looked_at_s: float,
    *,
    is_at_once: bool = False,
) -> None:
    """Raise NotLetGo where the purchase must not leave any more.

    The last look before the byte that cannot be called back. It narrows the race with a taker of
    the claim to nothing but this process's standing still right here, and the rules for unknown
    answers make what is left of it safe. The intent looked at the switch itself, so that what
    leaves at once costs no look of its own; and that look takes time, so it comes first.
    """
    is_at_once = is_at_once and context.clock.monotonic() - looked_at_s <= _AT_ONCE_S
    if not is_at_once and (why := why_stopped()):
        raise NotLetGo(f"{why}, before the request", retry_after=STOPPED_GAP)
    if not is_held():
        raise NotLetGo("the claim was lost before the request")
    if _is_late(context, order):
        raise NotLetGo("its time was over before the request")


def _limit_cents(context: Context, order: Order) -> int:
    return context.account(order.account).price_limit_cents(order.expected_price_cents)


def _is_late(context: Context, order: Order) -> bool:
    return order.submit_by <= context.now()


def _look_up(context: Context, order: Order, attempt: Attempt) -> Answer:
    """Ask for the order, which is adopted where the provider has it."""
    answer = _ask_for(context, order)
    if isinstance(answer, Answered) or answer.empty_at is None or attempt.odd_refusal is None:
        return answer
    assert attempt.last_post_at is not None
    if answer.empty_at - attempt.last_post_at < _doubtful_for(context, order.account):
        return answer
    return Refused(ProviderRefused(FailureCode.REFUSED, attempt.odd_refusal, is_documented=False))


def _doubtful_for(context: Context, account: str) -> timedelta:
    """Say how long after a post began an answer may still be older than what it did."""
    return timedelta(seconds=context.account(account).request_timeout_s) + context.cache_time


def _doubt(context: Context, order: Order, refusal: ProviderRefused) -> Answer:
    """Conclude nothing from a no of no contract: a lookup past the cache time will tell."""
    answer = _ask_for(context, order)
    if isinstance(answer, Answered):
        return answer
    wait = ProviderOutcomeUnknown(
        refusal.message, retry_after=_doubtful_for(context, order.account)
    )
    return Unknown(refusal.message, wait, odd_refusal=refusal.message)


def _ask_for(context: Context, order: Order) -> Answered | Unknown:
    asked_at = context.now()
    try:
        ask = partial(context.provider(order.account).reports, [order.external_id])
        found = backstop.read(ask, order.external_id)
    except ProviderError as error:
        return Unknown(f"lookup: {error}", error)
    crash_point("lookup.answered")
    if order.external_id in found:
        return Answered(found[order.external_id])
    why = "the provider does not know the order"
    return Unknown(why, empty_at=asked_at, empty_told_at=context.now())


def _confirm(context: Context, order: Order, attempt: Attempt, refusal: ProviderRefused) -> Answer:
    """Believe a no after an unknown post only when a lookup past the cache time knows nothing."""
    answer = _ask_for(context, order)
    if isinstance(answer, Answered) or answer.empty_at is None:
        return answer
    if context.provider(order.account).after_unknown is AfterUnknown.LOOKUP_ONLY:
        return answer  # no number of empty lookups proves an absence here
    if attempt.last_post_at is None or context.now() - attempt.last_post_at < context.cache_time:
        # Asked again only when the answer can prove something about this post and all before it.
        reason = "the provider does not know the order yet; a cached answer proves nothing"
        return Unknown(reason, ProviderOutcomeUnknown(reason, retry_after=context.cache_time))
    return Refused(refusal)
