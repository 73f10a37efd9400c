"""What of a purchase of unknown outcome counts for the spend cap of an hour, and for how long."""

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, operations
from fulfillment.services.context import Context
from fulfillment.store import spending
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    available,
    checkout,
    gather,
    receive,
    receive_one,
    report,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
)

PRICE_MILLS = PRICE_CENTS * 10
HOUR_S = 3600
NO_ANSWER = ProviderOutcomeUnknown("no answer")


@pytest.fixture
def capped(make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give a context whose account may buy one order an hour, and replays nothing."""
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    cap = PRICE_CENTS + 1
    return make_context(provider, main={"spend_cap_cents_per_hour": cap}, submit_within_s=50_000)


def lost(context: Context, provider: FakeProvider, clock: FakeClock) -> Order:
    """Give an order under review of which no provider knows."""
    provider.fail_purchase(NO_ANSWER)
    order = receive_one(context)
    run_chain(context)
    for _ in range(6):
        clock.advance(150)
        run_ticks(context)
    assert again(context, order).status is S.NEEDS_REVIEW
    return order


def spent(context: Context) -> int:
    with context.database.transaction() as session:
        return brakes._spent_mills(context, session, "main")


def advance_after_post(context: Context, clock: FakeClock, order: Order, seconds: float) -> None:
    """Pass the time until so long after the order's last post."""
    posted_at = attempt_of(context, order).last_post_at
    assert posted_at is not None
    clock.advance(seconds - (clock.now() - posted_at).total_seconds())


def test_under_review_it_uses_up_the_cap_of_the_hour_in_which_it_can_have_been_made(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    unknown = lost(capped, provider, clock)
    longest_s = capped.longest_call("main").total_seconds()
    advance_after_post(capped, clock, unknown, HOUR_S + longest_s - 20)
    waiting = receive_one(capped)
    run_ticks(capped)
    before = again(capped, waiting).status
    clock.advance(21)
    run_ticks(capped)

    assert before is S.AWAITING_FUNDS
    assert again(capped, waiting).status is S.ACCEPTED
    assert again(capped, unknown).status is S.NEEDS_REVIEW
    assert available(capped) == provider.balance_mills - PRICE_MILLS  # its money is held
    assert_invariants(capped)


def test_a_no_frees_the_cap_at_once(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    unknown = lost(capped, provider, clock)
    waiting = receive_one(capped)
    run_ticks(capped)
    before = again(capped, waiting).status
    operations.resolve(
        capped, unknown.external_id, operations.Resolution.NOT_FOUND, "asked support"
    )
    clock.advance(60)
    run_sweep(capped)

    assert before is S.AWAITING_FUNDS
    assert again(capped, waiting).status is S.ACCEPTED


def test_found_bought_after_hours_it_counts_from_then_on(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    unknown = lost(capped, provider, clock)
    clock.advance(2 * HOUR_S)
    lapsed = spent(capped)
    provider.orders[unknown.external_id] = report(R.ACCEPTED, unknown.external_id)
    run_polls(capped)
    waiting = receive_one(capped)
    run_ticks(capped)

    assert lapsed == 0
    assert again(capped, unknown).status is S.ACCEPTED
    assert again(capped, waiting).status is S.AWAITING_FUNDS


def test_what_may_be_sent_again_counts_however_long_ago_it_was_sent(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    provider.fail_purchase(NO_ANSWER)
    order = receive_one(capped)
    run_chain(capped)
    provider.reads_fail(ProviderNotReached("HTTP 503", is_outage=True))
    for _ in range(80):
        clock.advance(100)
        run_ticks(capped)
    while_away = again(capped, order).status, spent(capped)
    provider.reads_fail(None)
    for _ in range(40):
        clock.advance(10)
        run_ticks(capped)

    assert while_away == (S.SUBMITTING, PRICE_MILLS)
    assert len(provider.bodies) == 2
    assert again(capped, order).status is S.ACCEPTED
    assert spent(capped) == PRICE_MILLS


def test_what_is_held_and_not_sent_yet_counts_whenever_it_was_held(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(capped, checkout(), checkout())
    assert gather(capped) is not None
    clock.advance(2 * HOUR_S)

    assert spent(capped) == PRICE_MILLS


def test_the_cap_of_all_accounts_forgets_it_as_well(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    lost(capped, provider, clock)
    with capped.database.transaction() as session:
        longest = capped.longest_call("main")
        ages = [brakes._HOUR / 12, brakes._HOUR / 2]
        sums = [spending.spent_mills(session, None, clock.now() - age, longest) for age in ages]

    assert sums == [0, PRICE_MILLS]


def test_where_no_account_is_set_the_cap_of_all_is_shown_as_unused(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, accounts={}, spend_cap_cents_per_hour=100)
    with context.database.transaction() as session:
        used = brakes._spent_mills(context, session, None)

    assert used == 0
    assert brakes.show_accounts(context) == []
