"""A provider tells of a purchase although nothing was sent: it is looked for first."""

from datetime import timedelta

import pytest

from fulfillment.errors import ProviderNotReached, ProviderRefused
from fulfillment.services import invariants, webhooks
from fulfillment.services.context import Context, register_accounts
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.money import cents_to_mills
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext, empty_tables
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    ITEM,
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    report,
    run_chain,
    run_sweep,
    view,
)


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


def hear(context: Context, main: FakeProvider, external_id: str, state: R, **told: object) -> None:
    """Take and apply a signed webhook of the first account."""
    main.notice = WebhookNotice(external_id, context.now(), report(state, external_id, **told))
    webhooks.take(context, "main", {}, state.encode())
    webhooks.apply_deliveries(context)


def go_on(context: Context, clock: FakeClock) -> None:
    for _ in range(20):
        clock.advance(10)
        run_chain(context)
        run_chain(context, "backup")
        run_sweep(context)


def broken(context: Context) -> set[str]:
    """Name the invariants that do not hold, but for what a relay would see to."""
    return {each.invariant for each in invariants.violations(context)} - {"outbox_waits"}


@pytest.mark.parametrize("state", [R.PENDING, R.COMPLETED])
def test_what_its_rows_do_not_know_of_is_adopted_and_bought_nowhere_else(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, state: R
) -> None:
    event = checkout(account="both", marketHashName=NAME)
    receive(context, event)
    run_chain(context)
    # A snapshot of the disk that nobody notices: nothing is in doubt.
    empty_tables(context.database)
    register_accounts(context)
    del main.prices[ITEM]
    clock.advance(100)
    (order,) = receive(context, event)

    main.says(order.external_id, state, charged_mills=cents_to_mills(PRICE_CENTS))
    hear(context, main, order.external_id, state, charged_mills=cents_to_mills(PRICE_CENTS))
    go_on(context, clock)

    assert len(main.bodies) + len(backup.bodies) == 1
    assert again(context, order).status is state.order_status()
    assert broken(context) == set()


def test_an_order_that_was_refused_there_and_is_there_is_not_bought_at_the_next_account(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=True)
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    run_chain(context)
    assert again(context, order).account == "backup"

    hear(context, main, order.external_id, R.SENT)
    go_on(context, clock)

    assert backup.bodies == []
    assert any("it may have been bought there" in e.note for e in view(context, order).timeline)
    clock.advance(timedelta(hours=2).total_seconds())
    go_on(context, clock)
    assert backup.bodies == []
    assert again(context, order).status is S.FAILED
    assert broken(context) == set()


def test_a_word_that_turns_out_to_be_about_nothing_only_delays_the_purchase(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))

    hear(context, main, order.external_id, R.PENDING)
    run_chain(context)
    assert main.bodies == []
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert (len(main.bodies), backup.bodies) == (1, [])


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_waits_for_funds_does_not_end_unasked_where_it_is_said_to_be_bought(
    context: Context, main: FakeProvider, clock: FakeClock, is_answered: bool
) -> None:
    main.balance_mills = 1
    (order,) = receive(context, checkout(account="main", marketHashName=NAME))
    run_chain(context)
    assert again(context, order).status is S.AWAITING_FUNDS
    main.says(order.external_id, R.SENT)
    if not is_answered:
        main.reads_fail(ProviderNotReached("HTTP 500", is_outage=True))

    hear(context, main, order.external_id, R.SENT)
    for _ in range(5):  # its deadlines are over long before the end
        clock.advance(2400)
        go_on(context, clock)
    while_away = again(context, order).status
    main.reads_fail(None)
    go_on(context, clock)

    assert while_away is (S.SENT if is_answered else S.AWAITING_FUNDS)
    assert again(context, order).status is S.SENT
    assert main.bodies == []
