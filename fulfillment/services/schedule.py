"""When to look again: polls, reversal watch and trade-window reminders. Pure but for the jitter."""

from datetime import datetime, timedelta

from fulfillment.services.context import Context
from fulfillment.services.decide import AFTER_PROTECTION, REVERSAL_WATCH
from fulfillment.states import BEFORE_OFFER, FINAL
from fulfillment.store import due
from fulfillment.store.models import Order
from schemas.enums import OrderStatus

#: How long before the deadline the customer is reminded through the store.
REMINDERS = (timedelta(minutes=5), timedelta(minutes=1))
#: An order still `sent` this long after its deadline is alarmed again.
OVERDUE_GRACE = timedelta(minutes=10)
_MOST_BACKOFF = 10  # times the smallest interval: 5 minutes
_QUIET_BACKOFF = 20  # while webhooks flow and tell of what is next, polls are a safety net
#: What of the trade window may pass before it is heard that the offer is out; its spread comes on
#: top: of 10 minutes 2 at most.
_OF_WINDOW = 1 / 6
_SLOWEST_WATCH = timedelta(hours=6)
_GROWTH = 1.5
_MOST_GROWN = 30  # of more failures the power is no use
#: So long after the end of a watch, or after a hint to what is over, an answer is waited for.
_ASKED_FOR = timedelta(days=2)
#: An order's watch is over, answered or not, so long after its end and that of its protection,
#: unless somebody says that there is news, or it lives on at its provider.
LONGEST_WATCH = REVERSAL_WATCH + AFTER_PROTECTION + _ASKED_FOR
#: So long after its end an order that may have been bought is asked about once more.
_LAST_LOOK = timedelta(minutes=5)


def _jittered(context: Context, seconds: float, spread: float = due.SPREAD) -> timedelta:
    """Lengthen by up to `spread`: never shorter, since the smallest interval is a promise."""
    return timedelta(seconds=seconds * (1 + spread * context.jitter()))


def first_poll(context: Context, now: datetime) -> datetime:
    """Give the first poll after the accept; sooner it could only bring the provider's cache.

    It is spread over half an interval, so that a burst of accepts is no burst of polls later.
    """
    return now + _jittered(context, context.settings.poll_min_interval_s, 0.5)


def gap_before_news(context: Context) -> timedelta:
    """Give how long after an answer the next one is surely none out of the provider's cache."""
    return max(timedelta(seconds=context.settings.poll_min_interval_s), context.cache_time)


def soon_for_news(context: Context, at: datetime | None, now: datetime) -> datetime:
    """Give `at`, but no later than that an answer is surely younger than one at `now`."""
    soon = now + gap_before_news(context)
    return min(at or soon, soon)


def last_look(now: datetime) -> dict[str, datetime]:
    """Give the due times of an order that ended although it may have been bought."""
    return {"next_poll_at": now + _LAST_LOOK, "poll_wanted_at": now}


def least_claim(context: Context) -> timedelta:
    """Give how long a claim for a poll holds at the least."""
    # A lost message costs one interval: the claim is the due time moved on.
    return timedelta(seconds=max(context.settings.poll_min_interval_s, 5.0))


def poll_gap(context: Context, account: str) -> due.Gap:
    """Give how long a claim for a poll holds: about as long as `next_poll` will say."""
    before_offer = _most_before_offer(context, account)
    return due.Gap(least_claim(context), _GROWTH, _MOST_BACKOFF, before_offer, context.jitter())


def _most_before_offer(context: Context, account: str) -> float:
    """Give the longest gap before an offer is out, as a multiple of the smallest interval."""
    window_s = context.account(account).trade_window_s
    most = window_s * _OF_WINDOW / context.settings.poll_min_interval_s
    return min(max(most, 1.0), _MOST_BACKOFF)


