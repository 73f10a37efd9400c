"""Proofs of the first judge: listings, shared runs."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest

from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused, ServerUnreachable
from fulfillment.providers.base import AfterUnknown
from fulfillment.providers.reading import Listed
from fulfillment.providers.skinsback import wire
from fulfillment.services import outcomes, purchases, submission
from fulfillment.services.answers import Refused
from fulfillment.services.budget import RateBudget
from fulfillment.services.context import Context
from fulfillment.services.listings import Bid, allot
from schemas.enums import FailureCode, ProviderName
from schemas.enums import OrderStatus as S
from schemas.provider import Quote, Quotes, Want
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.integration.test_listings import Market, market, of_one_name  # noqa: F401
from tests.integration.test_sharing import Gate, reserved, statuses
from tests.support import (
    WAIT_S,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    checkout,
    gather,
    receive,
    run_chain,
    run_sweep,
    submit,
    until,
)

NAME = "AK-47 | Redline (Field-Tested)"


def offer(item_id: str, mills: int) -> Quote:
    return Quote(item_id, NAME, mills)


def test_who_orders_one_item_gets_no_other_item_of_its_name() -> None:
    exact, by_name = Want("a", NAME), Want(NAME, NAME, or_by_name=True)
    a, b = offer("a", 6000), offer("b", 6050)
    quotes = Quotes({exact: a, by_name: a}, 2, dearer={exact: [], by_name: [b]})

    found = allot([Bid(1, by_name, 6060), Bid(2, exact, 6100)], quotes)

    assert found[2] == a
    assert found[1] == b


def test_who_wants_a_name_is_not_sent_to_the_dearest_where_one_wants_its_cheapest_item() -> None:
    exact, by_name = Want("a", NAME), Want(NAME, NAME, or_by_name=True)
    a, b, c = offer("a", 6000), offer("b", 6050), offer("c", 6100)
    quotes = Quotes({exact: a, by_name: a}, 3, dearer={exact: [], by_name: [b, c]})

    found = allot([Bid(1, exact, 6000), Bid(2, by_name, 6120), Bid(3, by_name, 6120)], quotes)

    assert [found[number] for number in (1, 2, 3)] == [a, b, c]


@pytest.mark.parametrize("market", [ProviderName.SKINSNODE], indirect=True)
def test_direct_order_is_bought_as_ordered(market: Market) -> None:  # noqa: F811
    context, checkouts = market
    (route, *_) = checkouts(606)
    quotes = context.provider("main").quote([Want(NAME, route["marketHashName"], or_by_name=True)])
    (cheapest,) = quotes.found.values()
    direct = checkout(
        catalogItemId=cheapest.catalog_item_id,
        marketHashName=cheapest.market_hash_name,
        expectedPrice=612,
    )
    orders = receive(context, route, direct)

    run_chain(context)

    found = again(context, orders[1])
    assert found.quoted_item_id is None, "another item was bought than the one that was ordered"
    assert [again(context, order).status for order in orders] == [S.ACCEPTED] * 2


def test_as_many_are_told_of_as_others_may_be_buying() -> None:
    """Three full batches of the default size are ahead."""
    listed = Listed()
    for place in range(300):
        listed.add(str(place), NAME, f"{6 + place / 1000:.3f}".encode())
    quotes = wire.quotes([Want(NAME, NAME, or_by_name=True)], listed)
    taken = [Quote(NAME, NAME, 6000 + place) for place in range(190)]

    found = allot([Bid(1, Want(NAME, NAME, or_by_name=True), 7000)], quotes, taken)

    assert found[1].price_mills == 6190


def test_what_was_bought_while_the_catalog_came_is_taken(
    market: Market,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Submits of an earlier batch overlap with it."""
    context, checkouts = market
    first, second, _ = checkouts(612)
    (one,) = receive(context, first)
    batch = gather(context)
    assert batch is not None
    (two,) = receive(context, second)
    provider = context.provider("main")
    real: Callable[[Sequence[Want]], Quotes] = provider.quote

    def quote(wants: Sequence[Want]) -> Quotes:
        quotes = real(wants)
        submit(context, batch)
        return quotes

    monkeypatch.setattr(provider, "quote", quote)
    run_chain(context)

    assert [again(context, each).status for each in (one, two)] == [S.ACCEPTED] * 2


def test_an_outcome_that_cannot_be_written_takes_no_other_with_it(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no lookup proves an absence, a no that is lost is a person's."""
    context = make_context(provider)
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 3)
    odd = batch["ids"][0]
    for _ in range(3):
        provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold out"))
    real = outcomes.write_outcomes

    def write_odd(context: Context, claim: Any, answers: Any) -> None:
        if any(order.id == odd and isinstance(a, Refused) for order, a in answers):
            raise ValueError("a bug")
        real(context, claim, answers)

    monkeypatch.setattr(submission, "write_outcomes", write_odd)
    monkeypatch.setattr(submission, "_GROUP_S", 1.0)
    with suppress(ValueError):
        submission.submit_orders(context, batch)
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)

    assert statuses(context) == {"failed": 2, "needs_review": 1}


