"""A catalog that is suddenly short is the provider's fault of the moment, and no sale."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import Quotes, Want
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    ITEM,
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    receive_one,
    run_chain,
    run_polls,
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


# --- texts that no row takes


@pytest.mark.parametrize("text", ["AK\0-47", "AK\ud800", "\x1b[31mAK", "A" * 3_000_000])
@pytest.mark.parametrize("field", ["market_hash_name", "catalog_item_id"])
def test_an_item_whose_text_cannot_be_kept_stops_nobody_else(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    text: str,
) -> None:
    provider.prices["odd"] = PRICE_CENTS * 10
    quote = provider.quote

    def quote_oddly(wants: Sequence[Want]) -> Quotes:
        quotes = quote(wants)
        changes: dict[str, Any] = {field: text}
        found = {
            want: replace(each, **changes) if want.catalog_item_id == "odd" else each
            for want, each in quotes.found.items()
        }
        return replace(quotes, found=found)

    monkeypatch.setattr(provider, "quote", quote_oddly)
    odd, other = receive(context, checkout(catalogItemId="odd"), checkout())
    run_chain(context)
    meanwhile = again(context, odd).status, again(context, other).status

    monkeypatch.undo()
    clock.advance(11)
    run_sweep(context)

    assert meanwhile == (S.RECEIVED, S.ACCEPTED)
    assert again(context, odd).status is S.ACCEPTED


# --- a whole list of nothing


def test_a_catalog_of_nothing_refuses_nobody_and_stops_only_purchases(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    followed = receive_one(context)
    run_chain(context)
    provider.says(followed.external_id, R.COMPLETED)
    provider.lists_all = True
    all_prices = dict(provider.prices)
    provider.prices.clear()
    order = receive_one(context)
    provider.reads.clear()
    for _ in range(150):
        run_sweep(context)
        run_polls(context)
        clock.advance(5)
    while_empty = again(context, order).status, provider.reads.count("catalog")

    provider.prices |= all_prices
    clock.advance(61)
    run_sweep(context)

    assert while_empty[0] is S.RECEIVED
    assert 10 <= while_empty[1] <= 40
    assert again(context, followed).status is S.COMPLETED
    assert again(context, order).status is S.ACCEPTED


def test_who_waits_for_a_catalog_of_nothing_ends_in_time_or_goes_on(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    accounts: dict[str, Any] = {"main": {}, "backup": {}}
    context = make_context(provider, accounts=accounts, routes={"any": "main,backup"})
    context._providers["backup"] = FakeProvider()
    provider.lists_all = True
    provider.prices.clear()
    alone = receive_one(context, account="main")
    routed = receive_one(context, account="any", marketHashName=NAME)

    run_chain(context)
    run_chain(context, "backup")
    clock.advance(3601)
    run_sweep(context)

    assert again(context, alone).failure_code == "too_late"
    assert (again(context, routed).account, again(context, routed).status) == ("backup", S.ACCEPTED)


# --- searches


def _named(count: int) -> list[dict[str, Any]]:
    names = [f"Skin number {place}" for place in range(count)]
    return [checkout(catalogItemId=name, marketHashName=name) for name in names]


@pytest.fixture
def shop(provider: FakeProvider) -> FakeProvider:
    """Give a provider that is searched by name, and has thirty names on sale."""
    provider.prices |= {event["catalogItemId"]: PRICE_CENTS * 10 for event in _named(30)}
    return provider


def _codes(context: Context, placed: list[Order]) -> set[str | None]:
    return {again(context, order).failure_code for order in placed}


def _statuses(context: Context, placed: list[Order]) -> set[S]:
    return {again(context, order).status for order in placed}


@pytest.mark.parametrize("left", [0, 12])
def test_a_search_that_finds_too_few_refuses_nobody_and_what_it_finds_is_bought(
    context: Context, shop: FakeProvider, clock: FakeClock, left: int
) -> None:
    all_prices = dict(shop.prices)
    events = _named(30)
    shop.prices = {event["catalogItemId"]: PRICE_CENTS * 10 for event in events[:left]}
    placed = receive(context, *events)
    for _ in range(50):
        run_sweep(context)
        clock.advance(11)
    while_short = _statuses(context, placed[:left]), _statuses(context, placed[left:])

    shop.prices = all_prices
    run_sweep(context)

    assert while_short == ({S.ACCEPTED} if left else set(), {S.RECEIVED})
    assert _statuses(context, placed) == {S.ACCEPTED}


def test_a_search_that_finds_nothing_is_noticed_though_each_is_for_one_name(
    context: Context, shop: FakeProvider, clock: FakeClock
) -> None:
    all_prices = dict(shop.prices)
    shop.prices = {}
    placed = []
    for event in _named(10):
        placed += receive(context, event)
        run_sweep(context)
        clock.advance(5)
    codes = [again(context, order).failure_code for order in placed]

    shop.prices = all_prices
    clock.advance(11)
    run_sweep(context)

    assert codes == ["item_unavailable"] * 2 + [None] * 8
    assert _statuses(context, placed[2:]) == {S.ACCEPTED}


def test_an_item_that_is_gone_is_told_at_once_whoever_wants_it(
    context: Context, shop: FakeProvider
) -> None:
    found = receive(context, *_named(3))
    gone = [
        checkout(catalogItemId=name, marketHashName=name)
        for name in ("gone", "gone too")
        for _ in range(5)
    ]
    placed = receive(context, *gone[:5])
    run_chain(context)
    for event in gone[5:]:
        placed += receive(context, event)
        run_chain(context)

    assert _codes(context, placed) == {"item_unavailable"}
    assert _statuses(context, found) == {S.ACCEPTED}


def test_a_search_that_goes_on_finding_nothing_is_believed_in_the_end(
    context: Context, shop: FakeProvider, clock: FakeClock
) -> None:
    events = _named(5)
    for event in events:
        del shop.prices[event["catalogItemId"]]
    placed = receive(context, *events)
    run_sweep(context)
    at_first = _statuses(context, placed)
    others = receive(context, *_named(30)[5:8])  # what others find ends no doubt and makes none
    clock.advance(300)
    run_chain(context)
    clock.advance(301)
    run_sweep(context)

    assert at_first == {S.RECEIVED}
    assert _codes(context, placed) == {"item_unavailable"}
    assert _statuses(context, others) == {S.ACCEPTED}


def test_an_order_with_another_account_waits_for_no_doubted_search(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    accounts: dict[str, Any] = {"main": {}, "backup": {}}
    context = make_context(provider, accounts=accounts, routes={"any": "main,backup"})
    second = context._providers["backup"] = FakeProvider()
    events = _named(5)
    second.prices |= {event["catalogItemId"]: PRICE_CENTS * 10 for event in events}
    placed = receive(context, *({**event, "account": "any"} for event in events))

    run_chain(context)
    run_chain(context, "backup")

    assert {again(context, order).account for order in placed} == {"backup"}
    assert _statuses(context, placed) == {S.ACCEPTED}


def test_an_order_with_another_account_waits_a_minute_for_one_that_is_not_clear(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    second = FakeProvider()
    account = {"provider": "skinsnode", "base_url": "http://127.0.0.1:9", "client_secret": "s"}
    accounts = {name: account | {"client_id": name} for name in ("main", "second")}
    context = make_context(provider, accounts=accounts, routes={"any": "main,second"})
    context._providers["second"] = second
    provider.quote = lambda wants: Quotes(  # type: ignore[method-assign]
        {}, 0, unclear=dict.fromkeys(wants, "error 99 blue_moon")
    )
    order = receive_one(context, account="any", marketHashName=NAME)
    run_chain(context)
    at_once = again(context, order).account
    for _ in range(7):
        clock.advance(10)
        run_sweep(context)

    assert at_once == "main"
    assert again(context, order).account == "second"
    assert len(second.bodies) == 1


def test_a_search_in_between_hides_no_half_catalog(
    context: Context, whole: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    whole.lists_all = False
    receive_one(context, catalogItemId="item-1")
    run_chain(context)
    whole.lists_all = True
    _lose_half(whole)

    missing = receive_one(context)
    run_chain(context)

    assert again(context, missing).status is S.RECEIVED