def next_poll(
    context: Context, order: Order, now: datetime, *, webhooks_flow: bool
) -> due.NextPoll:
    """Give the next poll of an order that the provider has and that is not final.

    The poll at `now` is among those that the order counts. `webhooks_flow` says that they do, and
    that what comes next of this order is told by one.
    """
    smallest = context.settings.poll_min_interval_s
    most: float = _QUIET_BACKOFF if webhooks_flow else _MOST_BACKOFF
    if order.status in BEFORE_OFFER and not webhooks_flow:
        most = _most_before_offer(context, order.account)
    exponent = min(max(order.polls - 1, 0), most)  # of many polls the power is no number
    factor = min(_GROWTH**exponent, most)
    if order.overdue:
        factor = 1.0
    at = now + _jittered(context, smallest * factor)
    deadline = order.trade_deadline_at
    if order.status is OrderStatus.SENT and deadline is not None and now < deadline < at:
        return due.NextPoll(max(deadline, now + gap_before_news(context)))
    return due.NextPoll(at, now + timedelta(seconds=smallest * factor))


def poll_after_failure(context: Context, order: Order, now: datetime) -> datetime | None:
    """Give the next poll of an order of which one failed; None where it is given up.

    The first comes as soon as one may, however many were answered before; each further one later,
    of what is over at most every six hours.
    """
    if is_given_up(order, now):
        return None
    smallest = context.settings.poll_min_interval_s
    slowest = smallest * _MOST_BACKOFF
    if order.status in FINAL and not order.lives_on:
        slowest = max(_SLOWEST_WATCH.total_seconds(), slowest)
    grown = 0 if order.overdue else min(order.failed_polls, _MOST_GROWN)
    gap = smallest * _GROWTH**grown
    return now + _jittered(context, min(gap, slowest))


def is_given_up(order: Order, now: datetime) -> bool:
    """Say whether an answer was awaited for so long that none is any more."""
    over_at = _over_at(order)
    return over_at is not None and now >= over_at + _ASKED_FOR


def _over_at(order: Order) -> datetime | None:
    """Say since when only an answer is awaited that was asked for before; None: not yet."""
    if order.status not in FINAL or order.lives_on:
        return None
    over_at = order.poll_wanted_at or order.updated_at
    if order.status is OrderStatus.COMPLETED:
        completed_at = order.completed_at or order.created_at
        watched_until = max(order.reversible_until or completed_at, completed_at) + AFTER_PROTECTION
        over_at = max(over_at, watched_until)
        if order.charged_mills is None:
            over_at = max(over_at, completed_at + REVERSAL_WATCH)
    return over_at


def longest_poll_gap(context: Context) -> timedelta:
    """Give the longest that `next_poll` may wait."""
    smallest = timedelta(seconds=context.settings.poll_min_interval_s)
    return smallest * _QUIET_BACKOFF * (1 + due.SPREAD)


def longest_watch_gap(context: Context) -> timedelta:
    """Give the longest that any poll may wait, those of delivered orders included."""
    smallest = timedelta(seconds=context.settings.poll_min_interval_s)
    slowest = max(_SLOWEST_WATCH, 4 * smallest) * (1 + due.SPREAD)
    return max(slowest, longest_poll_gap(context))


def next_reversal_poll(
    context: Context, completed_at: datetime, now: datetime, until: datetime
) -> datetime | None:
    """Give the next look at a delivered order; None once Trade Protection is surely over.

    The gaps grow with the time since the delivery, up to six hours.
    """
    last = max(until, completed_at) + AFTER_PROTECTION
    if now >= last:
        return None
    smallest = 4 * context.settings.poll_min_interval_s
    since = (now - completed_at).total_seconds()
    seconds = min(max(smallest, since / 2), max(_SLOWEST_WATCH.total_seconds(), smallest))
    return min(now + _jittered(context, seconds), last)


def next_watch(now: datetime, sent_at: datetime, deadline: datetime) -> datetime | None:
    """Give the watchdog's next look: a reminder, the deadline, the grace time's end, or none."""
    looks = [deadline - before for before in REMINDERS if deadline - before > sent_at]
    return next(
        (at for at in sorted([*looks, deadline, deadline + OVERDUE_GRACE]) if at > now), None
    )