def test_first_messages_that_wait_leave_threads_to_other_accounts(
    make_context: MakeContext,
) -> None:
    slow, quick = FakeProvider(), FakeProvider()
    account = {"provider": "skinsnode", "base_url": "http://127.0.0.1:9", "client_secret": "x" * 32}
    main = account | {"client_id": "a", "max_submits_in_flight": 2}
    context = make_context(accounts={"main": main, "second": account | {"client_id": "b"}})
    context._providers.update(main=slow, second=quick)
    batches = [reserved(context, 5) for _ in range(17)]
    gate = Gate(slow, held=2)
    receive(context, checkout(account="second"))

    with ThreadPoolExecutor(context.settings.worker_threads) as celery:
        for batch in batches:
            celery.submit(submission.submit_orders, context, batch)
        until(lambda: gate.came == 2)
        celery.submit(run_chain, context, "second")
        try:
            until(lambda: len(quick.bodies) == 1, within_s=5)
        finally:
            gate.open()


def end_all(context: Context, clock: FakeClock) -> None:
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)


def test_a_no_is_heard_although_what_another_told_of_the_account_cannot_be_kept(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 2})
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 2)
    one, _ = batch["names"]
    failed, real = threading.Event(), purchases.fail

    def on_purchase(fields: dict[str, Any]) -> None:
        if fields["external_id"] == one:
            raise ProviderOutcomeUnknown("timed out")
        assert failed.wait(WAIT_S)
        raise ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold out")

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(purchases, "fail", real)
        failed.set()
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    provider.on_purchase = on_purchase
    monkeypatch.setattr(purchases, "fail", fail_once)
    with suppress(ServerUnreachable):
        submission.submit_orders(context, batch)
    end_all(context, clock)

    assert statuses(context) == {"failed": 1, "needs_review": 1}


def test_what_was_begun_is_sent_although_the_budget_of_others_cannot_be_had(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 2, "rate_per_minute": 600})
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 3)
    real = RateBudget.take

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(RateBudget, "take", real)
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    monkeypatch.setattr(RateBudget, "take", fail_once)
    with suppress(ServerUnreachable):
        submission.submit_orders(context, batch)
    end_all(context, clock)

    assert statuses(context) == {"accepted": 3}


def test_runs_that_had_a_slot_once_leave_threads_to_other_accounts_too(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lost its slot to the next message while it wrote its first outcome."""
    slow, quick = FakeProvider(), FakeProvider()
    account = {"provider": "skinsnode", "base_url": "http://127.0.0.1:9", "client_secret": "x" * 32}
    main = account | {"client_id": "a", "max_submits_in_flight": 1}
    context = make_context(accounts={"main": main, "second": account | {"client_id": "b"}})
    context._providers.update(main=slow, second=quick)
    count = context.settings.worker_threads
    batches = [reserved(context, 2) for _ in range(count)]
    receive(context, checkout(account="second"))
    came: list[str] = []
    all_came, is_open = threading.Event(), threading.Event()
    real = outcomes.write_outcomes
    lock = threading.Lock()

    def on_purchase(fields: dict[str, Any]) -> None:
        came.append(fields["external_id"])
        if len(came) >= count:
            all_came.set()
            assert is_open.wait(WAIT_S)

    with ThreadPoolExecutor(count) as celery:

        def write(context: Context, claim: Any, answers: Any) -> None:
            if claim.account == "main" and not all_came.is_set():
                with lock:
                    if batches:
                        celery.submit(submission.submit_orders, context, batches.pop())
                assert all_came.wait(WAIT_S)
            real(context, claim, answers)

        slow.on_purchase = on_purchase
        monkeypatch.setattr(submission, "write_outcomes", write)
        celery.submit(submission.submit_orders, context, batches.pop())
        try:
            assert all_came.wait(WAIT_S)
            celery.submit(run_chain, context, "second")
            until(lambda: len(quick.bodies) == 1, within_s=5)
        finally:
            is_open.set()


@pytest.mark.parametrize("market", [ProviderName.SKINSBACK, ProviderName.SKINSLINK], indirect=True)
def test_who_wants_a_name_is_priced_beside_who_wants_its_cheapest_item(
    market: Market,  # noqa: F811
) -> None:
    context, checkouts = market
    route, *_ = checkouts(612)
    name = route["marketHashName"]
    with closing(market_simulator(context)) as simulator:
        cheapest = next(i for i in of_one_name(simulator) if i["price"] == 600)
    direct = checkout(catalogItemId=cheapest["id"], marketHashName=name, expectedPrice=612)
    orders = receive(context, route, direct)

    gather(context)

    assert [again(context, order).quoted_mills for order in orders] == [6050, 6000]


def market_simulator(context: Context) -> Simulator:
    url = context.account("main").base_url
    return Simulator(url.removesuffix("/api.php").removesuffix("/api/v1"), CLIENT_ID, SECRET)
