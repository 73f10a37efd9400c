"""A process whose clock is far ahead for a moment, and which is dead then, holds nobody up."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from fulfillment.clock import SystemClock
from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, WrongClock
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import (
    clock_guard,
    dispatch,
    funds,
    intake,
    invariants,
    operations,
    outages,
    reconciliation,
    standin,
    sweep,
    watchdog,
    webhooks,
)
from fulfillment.services.context import Context, build_context
from fulfillment.services.webhooks import Verdict
from fulfillment.store import doubts, inbox, leases, orders, purchases
from fulfillment.store.engine import Database
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import TRADE_REMINDER
from schemas.provider import ReportState, WebhookNotice
from tasks import base
from tasks.sweep import resume_stuck
from tasks.watchdog import watch_trade_windows
from tests.conftest import MakeSettings
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    gather,
    messages_of,
    receive_one,
    report,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    submit,
    until,
)


def test_what_it_took_and_put_off_comes_to_others(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    month = clock.now() + timedelta(days=30)
    ahead = replace(context, clock=FakeClock(month), next_beats={})
    submit_by = (month + timedelta(days=30)).isoformat()
    followed = receive_one(context)
    run_chain(context)
    with ahead.database.transaction() as session:
        orders.set_due(session, [followed.id], next_poll_at=month)
        leases.acquire(session, "outbox.relay", "dead", month, month + timedelta(seconds=30))
    stuck = receive_one(context, submitBy=submit_by)
    assert dispatch.dispatch(ahead, "main") is not None
    sweep.resume_stuck(ahead)
    later = receive_one(context, submitBy=submit_by)

    run_chain(context)
    is_sold = again(context, later).status is S.ACCEPTED
    is_helped = standin.is_wanted(context)
    with context.database.transaction() as session:
        now = clock.now()
        is_leased = leases.acquire(session, "outbox.relay", "new", now, now + timedelta(seconds=30))
    invariants.check(context)
    clock.advance(601)
    provider.says(followed.external_id, ReportState.COMPLETED, charged_mills=6120)
    run_ticks(context)

    assert (is_sold, is_helped, is_leased) == (True, True, True)
    assert again(context, stuck).status is S.ACCEPTED
    assert again(context, followed).status is S.COMPLETED
    assert len(provider.bodies) == 3


def test_who_is_behind_takes_nothing_from_those_who_are_right(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order, now = receive_one(context), clock.now()
    behind = replace(context, clock=FakeClock(now - timedelta(minutes=5)), next_beats={})
    until = timedelta(seconds=30)
    batch = gather(context)
    assert batch is not None
    with context.database.transaction() as session:
        leases.acquire(session, "outbox.relay", "right", now, now + until)
        leases.beat(session, "tick", now)
    with behind.database.transaction() as session:
        then = behind.now()
        is_taken = leases.acquire(session, "outbox.relay", "behind", then, then + until)
        leases.beat(session, "tick", then)
        beats = leases.heartbeats(session, then)
    before = again(context, order).claimed_until
    invariants.check(behind)

    assert (is_taken, beats["tick"]) == (False, now)
    assert again(context, order).claimed_until == before
    submit(context, batch)
    assert again(context, order).status is S.ACCEPTED


def test_what_it_wrote_of_an_account_is_not_waited_for(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    month = clock.now() + timedelta(days=30)
    ahead = replace(context, clock=FakeClock(month), next_beats={})
    funds.refresh_wallet(ahead, "main")
    away = ProviderNotReached("connection refused")
    outages.pause(ahead, "main", away)
    with ahead.database.transaction() as session:
        purchases.pause(session, "main", month + timedelta(seconds=30), "away")
        doubts.doubt(session, month, month + timedelta(hours=1))
    provider.balance_mills = 50_000
    order = receive_one(context)

    invariants.check(context)
    for _ in range(12):
        clock.advance(31)
        run_ticks(context)
    funds.refresh_wallet(context, "main")

    assert again(context, order).status is S.ACCEPTED
    assert rows(context, "SELECT figure_mills FROM wallets") == [{"figure_mills": 50_000}]


def test_a_post_of_unknown_outcome_that_it_made_comes_to_a_person_in_time(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    month = clock.now() + timedelta(days=30)
    order = receive_one(context, submitBy=(month + timedelta(days=1)).isoformat())
    ahead = replace(context, clock=FakeClock(month), next_beats={})
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(ahead)

    invariants.check(context)
    for _ in range(30):
        clock.advance(60)
        run_sweep(context)

    assert again(context, order).status is S.NEEDS_REVIEW
    assert len(provider.bodies) == 1


class OwnClock(SystemClock):
    """The machine's clock, set wrong by a test."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


def shows_a_right_clock(context: Context) -> bool:
    (found,) = [each for each in operations.check_readiness(context) if each.name == "clock"]
    return found.is_ok


