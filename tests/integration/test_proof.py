"""What a balance proves of charges that are told of before, or after, their money is seen."""

import pytest

from fulfillment.errors import ProviderNotReached
from fulfillment.services import brakes, operations
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_funds import PRICE_MILLS, tell
from tests.support import (
    FakeClock,
    FakeProvider,
    accepted,
    again,
    available,
    hear,
    receive_one,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    take_figure,
)


@pytest.mark.parametrize("is_seen_at_once", [True, False])
def test_a_charge_below_the_hold_is_told_before_the_rest_is_back(
    context: Context, provider: FakeProvider, clock: FakeClock, is_seen_at_once: bool
) -> None:
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    clock.advance(45)
    if not is_seen_at_once:
        take_figure(context)
    tell(context, provider, order, R.COMPLETED, charged_mills=PRICE_MILLS - 1_000)
    clock.advance(7)
    take_figure(context)  # out of the provider's cache
    provider.balance_mills += 1_000
    for _ in range(3):
        clock.advance(45)
        take_figure(context)

    (wallet,) = operations.wallets(context)
    assert (wallet.unexplained, wallet.credited) == (0, 0)
    assert available(context) == provider.balance_mills


@pytest.mark.parametrize("is_busy", [False, True])
def test_what_is_taken_after_an_explanation_stops_the_account_as_if_nothing_had_been_before(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, is_busy: bool
) -> None:
    def go_on() -> None:
        for _ in range(8):
            if is_busy:
                receive_one(context)
                run_chain(context)
            clock.advance(15)
            take_figure(context)

    context = make_context(provider, main={"stop_at_unexplained_cents": 500})
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    clock.advance(45)
    take_figure(context)
    provider.balance_mills -= 6_000  # more is charged, and told of late
    clock.advance(5)
    take_figure(context)
    assert brakes.resume(context, "main", "looked into", "test")
    tell(context, provider, order, R.COMPLETED, charged_mills=PRICE_MILLS + 6_000)
    go_on()
    explained = operations.wallets(context)[0].unexplained

    provider.balance_mills -= 6_000
    go_on()
    clock.advance(45)
    take_figure(context)

    (view,) = brakes.show_accounts(context)
    assert explained == 0
    assert view.stop_reason


def test_orders_under_way_are_asked_about_while_only_the_balance_cannot_be_read(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    waiting = receive_one(context)

    def refuse(what: str) -> None:
        if what == "wallet":
            raise ProviderNotReached("no balance")

    provider.on_read = refuse
    for _ in range(60):
        clock.advance(5)
        run_sweep(context)  # before the polls, at the end of each pause
        run_polls(context)
    assert again(context, order).status is S.COMPLETED
    assert again(context, waiting).status is S.QUOTED
    assert provider.reads.count("wallet") < 60

    provider.on_read = lambda what: None
    for _ in range(20):
        clock.advance(10)
        run_ticks(context)
    assert again(context, waiting).status is S.ACCEPTED
    assert available(context) == provider.balance_mills


@pytest.mark.parametrize("is_seen_before", [True, False])
def test_what_was_seen_as_missing_is_explained_by_the_purchase_that_is_found(
    context: Context, provider: FakeProvider, clock: FakeClock, is_seen_before: bool
) -> None:
    take_figure(context)
    order = receive_one(context)
    provider.says(order.external_id, R.SENT)
    provider.balance_mills -= PRICE_MILLS
    hear(context, provider, order.external_id, R.SENT)
    if is_seen_before:
        clock.advance(10)
        take_figure(context)
    missing = operations.wallets(context)[0].unexplained
    for _ in range(3):
        clock.advance(60)
        run_ticks(context)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    for _ in range(10):
        clock.advance(60)
        run_ticks(context)

    (wallet,) = operations.wallets(context)
    assert missing == (PRICE_MILLS // 10 if is_seen_before else 0)
    assert again(context, order).status is S.COMPLETED
    assert (wallet.unexplained, wallet.credited) == (0, 0)
    assert available(context) == provider.balance_mills
