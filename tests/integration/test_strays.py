"""An account that an order has left says, signed, that it has it: nothing is bought elsewhere."""

import json

import pytest

from fulfillment.errors import ProviderError, ProviderNotReached, ProviderRefused
from fulfillment.services import brakes, webhooks
from fulfillment.services.context import Context
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
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
    messages_of,
    receive,
    report,
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


def hear(context: Context, shops: dict[str, FakeProvider], name: str, state: R, word: str) -> None:
    shops["main"].notice = WebhookNotice(name, context.now(), report(state, name, raw_status=word))
    webhooks.take(context, "main", {}, word.encode())
    webhooks.apply_deliveries(context)


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

    def tell(_: object) -> None:
        shops["backup"].on_purchase = lambda fields: None
        hear(context, shops, order.external_id, R.SENT, "sent")

    shops["backup"].on_purchase = tell
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
    hear(context, shops, order.external_id, R.SENT, "sent")
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

    hear(context, shops, order.external_id, R.UNKNOWN, f"no trade with {TOKEN}")

    notes = [entry.note for entry in view(context, order).timeline]
    assert "no trade with" in str(notes)
    assert TOKEN not in str(notes) + json.dumps(messages_of(context, order))
    assert TOKEN not in capsys.readouterr().out