@pytest.mark.parametrize("minutes", [61, -2])
def test_nothing_is_done_by_a_clock_that_is_wrong_from_the_moment_it_is(
    context: Context, minutes: int
) -> None:
    clock = OwnClock()
    own = replace(context, clock=clock)
    clock_guard.check(own)
    clock.ahead = timedelta(minutes=minutes)

    with pytest.raises(WrongClock, match="ahead of" if minutes > 0 else "behind"):
        clock_guard.check(own)
    was_ready = shows_a_right_clock(own)
    clock.ahead = timedelta(seconds=1)
    clock_guard.check(own)

    assert (was_ready, shows_a_right_clock(own)) == (False, True)


def test_the_database_is_not_asked_for_the_time_by_each_task(context: Context) -> None:
    own = replace(context, clock=OwnClock())
    clock_guard.check(own)
    nowhere = replace(own, database=Database("postgresql://127.0.0.1:1/nowhere"))

    clock_guard.check(nowhere)
    nowhere.database.close()


def test_a_task_of_a_process_with_a_wrong_clock_does_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = OwnClock()
    clock.ahead = timedelta(hours=2)
    order = receive_one(context)
    monkeypatch.setattr(base, "_context", replace(context, clock=clock))

    with pytest.raises(WrongClock):
        intake.receive_raw(replace(context, clock=clock), [checkout()])
    assert watch_trade_windows() == {"failed": "WrongClock"}
    assert resume_stuck() == {"failed": "WrongClock"}
    assert again(context, order).status is S.RECEIVED


def test_a_worker_that_starts_by_a_wrong_clock_keeps_no_connection_of_any_task(
    context: Context, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = OwnClock()
    built: list[Context] = []

    def build(*args: Any, **more: Any) -> Context:
        built.append(replace(build_context(*args, **more), clock=clock))
        return built[-1]  # and it is kept here: what closes it is not the garbage collector

    def connections() -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return int(rows(context, f"{query} AND backend_type = 'client backend'")[0]["count"])

    monkeypatch.setattr(base, "load_settings", make_settings)
    monkeypatch.setattr(base, "build_context", build)
    monkeypatch.setattr(base, "_context", None)
    before = connections()

    clock.ahead = timedelta(seconds=5)
    for _ in range(5):
        with pytest.raises(WrongClock):
            base.context()
    until(lambda: connections() <= before, within_s=5)
    clock.ahead = timedelta()
    started = base.context()
    started.close()

    assert len(built) == 6
    assert started is built[-1]


def notice(order: Order, now: datetime) -> WebhookNotice:
    """Write what a provider signs now of an order that it has delivered."""
    told = report(ReportState.COMPLETED, order.external_id, charged_mills=6120)
    return WebhookNotice(order.external_id, now, told)


@pytest.mark.parametrize("minutes", [30 * 24 * 60, -2])
def test_a_webhook_is_not_stored_by_a_clock_that_is_wrong_and_is_by_the_next_that_is_right(
    context: Context, provider: FakeProvider, minutes: int
) -> None:
    """The provider sends it again; with a due time of next month it would not be heard."""
    clock = OwnClock()
    clock.ahead = timedelta(minutes=minutes)
    order = receive_one(context)
    run_chain(context)
    provider.notice = notice(order, context.now())

    with pytest.raises(WrongClock):
        webhooks.take(replace(context, clock=clock), "main", {}, b"{}")
    stored = rows(context, "SELECT 1 FROM webhook_deliveries")
    taken = webhooks.take(replace(context, clock=OwnClock()), "main", {}, b"{}")

    assert stored == []
    assert taken.verdict is Verdict.STORED


def test_a_webhook_that_it_stored_is_applied_by_the_others(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    ahead = replace(context, clock=FakeClock(clock.now() + timedelta(days=30)), next_beats={})
    placed = [receive_one(context) for _ in range(2)]
    run_chain(context)
    for order in placed:
        provider.notice = notice(order, ahead.now())
        webhooks.take(ahead, "main", {}, order.external_id.encode())
    with ahead.database.transaction() as session:  # taken up, and then it died
        inbox.claim(session, ahead.now(), ahead.now() + ahead.lease, 1)
    before = webhooks.apply_deliveries(context)

    invariants.check(context)
    applied = webhooks.apply_deliveries(context)

    assert before == []
    assert sorted(applied) == sorted(order.external_id for order in placed)
    assert {again(context, order).status for order in placed} == {S.COMPLETED}


def test_a_trade_window_that_it_put_off_is_watched_in_time(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    sent_at = clock.now() - timedelta(seconds=301)
    provider.says(order.external_id, ReportState.SENT, reported_at=sent_at)
    reconciliation.poll_orders(context, "main", [order.id])
    with context.database.transaction() as session:
        orders.set_due(session, [order.id], next_watch_at=clock.now() + timedelta(days=30))
    before = watchdog.watch_trade_windows(context)

    invariants.check(context)

    assert (before, watchdog.watch_trade_windows(context)) == ([], [order.external_id])
    assert [m["type"] for m in messages_of(context, order)].count(TRADE_REMINDER) == 1
