"""Who waits for money and may be bought already keeps no money from orders that came later."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from fulfillment.errors import ProviderDeniesAccount, ProviderNotReached, ProviderRefused
from fulfillment.services import catalog, dispatch, funds, recovery
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_held_back import PRICE_MILLS
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    hear,
    receive,
    run_chain,
    run_sweep,
    run_ticks,
)

NO = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")
#: What pays for one order and not for two.
ENOUGH = PRICE_MILLS + 5


@pytest.fixture
def main() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, main: FakeProvider, backup: FakeProvider) -> Context:
    made = make_context(
        main,
        accounts={"main": ACCOUNT, "backup": ACCOUNT | {"client_id": "other"}},
        routes={"both": ["main", "backup"]},
    )
    made._providers["backup"] = backup
    return made


def one(context: Context, account: str) -> Order:
    (order,) = receive(context, checkout(account=account, marketHashName=NAME))
    return order


def no_lookups(what: str) -> None:
    if what.startswith("order"):
        raise ProviderNotReached("HTTP 502")


def waits_at_backup(context: Context, main: FakeProvider, *, is_there: bool = True) -> Order:
    """Give an order that main refused and that waits for money at backup."""
    main.fail_purchase(NO, is_made=is_there)
    order = one(context, "both")
    run_chain(context)
    run_chain(context, "backup")
    found = again(context, order)
    assert (found.account, found.funds_deadline_at is None) == ("backup", False)
    return found


def told_by_one_that_denies(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    order = waits_at_backup(context, main)
    hear(context, main, order.external_id, R.SENT)
    main.reads_fail(ProviderDeniesAccount("HTTP 401"))
    return order


def found_where_it_was_refused(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    order = waits_at_backup(context, main)
    hear(context, main, order.external_id, R.SENT)
    return order


def in_doubt(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    del main.prices[ITEM]
    order = one(context, "both")
    run_chain(context)
    run_chain(context, "backup")
    recovery.doubt(context, timedelta(hours=24))
    main.reads_fail(ProviderDeniesAccount("HTTP 401"))
    return order


def told_by_its_own_account(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    main.balance_mills = 0
    order = one(context, "main")
    run_chain(context)
    hear(context, main, order.external_id, R.SENT)
    main.on_read = no_lookups
    return order


Story = Callable[[Context, FakeProvider, FakeClock], Order]


@pytest.mark.parametrize(
    "story",
    [
        told_by_one_that_denies,
        found_where_it_was_refused,
        in_doubt,
        told_by_its_own_account,
    ],
)
def test_what_is_to_be_looked_for_keeps_no_money_from_what_came_later(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, story: Story
) -> None:
    backup.balance_mills = 0
    waiting = story(context, main, clock)
    account = again(context, waiting).account
    assert again(context, waiting).is_waiting
    clock.advance(1)
    later = one(context, account)
    run_chain(context, account)
    provider = main if account == "main" else backup
    provider.balance_mills = ENOUGH
    for _ in range(40):
        clock.advance(5)
        run_ticks(context)

    assert again(context, later).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert again(context, waiting).is_waiting
    assert_invariants(context)


def test_what_is_past_its_deadline_for_funds_looks_once_more_before_what_came_later(
    context: Context, main: FakeProvider, clock: FakeClock
) -> None:
    main.balance_mills = 0
    waiting = one(context, "main")
    run_chain(context)
    deadline = again(context, waiting).funds_deadline_at
    assert deadline is not None
    clock.advance((deadline - clock.now()).total_seconds() - 5)
    run_chain(context)
    later = one(context, "main")
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    assert batch["ids"] == [later.id]
    assert catalog.refresh_catalog(context, batch).goes_on

    clock.advance(6)  # nothing has looked at who waits since
    main.balance_mills = ENOUGH
    assert not funds.check_wallet(context, batch).goes_on
    run_sweep(context)

    assert again(context, waiting).status is S.ACCEPTED
    assert again(context, later).status is S.AWAITING_FUNDS
    assert len(main.bodies) == 1
    assert_invariants(context)


def test_the_search_for_what_waits_is_not_hurried_by_others_that_wait_for_money(
    context: Context, main: FakeProvider, clock: FakeClock
) -> None:
    waiting = told_by_its_own_account(context, main, clock)
    lookups = []
    for is_busy in (False, True):
        clock.advance(1800)
        run_ticks(context)
        main.reads.clear()
        for _ in range(60):
            if is_busy:
                one(context, "main")
            clock.advance(10)
            run_ticks(context)
        lookups.append(sum(what.startswith("order") for what in main.reads))

    assert again(context, waiting).status is S.AWAITING_FUNDS
    assert max(lookups) <= 20, lookups
    assert lookups[1] <= lookups[0]
