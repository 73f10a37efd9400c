"""Sharing out the wallet: never more than there is, first come first served, none in the way."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from fulfillment.services.funds import allocate

MONEY = st.integers(-1000, 100_000)
WAITING = st.lists(st.integers(1, 30_000), max_size=40).map(lambda prices: list(enumerate(prices)))


@given(MONEY, WAITING)
def test_never_more_is_given_out_than_there_is(money: int, waiting: list[tuple[int, int]]) -> None:
    funded = allocate(money, waiting)

    spent = sum(price for order_id, price in waiting if order_id in funded)
    assert spent <= max(money, 0)


@given(MONEY, WAITING)
def test_an_order_goes_without_only_if_the_earlier_ones_left_too_little(
    money: int, waiting: list[tuple[int, int]]
) -> None:
    funded = allocate(money, waiting)

    given_out = accumulate(
        (price if order_id in funded else 0 for order_id, price in waiting), initial=0
    )
    for (order_id, price), before in zip(waiting, given_out, strict=False):
        assert (order_id in funded) is (price <= money - before)


@given(MONEY, WAITING, st.integers(1, 30_000))
def test_who_comes_later_takes_nothing_from_those_before(
    money: int, waiting: list[tuple[int, int]], price: int
) -> None:
    later = (len(waiting), price)

    assert allocate(money, [*waiting, later]) - {later[0]} == allocate(money, waiting)


def test_one_that_does_not_fit_does_not_hold_up_the_smaller_ones_behind() -> None:
    assert allocate(1000, [(1, 700), (2, 900), (3, 300)]) == {1, 3}


def test_the_last_mill_can_be_spent() -> None:
    assert allocate(1000, [(1, 1000), (2, 1)]) == {1}


def test_an_empty_or_overdrawn_wallet_pays_for_nothing() -> None:
    assert allocate(0, [(1, 1)]) == allocate(-5, [(1, 1)]) == set()
