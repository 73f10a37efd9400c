"""A process whose clock is far ahead for a moment, and which is dead then, holds nobody up."""

from dataclasses import replace
from datetime import timedelta

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import dispatch, funds, invariants, outages, standin, sweep
from fulfillment.services.context import Context
from fulfillment.store import doubts, leases, orders, purchases
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    gather,
    receive_one,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    submit,
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
