"""A catalog that is suddenly short is the provider's fault of the moment, and no sale."""

import pytest

from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from tests.support import (
    ITEM,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    receive_one,
    run_chain,
    run_sweep,
)


@pytest.fixture
def whole(provider: FakeProvider) -> FakeProvider:
    """Give a provider that lists everything on sale, forty items."""
    provider.lists_all = True
    provider.prices |= {f"item-{place}": PRICE_CENTS * 10 for place in range(39)}
    return provider


def _lose_half(provider: FakeProvider) -> None:
    provider.prices = {name: provider.prices[name] for name in list(provider.prices)[20:]}
    assert ITEM not in provider.prices


def test_half_a_catalog_refuses_nobody_and_what_it_has_is_bought(
    context: Context, whole: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    all_prices = dict(whole.prices)
    _lose_half(whole)
    missing, listed = receive_one(context), receive_one(context, catalogItemId="item-38")
    run_chain(context)
    while_half = again(context, missing).status, again(context, listed).status

    whole.prices = all_prices
    clock.advance(11)
    run_sweep(context)

    assert while_half == (S.RECEIVED, S.ACCEPTED)
    assert again(context, missing).status is S.ACCEPTED


def test_a_catalog_that_stays_short_is_believed_in_the_end(
    context: Context, whole: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    _lose_half(whole)
    first = receive_one(context)
    run_chain(context)
    clock.advance(601)
    run_sweep(context)
    second = receive_one(context)
    run_chain(context)

    assert {again(context, order).failure_code for order in (first, second)} == {"item_unavailable"}
