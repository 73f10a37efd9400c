"""When we look again: never too early for the provider's cache, never late for a deadline."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulfillment.services import schedule
from fulfillment.services.context import Context
from fulfillment.settings import AccountSettings, Settings
from fulfillment.states import BEFORE_OFFER
from fulfillment.store.engine import Database
from fulfillment.store.models import Order
from fulfillment.store.sealing import Seal, generate_key
from schemas.enums import OrderStatus as S
from tests.support import FakeClock, some_order

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
JITTER = st.floats(0, 1)


CONTEXT = Context(
    settings=Settings.model_construct(
        poll_min_interval_s=30.0, accounts={"main": AccountSettings()}
    ),
    database=Database("postgresql://nobody@127.0.0.1:9/none"),
    seal=Seal(f"k:{generate_key()}"),
    clock=FakeClock(NOW),
)


def context_with(jitter: float) -> Context:
    """Make a context that no database is behind: the schedule reads settings and jitter only."""
    return replace(CONTEXT, jitter=lambda: jitter)


def next_poll(context: Context, order: Order, *, webhooks_flow: bool) -> datetime:
    at = schedule.next_poll(context, order, NOW, webhooks_flow=webhooks_flow).at
    assert at is not None
    return at


@given(JITTER, st.integers(0, 500), st.booleans(), st.booleans())
def test_no_order_is_asked_about_more_often_than_the_provider_caches(
    jitter: float, polls: int, is_overdue: bool, webhooks_flow: bool
) -> None:
    order = some_order(status=S.SENT, polls=polls, overdue=is_overdue, trade_deadline_at=NOW)

    at = next_poll(context_with(jitter), order, webhooks_flow=webhooks_flow)

    assert at - NOW >= timedelta(seconds=30)


@given(JITTER, st.integers(0, 500))
def test_polls_back_off_to_minutes_and_never_to_hours(jitter: float, polls: int) -> None:
    order = some_order(status=S.SENT, polls=polls)

    gap = next_poll(context_with(jitter), order, webhooks_flow=False) - NOW

    assert gap <= timedelta(minutes=6)


@pytest.mark.parametrize("status", sorted(BEFORE_OFFER))
@given(JITTER, st.integers(0, 10**9))
def test_an_offer_of_which_no_webhook_tells_is_heard_of_within_two_minutes(
    status: S, jitter: float, polls: int
) -> None:
    order = some_order(status=status, polls=polls)

    gap = next_poll(context_with(jitter), order, webhooks_flow=False) - NOW

    assert gap <= timedelta(minutes=2)


@pytest.mark.parametrize(
    ("window_s", "longest_s"), [(1, 30), (300, 50), (600, 100), (3600, 300), (86_400, 300)]
)
def test_how_soon_an_offer_is_heard_of_depends_on_how_long_it_stands(
    window_s: int, longest_s: int
) -> None:
    account = AccountSettings(trade_window_s=window_s)
    settings = Settings.model_construct(poll_min_interval_s=30.0, accounts={"main": account})
    context = replace(context_with(0), settings=settings)

    at = next_poll(context, some_order(status=S.PENDING, polls=50), webhooks_flow=False)

    assert at == NOW + timedelta(seconds=longest_s)


@given(JITTER)
def test_polls_are_rarer_while_webhooks_flow(jitter: float) -> None:
    order = some_order(status=S.PENDING, polls=20)
    context = context_with(jitter)

    quiet = next_poll(context, order, webhooks_flow=True)
    alone = next_poll(context, order, webhooks_flow=False)

    assert quiet > alone


@given(JITTER, st.integers(0, 500), st.booleans())
def test_an_overdue_offer_is_asked_about_every_half_minute(
    jitter: float, polls: int, webhooks_flow: bool
) -> None:
    order = some_order(status=S.SENT, polls=polls, overdue=True, trade_deadline_at=NOW)

    at = next_poll(context_with(jitter), order, webhooks_flow=webhooks_flow)

    assert timedelta(seconds=30) <= at - NOW <= timedelta(seconds=36)


@given(JITTER, st.floats(1, 600), st.integers(0, 50))
def test_no_poll_sleeps_through_the_deadline(jitter: float, left_s: float, polls: int) -> None:
    deadline = NOW + timedelta(seconds=left_s)
    order = some_order(status=S.SENT, polls=polls, trade_deadline_at=deadline)

    at = next_poll(context_with(jitter), order, webhooks_flow=True)

    assert at <= max(deadline, NOW + timedelta(seconds=36))


@given(JITTER)
def test_the_first_poll_waits_until_the_cache_can_tell_something(jitter: float) -> None:
    gap = schedule.first_poll(context_with(jitter), NOW) - NOW

    assert timedelta(seconds=30) <= gap <= timedelta(seconds=45)


def test_jitter_spreads_the_polls_of_orders_that_came_together() -> None:
    order = some_order(status=S.PENDING)

    times = {
        schedule.next_poll(context_with(jitter / 10), order, NOW, webhooks_flow=False)
        for jitter in range(10)
    }

    assert len(times) == 10


@given(JITTER, st.floats(0, 8 * 86_400))
def test_the_reversal_watch_looks_again_within_six_hours_until_the_end(
    jitter: float, since_s: float
) -> None:
    until = NOW + timedelta(days=8)
    now = NOW + timedelta(seconds=since_s)

    at = schedule.next_reversal_poll(context_with(jitter), NOW, now, until)

    assert at is not None
    assert timedelta(0) < at - now <= timedelta(hours=7.2)
    assert at <= until + timedelta(hours=1)


def test_the_reversal_watch_looks_after_the_protection_for_half_an_hour_and_then_ends() -> None:
    until = NOW + timedelta(days=8)
    looks = []
    at: datetime | None = NOW
    while at is not None:
        looks.append(at)
        at = schedule.next_reversal_poll(context_with(0.5), NOW, at, until)

    assert until < looks[-1] <= until + timedelta(minutes=30)
    assert len(looks) < 60


def test_a_delivery_whose_protection_seems_to_be_over_is_looked_at_all_the_same() -> None:
    """Our clock, or the provider's, may be wrong."""
    until = NOW - timedelta(hours=3)
    looks = []
    at: datetime | None = NOW
    while at is not None:
        looks.append(at)
        at = schedule.next_reversal_poll(context_with(0.5), NOW, at, until)

    assert 2 <= len(looks) < 10


