"""Sharing out the wallet over waiting and new orders, and never spending twice."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fulfillment.errors import ProviderNotReached
from fulfillment.services import brakes, catalog, dispatch, funds, operations, reconciliation, sweep
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    WAIT_S,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    assert_invariants,
    available,
    checkout,
    entries,
    receive,
    receive_one,
    run_chain,
    run_polls,
    run_sweep,
    take_figure,
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


def test_catalog_and_balance_are_asked_for_at_once_and_once(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    both = threading.Barrier(2, timeout=WAIT_S)
    provider.on_read = lambda what: void(both.wait())

    run_chain(context)

    assert sorted(provider.reads) == ["catalog", "wallet"]
    assert again(context, order).status is S.ACCEPTED


def test_a_balance_that_could_not_be_read_beside_the_catalog_is_asked_for_again(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    provider.on_read = once(lambda what: what == "wallet", ProviderNotReached("refused"))

    run_chain(context)

    assert sorted(provider.reads) == ["catalog", "wallet", "wallet"]
    assert again(context, order).status is S.ACCEPTED


def test_a_balance_from_beside_the_catalog_is_not_believed_for_long(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    catalog.refresh_catalog(context, batch)
    provider.balance_mills = 0

    clock.advance(2.1)
    funds.check_wallet(context, batch)

    assert provider.reads.count("wallet") == 2
    assert again(context, order).status is S.AWAITING_FUNDS


def test_a_balance_from_before_the_last_catalog_serves_no_later_order(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    clock.advance(0.001)
    late = receive_one(context)
    # Only the catalog is answered this time, so what is stored was asked for before `late` came.
    provider.on_read = once(lambda what: what == "wallet", ProviderNotReached("refused"))

    run_chain(context)

    assert provider.reads.count("wallet") == 3
    assert again(context, late).status is S.ACCEPTED


def void(_: object) -> None:
    pass


def once(is_it: Callable[[str], bool], error: Exception) -> Callable[[str], None]:
    """Raise the error at the first read of that kind."""
    waiting = [error]

    def act(what: str) -> None:
        if is_it(what) and waiting:
            raise waiting.pop()

    return act


def test_money_that_no_order_took_is_told_of_once(
    context: Context, provider: FakeProvider, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    receive(context, *(checkout() for _ in range(3)))
    run_chain(context)
    for seconds in (5, 40, 40):
        clock.advance(seconds)
        take_figure(context)
    by_our_own_orders = capsys.readouterr().out.count("wallet.unexplained")

    provider.balance_mills -= 7_770
    for seconds in (5, 40):
        clock.advance(seconds)
        take_figure(context)
    told = capsys.readouterr().out

    assert by_our_own_orders == 0
    assert told.count("wallet.unexplained") == 1
    assert "missing_mills=7770" in told
    assert [each.unexplained for each in operations.wallets(context)] == [777]
    assert operations.gauges(context).unexplained_mills == {"main": 7_770}


def test_money_that_others_take_from_a_busy_wallet_is_told_of_to_the_cent(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """At each look more is held for orders than was taken: what is open hides it, for a while."""
    foreign = 0
    for _ in range(6):
        receive(context, *(checkout() for _ in range(3)))
        run_chain(context)
        provider.balance_mills -= 6_120
        foreign += 6_120
        clock.advance(5)
        take_figure(context)

    for _ in range(3):
        clock.advance(40)
        take_figure(context)

    (wallet,) = operations.wallets(context)
    assert (wallet.unexplained, wallet.credited) == (foreign // 10, 0)


def test_a_top_up_is_shown_and_hides_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, checkout())
    run_chain(context)
    provider.balance_mills += 50_000
    clock.advance(40)
    take_figure(context)
    clock.advance(40)
    provider.balance_mills -= 2_000
    take_figure(context)

    (wallet,) = operations.wallets(context)
    assert (wallet.unexplained, wallet.credited) == (200, 5_000)


def test_money_that_goes_without_an_order_stops_the_account_where_that_is_wished(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"stop_at_unexplained_cents": 500})
    take_figure(context)
    stopped = []
    for _ in range(3):
        provider.balance_mills -= 2_000
        clock.advance(5)
        take_figure(context)
        (view,) = brakes.show_accounts(context)
        stopped.append(view.stop_reason)

    assert stopped == [None, None, "600 cents went from the wallet without an order of ours"]
    assert brakes.resume(context, "main", "looked into", "test")
    clock.advance(5)
    take_figure(context)
    (view,) = brakes.show_accounts(context)
    assert view.stop_reason is None


def test_a_wallet_is_read_every_hour_although_nothing_happens(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, checkout())
    run_chain(context)
    for _ in range(3):
        clock.advance(40)
        sweep.resume_stuck(context)
    provider.balance_mills -= 1_000

    clock.advance(57 * 60)
    sweep.resume_stuck(context)
    assert operations.wallets(context)[0].unexplained == 0
    clock.advance(5 * 60)
    sweep.resume_stuck(context)

    assert operations.wallets(context)[0].unexplained == 100


def tell(context: Context, provider: FakeProvider, order: Order, state: R, **details: Any) -> None:
    """Let the provider say this of the order from now on, and hear it."""
    provider.says(order.external_id, state, **details)
    reconciliation.reconcile_now(context, [order.external_id])
    run_polls(context)


@pytest.mark.parametrize("is_taken_first", [True, False])
def test_a_charge_above_the_price_that_is_told_before_the_delivery_is_explained(
    context: Context, provider: FakeProvider, clock: FakeClock, is_taken_first: bool
) -> None:
    """It is told, and taken from the balance, in either order; and booked with the delivery."""
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    clock.advance(40)
    take_figure(context)  # tells of the hold
    more, charged = 20_000, PRICE_CENTS * 10 + 20_000

    def take() -> None:
        provider.balance_mills -= more
        clock.advance(6)
        take_figure(context)

    def hear() -> None:
        tell(context, provider, order, R.PENDING, charged_mills=charged)

    first, then = (take, hear) if is_taken_first else (hear, take)
    first()
    then()
    for _ in range(4):
        clock.advance(20)
        take_figure(context)
    told = operations.wallets(context)[0]
    tell(context, provider, order, R.COMPLETED, charged_mills=charged)
    for _ in range(3):
        clock.advance(40)
        take_figure(context)

    (wallet,) = operations.wallets(context)
    assert (told.unexplained, told.credited) == (0, 0)
    assert (wallet.unexplained, wallet.credited) == (0, 0)
    assert entries(context, order) == [("hold", PRICE_CENTS * 10), ("settle", charged)]
    assert_invariants(context)


def test_a_charge_above_the_price_is_not_spent_again_while_the_balance_may_be_older(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    clock.advance(40)
    take_figure(context)
    before = available(context)

    tell(context, provider, order, R.PENDING, charged_mills=PRICE_CENTS * 10 + 20_000)
    told = available(context)
    clock.advance(6)
    take_figure(context)  # out of the provider's cache
    cached = available(context)
    provider.balance_mills -= 20_000
    clock.advance(40)
    take_figure(context)

    assert [told - before, cached - before, available(context) - before] == [-20_000] * 3
    assert operations.wallets(context)[0].unexplained == 0


@pytest.mark.parametrize(
    ("first", "then"),
    [(PRICE_MILLS - 3_000, PRICE_MILLS - 500), (PRICE_MILLS - 500, PRICE_MILLS + 500)],
)
def test_a_charge_that_is_told_anew_is_not_spent_again_though_it_is_below_the_hold(
    context: Context, provider: FakeProvider, clock: FakeClock, first: int, then: int
) -> None:
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    provider.balance_mills += PRICE_MILLS - first
    clock.advance(45)
    tell(context, provider, order, R.COMPLETED, charged_mills=first)
    for _ in range(2):
        clock.advance(45)
        take_figure(context)
    before = available(context)

    tell(context, provider, order, R.COMPLETED, charged_mills=then)
    clock.advance(7)
    take_figure(context)  # out of the provider's cache
    cached = available(context)
    provider.balance_mills -= then - first
    clock.advance(45)
    take_figure(context)

    assert [cached - before, available(context) - before] == [first - then] * 2


def test_an_order_that_was_charged_too_much_and_fails_is_free_of_it_with_its_hold(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    clock.advance(40)
    take_figure(context)
    provider.balance_mills -= 20_000
    tell(context, provider, order, R.PENDING, charged_mills=PRICE_CENTS * 10 + 20_000)
    clock.advance(40)
    take_figure(context)
    provider.balance_mills += PRICE_CENTS * 10 + 20_000
    tell(context, provider, order, R.FAILED, failure_code="x")
    for _ in range(3):
        clock.advance(40)
        take_figure(context)

    (wallet,) = operations.wallets(context)
    assert (wallet.unexplained, wallet.credited) == (0, 0)
    assert available(context) == provider.balance_mills
    assert_invariants(context)


@pytest.mark.parametrize("is_told_before", [True, False])
def test_a_charge_above_the_price_is_not_spent_again_directly_after_the_delivery(
    context: Context, provider: FakeProvider, clock: FakeClock, is_told_before: bool
) -> None:
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    clock.advance(45)
    take_figure(context)
    charged = PRICE_MILLS + 20_000

    before = available(context)
    if is_told_before:
        tell(context, provider, order, R.PENDING, charged_mills=charged)
        clock.advance(28)
    tell(context, provider, order, R.COMPLETED, charged_mills=charged)
    clock.advance(3)
    take_figure(context)  # out of the provider's cache
    cached = available(context)
    provider.balance_mills -= 20_000
    for _ in range(4):
        clock.advance(45)
        take_figure(context)

    assert [cached - before, available(context) - before] == [-20_000] * 2
    assert operations.wallets(context)[0].unexplained == 0
    assert operations.wallets(context)[0].credited == 0


def test_a_charge_that_is_seen_before_it_is_told_and_before_its_hold_is_taken_back(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    take_figure(context)
    run_chain(context)
    clock.advance(6)
    provider.balance_mills -= 20_000
    clock.advance(6)
    take_figure(context)
    seen = operations.wallets(context)[0].unexplained
    clock.advance(20)
    tell(context, provider, order, R.PENDING, charged_mills=PRICE_MILLS + 20_000)
    for _ in range(4):
        clock.advance(45)
        take_figure(context)

    (wallet,) = operations.wallets(context)
    assert seen == 2_000
    assert (wallet.unexplained, wallet.credited) == (0, 0)


@pytest.mark.parametrize("left_cents", [0, -1, -50_000])
def test_a_wallet_that_is_emptied_or_overdrawn_by_others_is_shown_and_stops_the_account(
    make_context: MakeContext, simulator: Simulator, clock: FakeClock, left_cents: int
) -> None:
    context = make_context(base_url=simulator.url, main={"stop_at_unexplained_cents": 1_000})
    simulator.set_balance(10_000)
    take_figure(context)
    clock.advance(40)
    simulator.jump(40)

    simulator.set_balance(left_cents)
    take_figure(context)

    (wallet,) = operations.wallets(context)
    (view,) = brakes.show_accounts(context)
    assert (wallet.balance, wallet.available) == (left_cents, 0)
    assert wallet.unexplained == 10_000 - left_cents
    assert (view.stop_reason, view.paused_until) == (
        f"{10_000 - left_cents} cents went from the wallet without an order of ours",
        None,
    )
    assert_invariants(context)


def test_orders_wait_for_an_overdrawn_wallet_as_for_an_empty_one(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = -5_000
    order = receive_one(context)
    run_chain(context)
    waiting = again(context, order).status

    provider.balance_mills = PRICE_MILLS
    clock.advance(11)
    run_sweep(context)

    assert waiting is S.AWAITING_FUNDS
    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)
