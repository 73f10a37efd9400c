"""Polls: every order is followed to its true end although no webhook ever comes."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import ProviderDeniesAccount, ProviderNotReached
from fulfillment.services import invariants, operations, reconciliation, watchdog
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    Simulator,
    accepted,
    again,
    assert_invariants,
    checkout,
    entries,
    in_threads,
    messages_of,
    path_of,
    receive,
    receive_one,
    report,
    run_chain,
    run_polls,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10


def polls_of(provider: FakeProvider) -> int:
    return sum(read.startswith("order") for read in provider.reads)


def test_no_order_is_asked_about_more_often_than_every_30_seconds(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    simulator.ask("POST", "/scenarios", default="stuck")
    placed = receive(simulated, *(simulator.checkout("stuck", i) for i in range(3)))
    run_chain(simulated)

    for _ in range(200):
        run_polls(simulated)
        clock.advance(5)
        simulator.jump(5)

    purchases = [simulator.purchase(order) for order in placed]
    assert all(p is not None and p["reads"] >= 5 for p in purchases)
    assert all(p is not None and p["minReadGapS"] >= 30 for p in purchases)


def test_an_order_that_a_lookup_of_many_leaves_out_is_asked_for_alone(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.lookup_limit, provider.told_at_once = 100, 2
    placed = receive(context, *(checkout() for _ in range(4)))
    run_chain(context)
    for order in placed[:3]:
        provider.says(order.external_id, R.PENDING)
    del provider.orders[placed[3].external_id]  # the provider has truly lost it

    clock.advance(60)
    run_polls(context)

    alone = [f"order {order.external_id}" for order in placed[2:]]
    assert sorted(read for read in provider.reads if read in alone) == sorted(alone)
    statuses = [again(context, order).status for order in placed]
    assert statuses == [S.PENDING, S.PENDING, S.PENDING, S.ACCEPTED]


def test_polls_back_off_while_nothing_happens(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    accepted(context)
    counts = []

    for _ in range(3):
        before = polls_of(provider)
        for _ in range(60):
            clock.advance(15)
            run_polls(context)
        counts.append(polls_of(provider) - before)

    assert counts[0] > counts[1] >= counts[2] >= 2


def test_a_stale_answer_is_recorded_and_never_takes_an_order_back(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.SENT)
    clock.advance(31)
    run_polls(context)

    provider.says(order.external_id, R.QUEUED)
    clock.advance(60)
    run_polls(context)

    after = view(context, order)
    assert after.status is S.SENT
    assert after.timeline[-1].note == "'queued' comes late: ignored"


def test_an_order_that_the_provider_says_it_does_not_know_stays_as_it_is(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    del provider.orders[order.external_id]

    clock.advance(31)
    run_polls(context)

    after = again(context, order)
    assert after.status is S.ACCEPTED
    assert after.next_poll_at is not None
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def test_a_poll_that_fails_is_tried_again_and_costs_no_order(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    provider.reads_fail(ProviderNotReached("503"))
    clock.advance(31)
    run_polls(context)
    during = again(context, order)

    provider.reads_fail(None)
    clock.advance(37)
    run_polls(context)

    assert (during.status, during.polls) == (S.ACCEPTED, 1)
    assert again(context, order).status is S.COMPLETED


def test_wrong_credentials_at_a_poll_pause_the_account(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    accepted(context)
    provider.reads_fail(ProviderDeniesAccount("403"))

    clock.advance(31)
    run_polls(context)

    (wallet,) = operations.wallets(context)
    assert wallet.paused_until is not None
    assert wallet.paused_until >= clock.now() + timedelta(seconds=30)


def test_two_beats_ask_no_more_than_one(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, *(checkout() for _ in range(10)))
    run_chain(context)
    clock.advance(31)

    for _ in range(20):
        clock.advance(1)
    in_threads(4, lambda _: run_polls(context))

    assert polls_of(provider) == 10


def test_a_lost_message_costs_one_interval(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    accepted(context)
    clock.advance(31)

    lost = list(reconciliation.poll_due(context))
    clock.advance(31)
    found_again = list(reconciliation.poll_due(context))

    assert [batch["ids"] for batch in lost] == [batch["ids"] for batch in found_again]


def test_first_polls_of_a_burst_are_spread(context: Context, clock: FakeClock) -> None:
    context = replace(context, jitter=random.random)
    placed = receive(context, *(checkout() for _ in range(10)))
    run_chain(context)

    times = [again(context, order).next_poll_at for order in placed]

    assert len(set(times)) == 10
    assert min(t for t in times if t) >= clock.now() + timedelta(seconds=30)


def test_an_offer_near_its_end_is_asked_about_before_routine(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider)
    routine, urgent = receive(context, checkout(), checkout())
    run_chain(context)
    provider.says(urgent.external_id, R.SENT)
    clock.advance(60)
    run_polls(context)
    clock.advance(601)

    (batch,) = reconciliation.poll_due(context)

    assert batch["ids"] == [urgent.id, routine.id]


def test_a_delivered_order_is_watched_for_a_reversal_for_eight_days(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(31)
    run_polls(context)
    until = again(context, order).reversible_until

    before = polls_of(provider)
    for _ in range(9 * 24 * 2):
        clock.advance(1800)
        run_polls(context)

    assert until is not None
    assert 30 <= polls_of(provider) - before <= 80
    assert again(context, order).next_poll_at is None


@pytest.mark.parametrize("end_in_days", [3, None])
@pytest.mark.parametrize("becomes", [R.REVERSED, R.COMPLETED])
def test_a_hold_that_outlasts_its_told_end_is_watched_until_the_provider_settles_it(
    context: Context, provider: FakeProvider, clock: FakeClock, end_in_days: int | None, becomes: R
) -> None:
    order = accepted(context)
    told: dict[str, Any] = {"charged_mills": PRICE_MILLS, "raw_status": "hold", "is_held": True}
    if end_in_days is not None:
        told["reversible_until"] = clock.now() + timedelta(days=end_in_days)
    provider.says(order.external_id, R.COMPLETED, **told)
    for _ in range(10 * 24):
        clock.advance(3600)
        run_polls(context)
    held = again(context, order)

    is_settled = becomes is R.COMPLETED
    provider.says(order.external_id, becomes, raw_status="settled", is_settled=is_settled)
    clock.advance(8 * 3600)
    run_polls(context)

    assert held.status is S.COMPLETED
    assert again(context, order).status is S(becomes.value)
    assert again(context, order).next_poll_at is None
    assert_invariants(context)


def test_a_hold_that_never_ends_is_watched_for_thirty_days(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    soon = clock.now() + timedelta(minutes=5)
    told = {"charged_mills": PRICE_MILLS, "is_held": True, "reversible_until": soon}
    provider.says(order.external_id, R.COMPLETED, **told)
    asked = []
    for day in range(32):
        before = polls_of(provider)
        for _ in range(48):
            clock.advance(1800)
            run_polls(context)
        asked.append(polls_of(provider) - before)
        assert (again(context, order).next_poll_at is not None) is (day < 30)

    assert all(3 <= polls <= 5 for polls in asked[2:29])
    assert asked[31] == 0
    events = [entry.note for entry in view(context, order).timeline]
    assert events.count("the provider holds it for longer than it said") == 1


@pytest.mark.parametrize(("is_refunded", "kinds"), [(True, ["refund"]), (False, [])])
def test_a_reversal_on_the_seventh_day_is_recorded_and_costed(
    context: Context, provider: FakeProvider, clock: FakeClock, is_refunded: bool, kinds: list[str]
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(31)
    run_polls(context)

    clock.advance(7 * 86_400)
    refunded_at = clock.now() if is_refunded else None
    provider.says(order.external_id, R.REVERSED, refunded_at=refunded_at)
    run_polls(context)

    assert again(context, order).status is S.REVERSED
    assert [kind for kind, _ in entries(context, order)] == ["hold", "settle", *kinds]
    assert "order.needs_review" in [message["type"] for message in messages_of(context, order)]


def test_a_delivery_that_a_webhook_told_of_is_watched_like_any_other(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    told = report(R.COMPLETED, order.external_id, charged_mills=PRICE_MILLS)
    with context.database.transaction() as session:
        apply_reports(context, session, "main", {order.id: told}, Source.WEBHOOK)

    clock.advance(7 * 86_400)
    provider.says(order.external_id, R.REVERSED)
    run_polls(context)

    assert again(context, order).status is S.REVERSED


def test_news_after_the_end_that_contradicts_it_is_an_alarm_and_moves_no_money(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(31)
    run_polls(context)

    provider.says(order.external_id, R.FAILED, failure_code="item_unavailable")
    clock.advance(3600)
    run_polls(context)
    clock.advance(3600)
    run_polls(context)

    types = [message["type"] for message in messages_of(context, order)]
    assert again(context, order).status is S.COMPLETED
    assert types.count("order.needs_review") == 1
    assert [kind for kind, _ in entries(context, order)] == ["hold", "settle"]


def test_a_charge_that_was_not_told_at_the_delivery_is_learned_later(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED)
    clock.advance(31)
    run_polls(context)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(3600)
    run_polls(context)

    types = [message["type"] for message in messages_of(context, order)]
    assert view(context, order).charged_price == PRICE_CENTS
    assert "order.needs_review" not in types


def test_a_charge_that_changes_after_the_delivery_is_an_alarm_and_rewrites_no_entry(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(31)
    run_polls(context)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS + 10)
    for _ in range(3):
        clock.advance(3600)
        run_polls(context)

    types = [message["type"] for message in messages_of(context, order)]
    assert view(context, order).charged_price == PRICE_CENTS + 1
    assert types.count("order.needs_review") == 1
    assert entries(context, order)[1] == ("settle", PRICE_MILLS)


@pytest.mark.parametrize(
    ("scenario", "ends", "seconds"),
    [
        ("webhooks_lost", ["completed"], 40),
        ("declined", ["failed"], 40),
        ("expired", ["expired"], 650),
        ("reversed", ["completed", "reversed"], 40),
        ("unknown_status", ["completed"], 40),
    ],
)
def test_polls_alone_bring_an_order_to_its_true_end(
    simulated: Context,
    simulator: Simulator,
    clock: FakeClock,
    scenario: str,
    ends: list[str],
    seconds: float,
) -> None:
    (order,) = receive(simulated, simulator.checkout(scenario))
    run_chain(simulated)

    for end in ends:
        simulator.jump(seconds)
        simulator.until_status(order, end)
        clock.advance(3600)
        run_polls(simulated)

    purchase = simulator.purchase(order)
    shown = view(simulated, order)
    assert purchase is not None
    assert path_of(simulated, order)[-len(ends) :] == ends
    assert (shown.charged_price or 0) in (purchase["amountCents"], 0)


def test_reconcile_makes_everything_under_way_due_now(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)

    due = reconciliation.reconcile_now(context, None)
    run_polls(context)

    assert due == 1
    assert again(context, order).status is S.COMPLETED


def test_a_person_who_reconciles_and_many_polls_do_not_block_each_other(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = receive(context, *(checkout() for _ in range(60)))
    run_chain(context)
    for order in reversed(placed):
        provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    shuffled_ids = [order.external_id for order in reversed(placed)]

    def work(place: int) -> None:
        for _ in range(5):
            if place % 2:
                reconciliation.reconcile_now(context, shuffled_ids if place % 4 == 1 else None)
            run_polls(context)
            watchdog.watch_trade_windows(context)

    in_threads(8, work)

    assert {again(context, order).status for order in placed} == {S.COMPLETED}


def test_the_charge_is_learned_although_the_hold_seems_to_be_over(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    past = clock.now() - timedelta(hours=3)
    provider.says(order.external_id, R.COMPLETED, raw_status="hold", reversible_until=past)
    for _ in range(3):
        clock.advance(120)
        run_polls(context)
    provider.says(
        order.external_id,
        R.COMPLETED,
        raw_status="hold",
        reversible_until=past,
        charged_mills=6120,
    )
    for _ in range(10):
        clock.advance(120)
        run_polls(context)

    assert again(context, order).charged_mills == 6120
    assert_invariants(context)


def test_a_charge_that_is_never_told_of_what_is_settled_is_not_asked_for_without_end(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.COMPLETED, is_settled=True)
    for _ in range(60):
        clock.advance(6 * 3600)
        run_polls(context)

    assert again(context, order).next_poll_at is None
    found = {each.invariant for each in invariants.violations(context)}
    assert "final_order_open_hold" in found
