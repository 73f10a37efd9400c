"""The trade window: the customer is reminded, the provider is asked, and nothing is invented."""

from datetime import timedelta

import pytest

from fulfillment.services import operations, watchdog
from fulfillment.services.context import Context
from fulfillment.store import leases
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW, TRADE_REMINDER
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    in_threads,
    messages_of,
    receive_one,
    run_chain,
    run_polls,
    run_ticks,
    view,
)

WINDOW_S = 600


def tick(context: Context, clock: FakeClock, times: int, every_s: float) -> None:
    for _ in range(times):
        clock.advance(every_s)
        run_ticks(context)


@pytest.fixture
def sent(context: Context, provider: FakeProvider, clock: FakeClock) -> Order:
    """Give an order whose Steam offer has just gone out."""
    return send_offer(context, provider, clock)


def send_offer(context: Context, provider: FakeProvider, clock: FakeClock) -> Order:
    order = receive_one(context)
    run_chain(context)
    clock.advance(31)
    provider.says(order.external_id, R.SENT, reported_at=clock.now())
    run_polls(context)
    order = again(context, order)
    assert order.status is S.SENT
    return order


def watch(context: Context, clock: FakeClock, seconds: float) -> None:
    """Let time pass with a tick of the watchdog every five seconds."""
    for _ in range(round(seconds / 5)):
        clock.advance(5)
        watchdog.watch_trade_windows(context)


def told(context: Context, order: Order, kind: str) -> list[dict[str, object]]:
    return [message for message in messages_of(context, order) if message["type"] == kind]


def test_a_sent_offer_has_a_deadline_of_ten_minutes(sent: Order, clock: FakeClock) -> None:
    assert sent.trade_deadline_at == clock.now() + timedelta(seconds=WINDOW_S)


def test_the_window_is_a_setting_of_the_account(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"trade_window_s": 90})

    order = send_offer(context, provider, clock)

    assert order.trade_deadline_at == clock.now() + timedelta(seconds=90)


