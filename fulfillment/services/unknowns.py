"""What may be done about a purchase of unknown outcome: the three policies, as pure functions.

A policy says how far a provider's idempotency is documented (DESIGN section 3). Whatever it says,
only the provider's own word or a person ends an unknown outcome, never a clock alone.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from fulfillment.providers.base import AfterUnknown
from fulfillment.store.models import Attempt, Order

#: How far apart two empty lookups must lie before the same id is posted again: a minute, and what
#: the clocks of two machines may differ by (docs/decisions/0020).
LOOKUPS_APART = timedelta(seconds=65)
#: How long a purchase that must not be repeated is looked for before a person is asked.
LOOK_FOR = timedelta(minutes=10)
#: How long after its last time of submission any other unknown outcome is left to machines.
REVIEW_AFTER = timedelta(hours=1)
#: So long an outcome may be unknown where the order may be submitted for longer.
LONGEST = timedelta(days=1)
_FIRST_RETRY_S = 1.0
_SLOWEST_RETRY_S = 30.0
#: Of an outcome that has been unknown for hours, where its lookups fail.
_SLOWEST_FAILED_S = 300.0


class Step(StrEnum):
    """The next request about one attempt."""

    POST = "post"
    LOOK_UP = "look_up"


def next_step(policy: AfterUnknown, attempt: Attempt) -> Step:
    """Say whether the attempt may be posted (again), or is to be looked for."""
    if attempt.unknown_since is None:
        return Step.POST
    if attempt.odd_refusal is not None:
        return Step.LOOK_UP  # a later lookup tells what that no was worth, as long as none posts
    match policy:
        case AfterUnknown.REPLAY:
            return Step.POST
        case AfterUnknown.LOOKUP_THEN_REPLAY:
            return Step.POST if is_surely_absent(attempt) else Step.LOOK_UP
        case AfterUnknown.LOOKUP_ONLY:
            return Step.LOOK_UP


def is_surely_absent(attempt: Attempt) -> bool:
    """Say whether lookups since the last post, far enough apart, all knew nothing."""
    if attempt.empty_since is None or attempt.empty_at is None:
        return False
    return attempt.empty_lookups >= 2 and attempt.empty_at - attempt.empty_since >= LOOKUPS_APART


def is_for_a_person(
    policy: AfterUnknown,
    order: Order,
    attempt: Attempt,
    now: datetime,
    longest_call: timedelta,
    *,
    is_empty: bool,
) -> bool:
    """Say whether automatic steps end here: the order goes to review, its hold stays.

    `longest_call` is how long after the intent the last byte may have left and been answered;
    `is_empty` says that the provider was asked just now and knew nothing.
    """
    if attempt.unknown_since is None:
        return False
    if policy is AfterUnknown.LOOKUP_ONLY and is_empty:
        assert attempt.last_post_at is not None
        return now - (attempt.last_post_at + longest_call) >= LOOK_FOR
    since = attempt.unknown_since
    return now - min(max(since, order.submit_by), since + LONGEST) >= REVIEW_AFTER


def retry_gap(
    policy: AfterUnknown, attempt: Attempt, now: datetime, jitter: float, *, may_post: bool = True
) -> timedelta:
    """Give the pause before the next request: about 1 s, doubling to 30 s, with jitter.

    A replay that two lookups allow follows at once, unless nothing may be posted; the second
    lookup comes no later than the time at which it allows one.
    """
    if may_post and policy is AfterUnknown.LOOKUP_THEN_REPLAY and is_surely_absent(attempt):
        doublings = 0
    else:
        doublings = max(attempt.posts - 1, 0) + attempt.empty_lookups
    seconds = min(_FIRST_RETRY_S * 2.0 ** min(doublings, 10), _SLOWEST_RETRY_S)
    gap = timedelta(seconds=seconds * (0.8 + 0.4 * jitter))
    if policy is AfterUnknown.LOOKUP_THEN_REPLAY and attempt.empty_since is not None:
        allowed_at = attempt.empty_since + LOOKUPS_APART
        if now < allowed_at < now + gap:
            return allowed_at - now
    return gap


def gap_after_failed_lookup(attempt: Attempt, now: datetime, jitter: float) -> timedelta:
    """Give the pause after a lookup that failed, which the attempt does not count.

    It is half of the time for which the outcome is unknown, up to 30 s, and after ten minutes a
    twentieth of it, up to 5 minutes: nothing grows without end by one order's lookups.
    """
    unknown_s = (now - (attempt.unknown_since or now)).total_seconds()
    slowest_s = min(max(unknown_s / 20, _SLOWEST_RETRY_S), _SLOWEST_FAILED_S)
    seconds = min(max(unknown_s / 2, _FIRST_RETRY_S), slowest_s)
    return timedelta(seconds=seconds * (0.8 + 0.4 * jitter))
