"""A purchase that ended while it was posted again: nobody has promised that it is not made anew."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    entries,
    hear,
    messages_of,
    receive_one,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
NO = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "HTTP 404")


def unanswered(context: Context, provider: FakeProvider, clock: FakeClock) -> Order:
    """Give an order that was bought, as far as anybody but us knows."""
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=True)
    run_chain(context)
    clock.advance(3)
    provider.reads.clear()
    return order


def ends_meanwhile(
    context: Context, provider: FakeProvider, *before: R, is_made_anew: bool = True
) -> Callable[[dict[str, Any]], None]:
    """Let the provider fail, and tell so, what is being posted."""

    def end(fields: dict[str, Any]) -> None:
        for word in (*before, R.FAILED):
            hear(context, provider, fields["external_id"], word)
        if is_made_anew and fields["external_id"] in provider.orders:
            del provider.orders[fields["external_id"]]
            provider.balance_mills += PRICE_MILLS

    return end


def posted_again(context: Context, provider: FakeProvider, clock: FakeClock, *before: R) -> Order:
    order = unanswered(context, provider, clock)
    provider.on_purchase = ends_meanwhile(context, provider, *before)
    run_sweep(context)
    return again(context, order)


def let_pass(context: Context, clock: FakeClock, minutes: int = 15) -> None:
    for _ in range(2 * minutes):
        clock.advance(30)
        run_ticks(context)


def questions(provider: FakeProvider) -> int:
    return sum(read.startswith("order ") for read in provider.reads)


def alarms(context: Context, order: Order) -> int:
    return [message["type"] for message in messages_of(context, order)].count(NEEDS_REVIEW)


@pytest.mark.parametrize("before", [(), (R.ACCEPTED,), (R.PENDING,)], ids=str)
@pytest.mark.parametrize("is_asked_late", [True, False])
def test_a_yes_to_a_repetition_of_what_ended_meanwhile_is_asked_about(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    before: tuple[R, ...],
    is_asked_late: bool,
) -> None:
    order = posted_again(context, provider, clock, *before)
    if not is_asked_late:
        clock.advance(60)
        run_polls(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    let_pass(context, clock)

    after = again(context, order)
    assert order.status is after.status is S.FAILED
    assert after.charged_mills == PRICE_MILLS
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)
    assert alarms(context, order) == 1 + (not is_asked_late)  # it lives; it was delivered
    assert (after.next_poll_at, after.poll_wanted_at) == (None, None)
    assert "asked whether it was made anew" in str(view(context, order).timeline)
    assert_invariants(context)


def test_one_question_settles_that_it_stays_failed(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = posted_again(context, provider, clock)
    provider.says(order.external_id, R.FAILED)
    provider.reads.clear()
    let_pass(context, clock)

    after = again(context, order)
    assert questions(provider) == 1
    assert (after.status, after.told_status, after.charged_mills) == (S.FAILED, S.FAILED, None)
    assert (after.next_poll_at, after.poll_wanted_at) == (None, None)
    assert alarms(context, order) == 0
    assert_invariants(context)


@pytest.mark.parametrize("came_after_s", [1, 20, 40])
def test_words_of_the_new_life_do_not_make_the_answer_too_old(
    context: Context, provider: FakeProvider, clock: FakeClock, came_after_s: int
) -> None:
    order = posted_again(context, provider, clock)
    for word in (R.PROCESSING, R.PENDING):
        clock.advance(came_after_s)
        provider.says(order.external_id, word)
        hear(context, provider, order.external_id, word)
    let_pass(context, clock, minutes=3)
    living = again(context, order)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    let_pass(context, clock)

    assert (living.told_status, alarms(context, order)) == (S.PENDING, 2)
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)
    assert_invariants(context)


def test_a_provider_that_says_both_in_turns_is_not_asked_without_end(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = posted_again(context, provider, clock)
    for place, word in enumerate([R.QUEUED, R.PROCESSING, R.ACCEPTED, R.PENDING] * 10):
        provider.says(order.external_id, R.FAILED if place % 2 else word)
        hear(context, provider, order.external_id, word)
        clock.advance(20)
        run_ticks(context)
    provider.says(order.external_id, R.FAILED)
    let_pass(context, clock, minutes=3)
    provider.reads.clear()
    let_pass(context, clock)

    after = again(context, order)
    assert questions(provider) == 0
    assert (after.status, after.next_poll_at, after.poll_wanted_at) == (S.FAILED, None, None)


def test_a_yes_to_a_first_request_that_its_end_overtook_costs_no_question(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.on_purchase = ends_meanwhile(context, provider)
    order = receive_one(context)
    run_chain(context)
    let_pass(context, clock)

    after = again(context, order)
    assert (after.status, after.next_poll_at) == (S.FAILED, None)
    assert questions(provider) == alarms(context, order) == 0


def test_a_lookup_after_a_refused_repetition_may_be_an_echo(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = unanswered(context, provider, clock)
    provider.on_purchase = ends_meanwhile(context, provider, is_made_anew=False)
    provider.fail_purchase(NO)
    run_sweep(context)
    let_pass(context, clock)

    after = again(context, order)
    assert (after.status, after.next_poll_at) == (S.FAILED, None)
    assert questions(provider) == 1  # the refused repetition's own
    assert alarms(context, order) == 0


def test_where_nothing_is_repeated_without_lookups_a_yes_is_asked_about_no_more_than_before(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("no answer"))
    run_chain(context)
    provider.on_purchase = ends_meanwhile(context, provider)
    began = clock.now()
    while len(provider.bodies) < 2 and clock.now() - began < timedelta(minutes=10):
        clock.advance(5)
        run_sweep(context)
    provider.reads.clear()
    let_pass(context, clock)

    assert len(provider.bodies) == 2
    assert again(context, order).status is S.FAILED
    assert questions(provider) == 0
