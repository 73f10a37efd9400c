"""Several customers want one name: there is a listing for each, and none is dearer than agreed."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from fulfillment.providers.base import BeforeSend
from fulfillment.services.context import Context
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.store import claims
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.enums import ProviderName
from schemas.provider import OrderReport, Quotes, Want
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.support import (
    NAME,
    WAIT_S,
    FakeClock,
    Simulator,
    again,
    checkout,
    gather,
    receive,
    run_chain,
    submit,
)

API_KEY = "ak_test_51d0b8"
PATHS = {
    ProviderName.SKINSNODE: "",
    ProviderName.SKINSBACK: "/api.php",
    ProviderName.SKINSLINK: "/api/v1",
}
Market = tuple[Context, Callable[[int], list[dict[str, Any]]]]


@pytest.fixture(params=list(PATHS))
def market(request: pytest.FixtureRequest, make_context: MakeContext) -> Iterator[Market]:
    """Give a provider with three listings of one name, at 6.00, 6.05 and 6.10; and checkouts."""
    provider: ProviderName = request.param
    options = SimulatorOptions(
        provider=provider.value,
        client_id=CLIENT_ID,
        client_secret=SECRET,
        api_key=API_KEY,
        port=0,
        items=2000,
        reusable_items=False,  # what is sold is sold, as in the world
        default_scenario="webhooks_lost",
        requests_per_minute=0,
    )
    with ExitStack() as stack:
        url = stack.enter_context(running(options))
        simulator = Simulator(url, CLIENT_ID, SECRET)
        stack.callback(simulator.close)
        simulator.set_balance(100_000_000)
        listings = of_one_name(simulator)
        for item, price in zip(listings, (600, 605, 610), strict=True):
            simulator.ask("PUT", f"/items/{item['id']}", price=price)
        main = {"provider": provider, "base_url": url + PATHS[provider], "api_key": API_KEY}
        context = make_context(main=main, routes={"any": ["main"]})
        name = listings[0]["marketHashName"]

        def checkouts(cents: int) -> list[dict[str, Any]]:
            return [
                # At SkinsNode only a route buys by name.
                checkout(
                    account="any", catalogItemId=name, marketHashName=name, expectedPrice=cents
                )
                for _ in listings
            ]

        yield context, checkouts


def of_one_name(simulator: Simulator) -> list[dict[str, Any]]:
    named = defaultdict(list)
    for item in simulator.ask("GET", "/items?limit=5000")["items"]:
        named[item["marketHashName"]].append(item)
    return next(found for found in named.values() if len(found) == 3)


def in_batches_of_one(context: Context, events: Sequence[dict[str, Any]]) -> list[Order]:
    """Price them all, one after the other, and then send them in the same order."""
    orders, batches = [], []
    for event in events:
        orders += receive(context, event)
        batches.append(gather(context))
    for batch in batches:
        assert batch is not None
        submit(context, batch)
    return orders


def test_each_gets_a_listing_that_is_not_too_dear(market: Market) -> None:
    context, checkouts = market
    orders = receive(context, *checkouts(612))

    run_chain(context)

    found = [again(context, order) for order in orders]
    assert [order.status for order in found] == [S.ACCEPTED] * 3
    is_by_name = context.settings.accounts["main"].provider is not ProviderName.SKINSNODE
    quoted = [6100, 6100, 6100] if is_by_name else [6000, 6050, 6100]
    assert [order.quoted_mills for order in found] == quoted


def test_batches_one_after_the_other_do_not_price_the_same_listing(market: Market) -> None:
    context, checkouts = market

    orders = in_batches_of_one(context, checkouts(612))

    assert [again(context, order).status for order in orders] == [S.ACCEPTED] * 3


@pytest.mark.parametrize("market", [ProviderName.SKINSBACK, ProviderName.SKINSLINK], indirect=True)
def test_other_ids_of_one_name_share_its_listings(market: Market) -> None:
    """Ids that mean nothing here, and no route: what is bought is the name."""
    context, checkouts = market
    elsewhere = [
        event | {"account": "main", "catalogItemId": f"elsewhere-{number}"}
        for number, event in enumerate(checkouts(612))
    ]

    orders = in_batches_of_one(context, elsewhere)

    assert [again(context, order).status for order in orders] == [S.ACCEPTED] * 3


@pytest.mark.parametrize("market", [ProviderName.SKINSBACK, ProviderName.SKINSLINK], indirect=True)
def test_those_of_a_batch_that_buy_by_name_may_come_in_any_order(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are sent side by side, and each takes the cheapest that is left up to its price."""
    context, checkouts = market
    orders = receive(context, *checkouts(612))
    batch = gather(context)
    assert batch is not None
    provider = context.provider("main")
    real, names = provider.purchase, [order.external_id.encode() for order in orders]
    bought = [threading.Event() for _ in names]

    def purchase(body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        place = next(n for n, name in enumerate(names) if name in body)
        assert names[place] == names[-1] or bought[place + 1].wait(WAIT_S)
        try:
            return real(body, before_send)
        finally:
            bought[place].set()

    monkeypatch.setattr(provider, "purchase", purchase)
    submit(context, batch)

    assert [again(context, order).status for order in orders] == [S.ACCEPTED] * 3


def test_what_was_bought_while_the_catalog_came_is_taken(
    market: Market, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submits of an earlier batch overlap with it."""
    context, checkouts = market
    first, second, _ = checkouts(612)
    orders = receive(context, first)
    batch = gather(context)
    assert batch is not None
    clock.advance(1)
    orders += receive(context, second)
    provider = context.provider("main")
    real = provider.quote

    def quote(wants: Sequence[Want]) -> Quotes:
        quotes = real(wants)
        submit(context, batch)
        return quotes

    monkeypatch.setattr(provider, "quote", quote)
    run_chain(context)

    assert [again(context, order).status for order in orders] == [S.ACCEPTED] * 2


def test_what_was_bought_before_the_catalog_was_asked_for_is_not_taken_out_of_it(
    context: Context, clock: FakeClock
) -> None:
    """The list has it no more: one of the same price in it is somebody else's to have."""
    receive(context, checkout(marketHashName=NAME))
    began = clock.now()
    run_chain(context)
    clock.advance(1)

    with context.database.transaction() as session:
        assert len(claims.quotes_taken(session, "main", [NAME], began)) == 1
        assert claims.quotes_taken(session, "main", [NAME], clock.now()) == []


def test_who_agreed_to_less_than_what_is_left_is_refused_by_the_price(market: Market) -> None:
    context, checkouts = market
    orders = receive(context, *checkouts(605))

    run_chain(context)

    found = [again(context, order) for order in orders]
    assert sorted(order.status for order in found) == [S.ACCEPTED, S.ACCEPTED, S.FAILED]
    (failed,) = (order for order in found if order.status is S.FAILED)
    assert failed.failure_code in ("price_changed", "item_unavailable")


@pytest.mark.parametrize("market", [ProviderName.SKINSNODE], indirect=True)
def test_who_ordered_one_item_gets_that_beside_who_agreed_to_less_for_any_of_its_name(
    market: Market,
) -> None:
    context, checkouts = market
    any_of_it, *_ = checkouts(606)
    name = any_of_it["marketHashName"]
    (cheapest,) = context.provider("main").quote([Want(name, name, or_by_name=True)]).found.values()
    one_item = checkout(
        catalogItemId=cheapest.catalog_item_id, marketHashName=name, expectedPrice=612
    )
    orders = receive(context, any_of_it, one_item)

    run_chain(context)

    found = [again(context, order) for order in orders]
    assert [order.status for order in found] == [S.ACCEPTED] * 2
    assert found[1].quoted_item_id is None


@pytest.mark.parametrize("market", [ProviderName.SKINSBACK, ProviderName.SKINSLINK], indirect=True)
@pytest.mark.parametrize(("mills", "bought"), [(6020, 1), (12110, 2), (18150, 2)])
def test_nobody_lacks_money_because_all_bid_as_much_as_the_dearest(
    market: Market, monkeypatch: pytest.MonkeyPatch, mills: int, bought: int
) -> None:
    """Who is left without waits for what the others do not spend, and never all of them."""
    context, checkouts = market
    orders = receive(context, *checkouts(612))
    monkeypatch.setattr(context.provider("main"), "wallet_mills", lambda: mills)
    batch = gather(context)
    assert batch is not None

    found = [again(context, order) for order in orders]
    assert [order.status for order in found].count(S.RESERVED) == bought
