"""Histories of an independent judge: money that comes around the end of the time for it."""

import pytest

from fulfillment.services import brakes, operations
from fulfillment.services.context import Context
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
    receive_one,
    run_chain,
    run_polls,
    run_ticks,
    take_figure,
)

PRICE_MILLS = PRICE_CENTS * 10


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


def pass_by(context: Context, clock: FakeClock, seconds: int, step: int = 10) -> None:
    for _ in range(seconds // step):
        clock.advance(step)
        run_ticks(context)


def test_money_goes_by_arrival_while_a_balance_answered_after_the_deadline_is_asked_again(
    context: Context, poor: FakeProvider, clock: FakeClock
) -> None:
    first = waits(context, clock)
    clock.advance(898)

    def take_long(what: str) -> None:
        clock.advance(1.5 if what == "wallet" else 0)

    poor.on_read = take_long
    run_chain(context)
    assert again(context, first).status is S.AWAITING_FUNDS
    poor.on_read = lambda what: None
    poor.balance_mills = PRICE_MILLS
    second = receive_one(context)
    clock.advance(1)
    run_ticks(context)
    pass_by(context, clock, 60)

    assert again(context, first).status is S.ACCEPTED
    assert again(context, second).status is S.AWAITING_FUNDS
    assert_invariants(context)


class CachingProvider(FakeProvider):
    """Its balance is kept for 30 s, as the contract has it."""

    clock: FakeClock

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[float, int] | None = None

    def wallet_mills(self) -> int:
        now = self.clock.monotonic()
        if self._kept is None or now - self._kept[0] >= 30:
            self._kept = now, super().wallet_mills()
        return self._kept[1]


@pytest.mark.parametrize("before_s", [5, 15, 25])
def test_money_that_came_in_time_is_seen_though_the_balance_is_cached(
    make_context: MakeContext, clock: FakeClock, before_s: int
) -> None:
    provider = CachingProvider()
    provider.clock = clock
    provider.balance_mills = 0
    context = make_context(provider)
    order = waits(context, clock)
    clock.advance(850 - before_s)
    pass_by(context, clock, 49, step=1)
    provider.balance_mills = PRICE_MILLS
    pass_by(context, clock, 60, step=1)

    assert again(context, order).status is S.ACCEPTED


def test_no_time_for_money_is_ended_by_the_next_balance(
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


def test_money_that_came_before_the_account_was_resumed_is_seen_though_the_balance_is_cached(
    make_context: MakeContext, clock: FakeClock
) -> None:
    provider = CachingProvider()
    provider.clock = clock
    provider.balance_mills = 0
    context = make_context(provider)
    order = waits(context, clock)
    brakes.stop(context, "main", "the wallet is empty", "anna@host")
    clock.advance(1000)
    take_figure(context)  # as an order's end brings it
    clock.advance(10)
    provider.balance_mills = PRICE_MILLS  # topped up,
    brakes.resume(context, "main", "topped up", "anna@host")  # and resumed
    pass_by(context, clock, 90)

    assert again(context, order).status is S.ACCEPTED


@pytest.mark.parametrize("says", ["sent", "nothing"])
def test_an_order_that_its_provider_leaves_sent_for_days_can_be_ended_by_a_person(
    context: Context, provider: FakeProvider, clock: FakeClock, says: str
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.SENT)
    clock.advance(60)
    run_polls(context)
    assert again(context, order).status is S.SENT
    if says == "nothing":
        del provider.orders[order.external_id]
    for _ in range(30):
        clock.advance(3600)
        run_ticks(context)
    if says == "sent":
        del provider.orders[order.external_id]  # support says that it has lost it
    ended = operations.resolve(
        context, order.external_id, operations.Resolution.NOT_FOUND, "support knows nothing of it"
    )

    assert ended.status is S.FAILED