def test_the_store_is_told_at_five_and_at_one_minute_left(
    context: Context, sent: Order, clock: FakeClock
) -> None:
    reminders = []

    for _ in range(WINDOW_S // 5 - 1):
        watch(context, clock, 5)
        reminders.append(len(told(context, sent, TRADE_REMINDER)))

    assert reminders.index(1) == 300 // 5 - 1
    assert reminders.index(2) == 540 // 5 - 1
    assert reminders[-1] == 2


def test_two_watchdogs_remind_once(context: Context, sent: Order, clock: FakeClock) -> None:
    clock.advance(300)

    in_threads(6, lambda _: watchdog.watch_trade_windows(context))

    assert len(told(context, sent, TRADE_REMINDER)) == 1


def test_a_reminder_carries_the_order_and_its_deadline(
    context: Context, sent: Order, clock: FakeClock
) -> None:
    watch(context, clock, 300)

    (reminder,) = told(context, sent, TRADE_REMINDER)

    assert reminder["order"]["status"] == "sent"  # type: ignore[index]
    assert reminder["order"]["tradeDeadline"] is not None  # type: ignore[index]


def test_at_the_deadline_the_provider_is_asked_once_more_and_its_word_wins(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    provider.says(sent.external_id, R.COMPLETED, charged_mills=6120)

    clock.advance(WINDOW_S)
    watchdog.watch_trade_windows(context)
    run_polls(context)

    after = again(context, sent)
    assert (after.status, after.overdue) == (S.COMPLETED, False)


def test_the_provider_may_say_that_it_expired(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    provider.says(sent.external_id, R.EXPIRED)

    clock.advance(WINDOW_S)
    run_ticks(context)
    run_polls(context)

    assert again(context, sent).status is S.EXPIRED


def test_an_offer_still_sent_is_flagged_polled_every_half_minute_and_never_expired(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    clock.advance(WINDOW_S)
    run_ticks(context)
    run_polls(context)
    flagged = again(context, sent)
    before = len(provider.reads)

    tick(context, clock, times=60, every_s=10)

    assert flagged.overdue
    assert view(context, sent).overdue
    assert again(context, sent).status is S.SENT
    assert 18 <= len(provider.reads) - before <= 24


def test_an_overdue_offer_is_alarmed_after_the_grace_time_once(
    context: Context, sent: Order, clock: FakeClock
) -> None:
    watch(context, clock, WINDOW_S + 600)
    alarms = len(told(context, sent, NEEDS_REVIEW))

    watch(context, clock, 3600)

    assert alarms == 1
    assert len(told(context, sent, NEEDS_REVIEW)) == 1


def test_an_offer_is_overdue_for_the_grace_time_before_a_person_is_called(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    alarms = []

    for _ in range((WINDOW_S + 1800) // 20):
        clock.advance(20)
        run_ticks(context)
        alarms.append(len(told(context, sent, NEEDS_REVIEW)))

    assert again(context, sent).overdue
    assert alarms.index(1) == (WINDOW_S + 600) // 20 - 1
    assert alarms[-1] == 1
    assert_invariants(context)


def test_an_offer_heard_of_long_after_its_window_is_alarmed(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    sent_at = clock.now()
    clock.advance(WINDOW_S + 700)
    provider.says(order.external_id, R.SENT, reported_at=sent_at)

    run_ticks(context)

    assert again(context, order).overdue
    assert len(told(context, order, NEEDS_REVIEW)) == 1


def test_without_any_answer_the_watchdog_never_invents_an_end(
    context: Context, sent: Order, clock: FakeClock
) -> None:
    watch(context, clock, 3 * 3600)

    assert again(context, sent).status is S.SENT


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_left_sent_for_a_day_is_brought_to_a_person_who_may_end_it(
    context: Context, provider: FakeProvider, clock: FakeClock, sent: Order, is_known: bool
) -> None:
    if not is_known:
        del provider.orders[sent.external_id]
    tick(context, clock, times=200, every_s=600)
    left = again(context, sent)
    alarms = len(told(context, sent, NEEDS_REVIEW))
    provider.orders.pop(sent.external_id, None)
    ended = operations.resolve(
        context, sent.external_id, operations.Resolution.NOT_FOUND, "support has lost it"
    )

    assert (left.status, left.told_status) == (S.NEEDS_REVIEW, S.SENT)
    assert alarms == 2
    assert ended.status is S.FAILED
    assert_invariants(context)


def test_what_is_left_sent_and_a_persons_by_then_is_asked_about_every_few_minutes(
    context: Context, provider: FakeProvider, clock: FakeClock, sent: Order
) -> None:
    """For good: no answer is awaited any more that would be worth one each half minute."""
    tick(context, clock, times=150, every_s=600)
    assert again(context, sent).status is S.NEEDS_REVIEW
    provider.reads.clear()
    tick(context, clock, times=120, every_s=30)

    assert 9 <= provider.reads.count(f"order {sent.external_id}") <= 13


def test_what_a_person_finds_sent_again_is_watched_for_another_day(
    context: Context, provider: FakeProvider, clock: FakeClock, sent: Order
) -> None:
    tick(context, clock, times=150, every_s=600)
    assert again(context, sent).status is S.NEEDS_REVIEW
    operations.resolve(context, sent.external_id, operations.Resolution.FOUND, "they look into it")
    tick(context, clock, times=60, every_s=600)
    still = again(context, sent)
    tick(context, clock, times=100, every_s=600)

    assert (still.status, still.overdue) == (S.SENT, True)
    assert again(context, sent).status is S.NEEDS_REVIEW


def test_an_offer_heard_of_a_day_after_its_window_by_who_waits_for_one_is_alarmed(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    sent_at = clock.now()
    tick(context, clock, times=150, every_s=600)
    stalled = again(context, order)
    before = len(told(context, order, NEEDS_REVIEW))
    provider.says(order.external_id, R.SENT, reported_at=sent_at)
    tick(context, clock, times=60, every_s=30)

    assert (stalled.status, stalled.told_status) == (S.NEEDS_REVIEW, S.ACCEPTED)
    assert again(context, order).status is S.SENT
    assert len(told(context, order, NEEDS_REVIEW)) == before + 1
    assert_invariants(context)


def test_a_watchdog_that_was_dead_through_the_window_still_asks_and_alarms(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    before = len(provider.reads)
    clock.advance(WINDOW_S + 3600)

    run_ticks(context)
    run_polls(context)

    after = again(context, sent)
    assert len(provider.reads) > before
    assert (after.status, after.overdue) == (S.SENT, True)


def test_a_delivered_order_is_watched_no_more(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock
) -> None:
    provider.says(sent.external_id, R.COMPLETED, charged_mills=6120)
    clock.advance(60)
    run_polls(context)

    watch(context, clock, WINDOW_S)

    assert again(context, sent).status is S.COMPLETED
    assert again(context, sent).next_watch_at is None
    assert told(context, sent, TRADE_REMINDER) == []


@pytest.mark.parametrize("seconds", [-2, -1, 0, 1, 2])
def test_an_acceptance_around_the_last_second_is_told_once(
    context: Context, provider: FakeProvider, sent: Order, clock: FakeClock, seconds: int
) -> None:
    clock.advance(WINDOW_S + seconds)
    provider.says(sent.external_id, R.COMPLETED, charged_mills=6120, reported_at=clock.now())

    for _ in range(10):
        run_ticks(context)
        clock.advance(4)

    ends = [m for m in messages_of(context, sent) if m["order"]["status"] == "completed"]
    assert len(ends) == 1
    assert told(context, sent, NEEDS_REVIEW) == []


def test_every_tick_leaves_a_heartbeat(context: Context, clock: FakeClock) -> None:
    run_ticks(context)
    clock.advance(60)
    run_ticks(context)

    with context.database.transaction() as session:
        beats = leases.heartbeats(session, clock.now())
    assert len(beats) >= 3
    assert set(beats.values()) == {clock.now()}