@given(st.integers(0, 10**9), st.booleans())
def test_after_however_many_polls_the_next_one_comes(polls: int, webhooks_flow: bool) -> None:
    order = some_order(status=S.ACCEPTED, polls=polls)

    at = next_poll(context_with(0.5), order, webhooks_flow=webhooks_flow)

    assert NOW < at <= NOW + schedule.longest_poll_gap(context_with(0.5))


def looks_from(sent_at: datetime, deadline: datetime) -> list[timedelta]:
    """Follow the watchdog through one trade window; give how long is left at each look."""
    looks = []
    at = schedule.next_watch(sent_at, sent_at, deadline)
    while at is not None:
        looks.append(deadline - at)
        at = schedule.next_watch(at, sent_at, deadline)
    return looks


def test_the_watchdog_looks_at_five_and_one_minute_left_at_the_end_and_after_the_grace_time() -> (
    None
):
    looks = looks_from(NOW, NOW + timedelta(seconds=600))

    assert looks == [
        timedelta(minutes=5),
        timedelta(minutes=1),
        timedelta(0),
        -schedule.OVERDUE_GRACE,
    ]


@pytest.mark.parametrize(("window_s", "reminders"), [(301, 2), (300, 1), (90, 1), (60, 0), (1, 0)])
def test_a_short_window_has_only_the_reminders_that_fit(window_s: int, reminders: int) -> None:
    looks = looks_from(NOW, NOW + timedelta(seconds=window_s))

    assert len([left for left in looks if left > timedelta(0)]) == reminders


def test_a_watchdog_that_was_dead_goes_on_with_what_is_left() -> None:
    deadline = NOW + timedelta(seconds=600)

    at = schedule.next_watch(NOW + timedelta(seconds=400), NOW, deadline)

    assert at == deadline - timedelta(minutes=1)


def test_the_smallest_interval_is_a_setting() -> None:
    context = replace(context_with(0), settings=Settings.model_construct(poll_min_interval_s=2.0))

    assert schedule.first_poll(context, NOW) == NOW + timedelta(seconds=2)


@pytest.mark.parametrize("status", [S.ACCEPTED, S.SENT])
@given(JITTER, st.integers(0, 500))
def test_the_claim_of_a_poll_ends_when_the_next_one_may_come(
    status: S, jitter: float, polls: int
) -> None:
    """So that an answer without news moves no time."""
    context = context_with(jitter)
    gap = schedule.poll_gap(context, "main")
    most = gap.most if status is S.SENT else gap.most_before_offer

    found = schedule.next_poll(
        context, some_order(status=status, polls=polls + 1), NOW, webhooks_flow=False
    )

    assert found.earliest is not None
    assert gap.least * min(gap.growth ** min(polls, 20), most) == found.earliest - NOW
    assert 0 <= gap.jitter <= 1
