"""Sharing out the wallet over waiting and new orders, and never spending twice."""

from fulfillment.errors import ProviderNotReached
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    receive_one,
    run_chain,
    run_sweep,
)

PRICE_MILLS = PRICE_CENTS * 10


def test_waiting_and_new_orders_share_the_money_by_arrival(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 0
    early = [receive_one(context) for _ in range(2)]
    run_chain(context)

    provider.balance_mills = 2 * PRICE_MILLS + 1
    clock.advance(5)
    late = receive_one(context)
    run_chain(context)
    while_early_ones_wait = again(context, late).status
    run_sweep(context)

    assert while_early_ones_wait is S.AWAITING_FUNDS
    assert {again(context, order).status for order in early} == {S.ACCEPTED}
    assert again(context, late).status is S.AWAITING_FUNDS


def test_one_that_does_not_fit_is_skipped_for_a_smaller_one_behind_it(
    context: Context, provider: FakeProvider
) -> None:
    provider.prices["dear"] = 90_000
    provider.balance_mills = 10_000
    dear = receive_one(context, catalogItemId="dear", expectedPrice=9_000)
    cheap = receive_one(context)

    run_chain(context)

    assert again(context, dear).status is S.AWAITING_FUNDS
    assert again(context, cheap).status is S.ACCEPTED


def test_the_money_of_one_order_buys_one_order(context: Context, provider: FakeProvider) -> None:
    provider.balance_mills = PRICE_MILLS
    placed = receive(context, *(checkout() for _ in range(10)))

    run_chain(context)

    assert [again(context, order).status for order in placed].count(S.ACCEPTED) == 1
    assert again(context, placed[0]).status is S.ACCEPTED
    assert len(provider.bodies) == 1


def test_a_stale_figure_never_pays_twice(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = PRICE_MILLS
    first = receive_one(context)
    run_chain(context)

    provider.balance_mills = PRICE_MILLS  # the provider still shows what was spent
    clock.advance(20)
    second = receive_one(context)
    run_chain(context)

    assert again(context, first).status is S.ACCEPTED
    assert again(context, second).status is S.AWAITING_FUNDS


def test_pauses_grow_while_only_the_catalog_can_be_read(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    def refuse_wallet(what: str) -> None:
        if what == "wallet":
            raise ProviderNotReached("GET /v1/wallet: HTTP 503")

    provider.on_read = refuse_wallet
    receive_one(context)

    for _ in range(300):
        run_sweep(context)
        clock.advance(1)

    assert 5 <= provider.reads.count("catalog") <= 15
    provider.on_read = lambda what: None
    clock.advance(61)
    run_sweep(context)
    assert len(provider.bodies) == 1
