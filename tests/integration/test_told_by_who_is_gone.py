"""An account that may have an order is gone, or another merchant's: nobody buys it instead."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused
from fulfillment.services import routes, webhooks
from fulfillment.services.context import Context
from fulfillment.store import purchases
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    gather,
    hear,
    receive,
    report,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
)

OTHER = ACCOUNT | {"client_id": "other"}
NO = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")


@pytest.fixture
def main() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, main: FakeProvider, backup: FakeProvider) -> Context:
    made = make_context(
        main, accounts={"main": ACCOUNT, "backup": OTHER}, routes={"both": ["main", "backup"]}
    )
    made._providers["backup"] = backup
    return made


def without_main(make_context: MakeContext, how: str, anybody: FakeProvider) -> Context:
    """Give a process of the settings that came after, all of whose accounts are at `anybody`."""
    accounts: dict[str, Any] = {"backup": OTHER}
    if how == "another merchant's":
        accounts["main"] = ACCOUNT | {"client_id": "new"}
    return make_context(anybody, accounts=accounts, routes={"both": sorted(accounts)[::-1]})


def bought_at_main(context: Context, main: FakeProvider, clock: FakeClock, story: str) -> Order:
    """Give an order that main has, and of which our rows do not have that it was bought."""
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    if story == "refused, then told of":
        main.fail_purchase(NO, is_made=True)
        run_chain(context)
        hear(context, main, order.external_id, R.SENT)
    else:
        main.fail_purchase(ProviderOutcomeUnknown("lost"))
        for _ in range(30):
            main.fail_purchase(NO)
        run_chain(context)
        while again(context, order).account == "main":
            clock.advance(5)
            run_sweep(context)
        main.says(order.external_id, R.SENT)
    assert again(context, order).account == "backup"
    return order


@pytest.mark.parametrize("how", ["removed", "another merchant's"])
@pytest.mark.parametrize("story", ["refused, then told of", "unknown, then refused"])
def test_what_an_account_had_that_is_gone_is_bought_nowhere_and_ends_by_its_time(
    make_context: MakeContext,
    context: Context,
    main: FakeProvider,
    clock: FakeClock,
    story: str,
    how: str,
) -> None:
    order = bought_at_main(context, main, clock, story)
    clock.advance(1)
    anybody = FakeProvider()
    after = without_main(make_context, how, anybody)

    with capture_logs() as logs:
        for _ in range(40):
            clock.advance(30)
            run_sweep(after)
    assert anybody.bodies == []
    assert again(after, order).status is not S.FAILED
    (told, *_) = [line for line in logs if line["event"] == "order.not_searchable"]
    assert "main" in told["orders"][order.external_id]

    for _ in range(12):
        clock.advance(900)
        run_ticks(after)
    assert again(after, order).failure_code == "too_late"
    assert anybody.bodies == []
    assert_invariants(after)


@pytest.mark.parametrize("how", ["removed", "another merchant's"])
def test_what_an_account_told_of_that_was_sent_nothing_and_is_gone_is_bought_nowhere(
    make_context: MakeContext, context: Context, main: FakeProvider, clock: FakeClock, how: str
) -> None:
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    hear(context, main, order.external_id, R.SENT)
    clock.advance(1)
    anybody = FakeProvider()
    after = without_main(make_context, how, anybody)

    for _ in range(24):
        clock.advance(400)
        run_ticks(after)

    assert again(after, order).failure_code == "too_late"
    assert anybody.bodies == []
    assert_invariants(after)


@pytest.mark.parametrize("how", ["removed", "another merchant's"])
@pytest.mark.parametrize("why", ["not on sale", "held and not sent"])
def test_an_account_that_is_gone_and_was_sent_nothing_keeps_no_order_back(
    make_context: MakeContext,
    context: Context,
    main: FakeProvider,
    clock: FakeClock,
    why: str,
    how: str,
) -> None:
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    if why == "not on sale":
        del main.prices[ITEM]
        run_chain(context)
    else:
        assert gather(context) is not None
        with context.database.transaction() as session:
            purchases.pause(session, "main", context.now() + context.cache_time * 10, "x")
        clock.advance(100)
        routes.leave_paused(context)
    sent_to_main = "SELECT posts FROM attempts WHERE account = 'main'"
    posts = [row["posts"] for row in rows(context, sent_to_main)]
    assert again(context, order).account == "backup"
    assert posts == ([] if why == "not on sale" else [0])
    assert main.bodies == []

    anybody = FakeProvider()
    after = without_main(make_context, how, anybody)
    anybody.notice = WebhookNotice(
        order.external_id, after.now(), report(R.SENT, order.external_id)
    )
    webhooks.take(after, "backup", {}, b"sent")
    webhooks.apply_deliveries(after)
    for _ in range(10):
        clock.advance(10)
        run_chain(after, "backup")
        run_sweep(after)

    assert (again(after, order).status, again(after, order).account) == (S.ACCEPTED, "backup")
    assert len(anybody.bodies) == 1
    assert "order " + order.external_id in anybody.reads
    assert_invariants(after)
