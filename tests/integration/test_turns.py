"""Who waits for money, or for a price, in a busy store: none loses its turn, or keeps another's."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import ProviderDeniesAccount, ProviderNotReached
from fulfillment.services import (
    brakes,
    catalog,
    dispatch,
    funds,
    purchases,
    watchdog,
)
from fulfillment.services.context import Context
from fulfillment.store import orders
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import Quotes, ReportState, Want
from tests.conftest import MakeContext
from tests.integration.test_held_back import ANNA, PRICE_MILLS, held, pass_by
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    hear,
    in_threads,
    receive_one,
    run_chain,
    run_ticks,
)

SMALL = "11111111-7c1e-4d0e-9a51-0d6c5a6c7f10"


def put_aside(context: Context, clock: FakeClock, **fields: object) -> Order:
    """Give an order whose money was held until its account was stopped for minutes."""
    order = held(context, **fields)
    pass_by(context, clock, timedelta(minutes=7))
    assert again(context, order).between_attempts
    return order


@pytest.mark.parametrize("is_busy", [True, False])
def test_an_order_that_waits_for_money_is_priced_afresh_beside_others_that_come(
    context: Context, provider: FakeProvider, clock: FakeClock, is_busy: bool
) -> None:
    provider.prices[SMALL] = 10
    provider.balance_mills = PRICE_MILLS * 2 // 3
    order = receive_one(context)
    run_chain(context)
    assert again(context, order).status is S.AWAITING_FUNDS

    provider.prices[ITEM] = PRICE_MILLS // 2
    for _ in range(4):
        clock.advance(8)
        if is_busy:
            receive_one(context, catalogItemId=SMALL, expectedPrice=1)
            run_chain(context)
        run_ticks(context)

    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)


def test_many_that_wait_for_money_look_for_it_together(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 0
    for _ in range(5):
        receive_one(context)
        run_chain(context)
        clock.advance(2)
    provider.reads.clear()
    for _ in range(60):
        clock.advance(1)
        run_ticks(context)

    assert 5 <= provider.reads.count("catalog") <= 8


def test_more_than_a_batch_that_wait_look_for_money_once_and_see_their_prices_in_turn(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, batch_limit=4)
    provider.balance_mills = 0
    waiting = [receive_one(context) for _ in range(12)]
    for _ in range(4):
        run_chain(context)
    assert {again(context, order).status for order in waiting} == {S.AWAITING_FUNDS}
    provider.reads.clear()
    provider.prices[ITEM] = PRICE_MILLS - 10
    for _ in range(45):
        clock.advance(1)
        run_ticks(context)

    assert 4 <= provider.reads.count("catalog") <= 5
    assert {again(context, order).quoted_mills for order in waiting} == {PRICE_MILLS - 10}


def test_what_cannot_be_priced_keeps_its_money_from_nobody(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = PRICE_MILLS + 5
    unclear = put_aside(context, clock)
    provider.prices[SMALL] = PRICE_MILLS
    quote = provider.quote

    def without_it(wants: Any) -> Quotes:
        quotes = quote(wants)
        odd: dict[Want, str] = {w: "no number" for w in wants if w.catalog_item_id == ITEM}
        found = {want: found for want, found in quotes.found.items() if want not in odd}
        return replace(quotes, found=found, unclear=odd)

    provider.quote = without_it  # type: ignore[method-assign]
    brakes.resume(context, "main", "", ANNA)
    run_ticks(context)
    later = receive_one(context, catalogItemId=SMALL)
    for _ in range(5):
        clock.advance(5)
        run_ticks(context)

    assert again(context, later).status is S.ACCEPTED
    assert again(context, unclear).status is S.SUBMITTING
    assert_invariants(context)


def test_money_for_what_is_put_aside_does_not_hurry_the_search_for_it(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    accounts: dict[str, Any] = {"main": {}, "backup": {}}
    context = make_context(provider, accounts=accounts, routes={"both": "main,backup"})
    backup = context._providers["backup"] = FakeProvider()
    provider.prices[SMALL] = 10
    order = put_aside(context, clock, account="both", marketHashName=NAME)
    hear(context, provider, order.external_id, ReportState.SENT)
    brakes.resume(context, "main", "", ANNA)

    def deny(what: str) -> None:
        raise ProviderDeniesAccount("HTTP 401")

    backup.on_read = deny
    for is_busy in (False, True):
        backup.reads.clear()
        for _ in range(75):
            clock.advance(4)
            if is_busy:
                receive_one(context, catalogItemId=SMALL, expectedPrice=1)
            run_ticks(context)
        asked = len(backup.reads)
        assert 0 < asked <= 40, is_busy

    assert again(context, order).status is S.SUBMITTING


def test_an_order_that_ends_while_money_is_shared_out_is_due_no_more(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.balance_mills = 100
    submit_by = clock.now() + timedelta(seconds=900)
    late = receive_one(context, submitBy=submit_by.isoformat())
    run_chain(context)
    clock.advance(895)
    run_chain(context)
    provider.balance_mills = 10 * PRICE_MILLS
    clock.advance(4)
    receive_one(context)
    set_due = orders.set_due

    def end_first(session: Any, order_ids: Any, **due: Any) -> None:
        if late.id in order_ids:
            clock.advance(2)
            assert in_threads(1, lambda _: watchdog.expire_waiting(context))
        set_due(session, order_ids, **due)

    monkeypatch.setattr(orders, "set_due", end_first)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    assert catalog.refresh_catalog(context, batch).goes_on
    funds.check_wallet(context, batch)

    assert again(context, late).status is S.FAILED
    assert again(context, late).next_attempt_at is None


def test_a_balance_that_cannot_be_read_leaves_the_one_that_went_ahead_its_time(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    purchases.fail(context, "main", [ProviderNotReached("HTTP 502")])
    clock.advance(2)
    receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    assert catalog.refresh_catalog(context, batch).goes_on
    alone_until = purchases.go_ahead(context, "main")

    def fail(what: str) -> None:
        if what == "wallet":
            raise ProviderNotReached("HTTP 503", is_outage=True)

    provider.on_read = fail
    clock.advance(3)
    funds.check_wallet(context, batch)
    clock.advance(20)

    assert alone_until is not None
    assert alone_until - clock.now() > timedelta(seconds=30)
    assert purchases.go_ahead(context, "main") is None
