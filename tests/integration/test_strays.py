"""An account that an order has left says, signed, that it has it: nothing is bought elsewhere."""

import json
from typing import Any

import pytest

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.services import brakes, watchdog
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    NAME,
    TOKEN,
    FakeClock,
    FakeProvider,
    again,
    available,
    checkout,
    gather,
    hear,
    messages_of,
    receive,
    run_chain,
    run_sweep,
    run_ticks,
    view,
)

NAMES = ("main", "backup", "third")
GONE = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")


@pytest.fixture
def shops() -> dict[str, FakeProvider]:
    """Give the three accounts' providers; the first refuses what it takes all the same."""
    found = {name: FakeProvider() for name in NAMES}
    found["main"].fail_purchase(GONE, is_made=True)
    return found


@pytest.fixture
def context(make_context: MakeContext, shops: dict[str, FakeProvider]) -> Context:
    accounts = {name: ACCOUNT | {"client_id": name} for name in NAMES}
    made = make_context(shops["main"], accounts=accounts, routes={"all": list(NAMES)})
    made._providers.update(shops)
    return made


def hear_while_it_buys(context: Context, shops: dict[str, FakeProvider], order: Order) -> None:
    """Have the first account tell of the order while it is posted to the next."""

    def tell(_: object) -> None:
        shops["backup"].on_purchase = lambda fields: None
        hear(context, shops["main"], order.external_id, R.SENT)

    shops["backup"].on_purchase = tell


@pytest.fixture
def unknown(context: Context, shops: dict[str, FakeProvider], request: Any) -> Order:
    """Give an order of which the first account told while its purchase at the next got lost.

    The parameter says whether the next account has it.
    """
    (order,) = receive(context, checkout(account="all", marketHashName=NAME))
    run_chain(context)
    shops["backup"].fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=request.param)
    hear_while_it_buys(context, shops, order)
    run_chain(context, "backup")
    assert again(context, order).status is S.SUBMITTING
    return order


def go_on(context: Context, clock: FakeClock) -> None:
    for _ in range(40):
        clock.advance(10)
        for name in NAMES:
            run_chain(context, name)
        run_sweep(context)


@pytest.mark.parametrize("answer", [GONE, ProviderNotReached("nothing was sent")])
def test_news_while_a_request_to_the_next_is_under_way_counts_if_that_buys_nothing(
    context: Context, shops: dict[str, FakeProvider], clock: FakeClock, answer: ProviderError
) -> None:
    (order,) = receive(context, checkout(account="all", marketHashName=NAME))
    run_chain(context)
    shops["backup"].fail_purchase(answer)
    hear_while_it_buys(context, shops, order)
    go_on(context, clock)

    assert not shops["backup"].orders
    assert not shops["third"].orders
    assert "it may have been bought twice" in str(view(context, order).timeline)


@pytest.mark.parametrize("is_stopped", [True, False])
def test_what_is_held_and_cannot_be_searched_ends_and_frees_its_money(
    context: Context, shops: dict[str, FakeProvider], clock: FakeClock, is_stopped: bool
) -> None:
    (order,) = receive(context, checkout(account="all", marketHashName=NAME))
    run_chain(context)
    assert gather(context, "backup") is not None  # money is held; then the worker dies
    if is_stopped:
        brakes.stop(context, "backup", "x", "test")
    clock.advance(60)
    hear(context, shops["main"], order.external_id, R.SENT)
    shops["main"].reads_fail(ProviderNotReached("down", is_outage=True))
    for _ in range(20):
        clock.advance(900)
        run_ticks(context)

    assert again(context, order).status is S.FAILED
    assert not shops["backup"].orders
    assert available(context, "backup") == shops["backup"].balance_mills
    told = [message["type"] for message in messages_of(context, order)]
    assert told.count("order.needs_review") >= 2


def test_a_trade_token_in_the_words_of_an_account_that_was_left_is_kept_nowhere(
    context: Context,
    shops: dict[str, FakeProvider],
    clock: FakeClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (order,) = receive(context, checkout(account="all", marketHashName=NAME))
    run_chain(context)

    hear(context, shops["main"], order.external_id, R.UNKNOWN, raw_status=f"no trade with {TOKEN}")

    notes = [entry.note for entry in view(context, order).timeline]
    assert "no trade with" in str(notes)
    assert TOKEN not in str(notes) + json.dumps(messages_of(context, order))
    assert TOKEN not in capsys.readouterr().out


DOWN = ProviderNotReached("down", is_outage=True)
DENIED = ProviderDeniesAccount("401")


@pytest.mark.parametrize("why", [DOWN, DENIED])
@pytest.mark.parametrize("unknown", [True], indirect=True)
def test_a_lost_purchase_is_found_though_the_account_that_told_cannot_be_asked(
    context: Context,
    shops: dict[str, FakeProvider],
    clock: FakeClock,
    unknown: Order,
    why: ProviderError,
) -> None:
    shops["main"].reads_fail(why)
    go_on(context, clock)

    now = again(context, unknown)
    assert (now.status, now.account) == (S.ACCEPTED, "backup")
    assert len(shops["backup"].bodies) == 1


@pytest.mark.parametrize("unknown", [False], indirect=True)
def test_a_lost_purchase_that_nobody_knows_is_left_to_a_person_and_never_sent_again(
    context: Context, shops: dict[str, FakeProvider], clock: FakeClock, unknown: Order
) -> None:
    shops["main"].reads_fail(DOWN)
    for _ in range(40):
        clock.advance(900)
        run_ticks(context)

    assert again(context, unknown).status is S.NEEDS_REVIEW
    assert len(shops["backup"].bodies) == 1
    assert not shops["third"].bodies


@pytest.mark.parametrize("unknown", [True], indirect=True)
def test_the_end_that_the_account_of_a_lost_purchase_tells_is_taken(
    context: Context, shops: dict[str, FakeProvider], clock: FakeClock, unknown: Order
) -> None:
    shops["main"].says(unknown.external_id, R.SENT)
    shops["backup"].says(unknown.external_id, R.FAILED, failure_code="item_unavailable")
    go_on(context, clock)

    assert again(context, unknown).status is not S.SUBMITTING
    assert not shops["third"].bodies


@pytest.mark.parametrize("unknown", [False], indirect=True)
def test_a_lost_purchase_does_not_keep_others_from_their_end(
    context: Context,
    shops: dict[str, FakeProvider],
    clock: FakeClock,
    unknown: Order,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brakes.stop(context, "third", "x", "test")
    (late,) = receive(context, checkout(account="third", marketHashName=NAME))
    monkeypatch.setattr(watchdog, "_LIMIT", 1)
    clock.advance(3 * 3600)
    watchdog.expire_waiting(context)

    assert again(context, unknown).status is S.SUBMITTING
    assert again(context, late).status is S.FAILED
