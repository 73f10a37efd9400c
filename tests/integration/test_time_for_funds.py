"""Who waits for money is not told that there was none by somebody who did not look."""

from dataclasses import replace
from typing import Any

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import Quotes, Want
from tests.conftest import MakeContext
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    ITEM,
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    receive_one,
    rows,
    run_chain,
    run_ticks,
    take_figure,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
ANNA = "anna@host"
AWAY = ProviderNotReached("HTTP 503", is_outage=True)
#: After the time for money (900 s), long before that of submission (3600 s).
LATER_S = 1000


@pytest.fixture
def poor(provider: FakeProvider) -> FakeProvider:
    provider.balance_mills = 0
    return provider


def waits(context: Context, clock: FakeClock, **fields: object) -> Order:
    order = receive_one(context, **fields)
    run_chain(context)
    assert again(context, order).funds_deadline_at is not None
    clock.advance(1)
    return order


def run_chain_slowly(
    context: Context, provider: FakeProvider, clock: FakeClock, seconds: float
) -> None:
    """Let the wallet take so long to answer."""
    provider.on_read = lambda what: clock.advance(seconds if what == "wallet" else 0)
    run_chain(context)
    provider.on_read = lambda what: None


def pass_by(context: Context, clock: FakeClock, seconds: int) -> None:
    for _ in range(seconds // 10):
        clock.advance(10)
        run_ticks(context)


@pytest.mark.parametrize("why", ["stopped", "away", "unread"])
@pytest.mark.parametrize("is_paid", [True, False])
def test_it_ends_for_want_of_funds_only_by_a_balance_asked_for_after_its_time(
    context: Context, poor: FakeProvider, clock: FakeClock, why: str, is_paid: bool
) -> None:
    def fail(what: str) -> None:
        if what == "wallet":
            raise AWAY

    order = waits(context, clock)
    if why == "stopped":
        brakes.stop(context, None, "lunch", ANNA)
    elif why == "away":
        poor.reads_fail(AWAY)
    else:
        poor.on_read = fail
    poor.balance_mills = PRICE_MILLS if is_paid else PRICE_MILLS - 1
    pass_by(context, clock, LATER_S)
    still = again(context, order).status
    brakes.resume(context, None, "back", ANNA)
    poor.reads_fail(None)
    poor.on_read = lambda what: None
    pass_by(context, clock, 70)

    assert still is S.AWAITING_FUNDS
    found = again(context, order)
    assert found.status is (S.ACCEPTED if is_paid else S.FAILED)
    assert is_paid or found.failure_code == "insufficient_funds"
    assert is_paid or "did not cover" in view(context, order).timeline[-1].note
    assert_invariants(context)


def test_whom_nobody_looks_for_ends_at_its_time_of_submission_and_costs_nothing_until_then(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    order = waits(context, clock)
    brakes.stop(context, "main", "odd prices", ANNA)
    pass_by(context, clock, LATER_S)
    poor.reads.clear()
    before = rows(context, "SELECT xmin, sequence FROM orders")
    pass_by(context, clock, 2000)
    asked = [what for what in poor.reads if what != "wallet"]
    after = rows(context, "SELECT xmin, sequence FROM orders")
    pass_by(context, clock, 700)

    assert (asked, after) == ([], before)
    assert again(context, order).failure_code == "too_late"
    assert_invariants(context)


def test_a_balance_that_is_read_for_another_reason_ends_nobody(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    order = waits(context, clock)
    brakes.stop(context, "main", "odd prices", ANNA)
    poor.balance_mills = PRICE_MILLS
    pass_by(context, clock, LATER_S)
    take_figure(context)
    pass_by(context, clock, 60)
    still = again(context, order).status
    brakes.resume(context, "main", "prices are right", ANNA)
    run_ticks(context)

    assert still is S.AWAITING_FUNDS
    assert again(context, order).status is S.ACCEPTED


def test_a_balance_asked_for_before_its_time_and_answered_after_it_is_asked_for_again(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    order = waits(context, clock)
    clock.advance(890)

    run_chain_slowly(context, poor, clock, 8)
    still = again(context, order).status
    poor.balance_mills = PRICE_MILLS
    pass_by(context, clock, 20)

    assert still is S.AWAITING_FUNDS
    assert again(context, order).status is S.ACCEPTED


def test_until_that_is_asked_none_that_came_later_has_its_money(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    first = waits(context, clock)
    clock.advance(898)

    run_chain_slowly(context, poor, clock, 1.5)
    still = again(context, first).status
    poor.balance_mills = PRICE_MILLS
    later = receive_one(context)
    run_ticks(context)
    pass_by(context, clock, 20)

    assert still is S.AWAITING_FUNDS
    assert again(context, first).status is S.ACCEPTED
    assert again(context, later).status is S.AWAITING_FUNDS
    assert_invariants(context)


@pytest.mark.parametrize("is_made", [True, False])
def test_what_may_be_counted_twice_since_its_outcome_is_unknown_ends_nobody(
    context: Context, poor: FakeProvider, clock: FakeClock, is_made: bool
) -> None:
    def fail(what: str) -> None:
        if what.startswith("order "):
            raise ProviderOutcomeUnknown("no answer")

    poor.after_unknown = AfterUnknown.LOOKUP_ONLY
    poor.prices["cheap"] = PRICE_MILLS // 2
    waiting = waits(context, clock)
    clock.advance(840)
    poor.balance_mills = PRICE_MILLS // 2
    poor.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=is_made)
    poor.on_read = fail
    unknown = receive_one(context, catalogItemId="cheap")
    run_chain(context)
    pass_by(context, clock, 20)
    poor.balance_mills += PRICE_MILLS if is_made else PRICE_MILLS // 2
    pass_by(context, clock, 50)
    statuses = again(context, unknown).status, again(context, waiting).status
    poor.on_read = lambda what: None
    pass_by(context, clock, 700)

    assert statuses == (S.SUBMITTING, S.AWAITING_FUNDS)
    ends = again(context, unknown).status, again(context, waiting).status
    assert ends == ((S.ACCEPTED, S.ACCEPTED) if is_made else (S.NEEDS_REVIEW, S.FAILED))
    assert_invariants(context)


def test_of_many_whose_time_is_over_the_first_are_bought_and_the_others_end(
    make_context: MakeContext, poor: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(poor, batch_limit=4)
    waiting = [receive_one(context) for _ in range(12)]
    for _ in range(4):
        run_chain(context)
    brakes.stop(context, "main", "odd prices", ANNA)
    pass_by(context, clock, LATER_S)
    poor.balance_mills = 5 * PRICE_MILLS
    brakes.resume(context, "main", "prices are right", ANNA)
    poor.reads.clear()
    for _ in range(120):
        clock.advance(1)
        run_ticks(context)

    # What the first batch spent may be in the balance or not, for a while.
    ends = [again(context, order).status for order in waiting]
    assert ends == [S.ACCEPTED] * 5 + [S.FAILED] * 7
    assert poor.reads.count("catalog") <= 16
    assert_invariants(context)


def test_one_whose_time_is_over_and_that_cannot_be_priced_keeps_money_from_nobody(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    unclear = waits(context, clock)
    quote = poor.quote

    def without_it(wants: Any) -> Quotes:
        quotes = quote(wants)
        odd: dict[Want, str] = {w: "no number" for w in wants if w.catalog_item_id == ITEM}
        found = {want: found for want, found in quotes.found.items() if want not in odd}
        return replace(quotes, found=found, unclear=odd)

    poor.quote = without_it  # type: ignore[method-assign]
    pass_by(context, clock, LATER_S)
    poor.prices["other"] = PRICE_MILLS
    poor.balance_mills = PRICE_MILLS
    later = receive_one(context, catalogItemId="other")
    pass_by(context, clock, 40)

    assert again(context, later).status is S.ACCEPTED
    assert again(context, unclear).status is S.AWAITING_FUNDS
    assert_invariants(context)


def test_one_whose_time_is_over_goes_on_to_an_account_that_its_route_has_by_then(
    make_context: MakeContext, poor: FakeProvider, clock: FakeClock
) -> None:
    accounts = {"main": ACCOUNT, "backup": ACCOUNT | {"client_id": "other"}}
    routes = {"both": ["main", "backup"]}
    full = make_context(poor, accounts=accounts, routes=routes)
    alone = make_context(poor, accounts={"main": ACCOUNT})
    order = receive_one(full, account="both", marketHashName=NAME)
    run_chain(alone)
    brakes.stop(alone, "main", "odd prices", ANNA)
    pass_by(alone, clock, LATER_S)
    assert again(alone, order).status is S.AWAITING_FUNDS

    full._providers["backup"] = FakeProvider()
    brakes.resume(full, "main", "prices are right", ANNA)
    pass_by(full, clock, 20)

    found = again(full, order)
    assert (found.account, found.status) == ("backup", S.ACCEPTED)
    assert_invariants(full)


def test_no_time_for_money_is_over_by_the_next_balance_and_until_then_nobody_else_has_it(
    make_context: MakeContext, poor: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(poor, await_funds_s=0)
    first = receive_one(context)
    run_chain(context)
    poor.balance_mills = PRICE_MILLS
    second = receive_one(context)
    clock.advance(1)
    run_ticks(context)
    pass_by(context, clock, 60)

    assert again(context, first).status is S.ACCEPTED
    assert again(context, second).status in (S.AWAITING_FUNDS, S.FAILED)
