"""Routes while workers die and providers go away: at most one attempt is ever live."""

from typing import Any

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import catalog, dispatch, funds, outages, routes, submission
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_orders_store import assert_rebuilds
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    attempt_of,
    available,
    gather,
    in_threads,
    receive_one,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    view,
)

GONE = ProviderRefused("item_unavailable", "gone")
AWAY = ProviderNotReached("connection refused")


@pytest.fixture
def second() -> FakeProvider:
    """Give the provider of the account `backup`; `provider` is that of `main`."""
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider, second: FakeProvider) -> Context:
    accounts: dict[str, Any] = {"main": {}, "backup": {}}
    made = make_context(provider, accounts=accounts, routes={"any": "main,backup"})
    made._providers["backup"] = second
    return made


def routed(context: Context, **overrides: Any) -> Order:
    return receive_one(context, account="any", marketHashName=NAME, **overrides)


def states(context: Context, order: Order) -> list[tuple[str, str]]:
    query = "SELECT account, state FROM attempts WHERE order_id = %(id)s ORDER BY id"
    return [(row["account"], row["state"]) for row in rows(context, query, id=order.id)]


def pause(context: Context, account: str = "main") -> None:
    outages.pause(context, account, AWAY)


def test_an_order_whose_purchase_never_left_goes_on_from_a_paused_account(
    context: Context, provider: FakeProvider, second: FakeProvider
) -> None:
    order = routed(context)
    provider.fail_purchase(AWAY)
    run_chain(context)
    unsent = again(context, order)

    run_sweep(context)

    assert (unsent.status, unsent.account) == (S.SUBMITTING, "main")
    assert states(context, order) == [("main", "refused"), ("backup", "accepted")]
    assert (len(provider.orders), len(second.orders)) == (0, 1)
    assert available(context) == provider.balance_mills
    assert "main: the account is paused; trying backup" in [
        entry.note for entry in view(context, order).timeline
    ]
    assert_rebuilds(context, again(context, order))


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_order_goes_on_from_a_paused_account_whatever_step_it_is_at(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock, steps: int
) -> None:
    order = routed(context)
    if steps:
        batch = dispatch.dispatch(context, "main")
        assert batch is not None
        for step in (catalog.refresh_catalog, funds.check_wallet)[:steps]:
            assert step(context, batch).goes_on
        clock.advance(31)  # the worker died
    pause(context)

    run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert (len(provider.bodies), len(second.bodies)) == (0, 1)
    assert available(context) == provider.balance_mills if steps == 2 else True
    assert_rebuilds(context, again(context, order))


def test_what_may_have_left_stays_at_the_paused_account(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock
) -> None:
    order = routed(context)
    provider.fail_purchase(ProviderOutcomeUnknown("reset"), is_made=True)
    provider.fail_purchase(AWAY)
    run_chain(context)
    clock.advance(2)
    run_sweep(context)  # the repetition finds nobody: the first request is as unknown as before
    for _ in range(5):
        pause(context)
        run_sweep(context)
        clock.advance(40)

    assert states(context, order) == [("main", "sending")]
    assert second.bodies == []
    clock.advance(120)
    run_sweep(context)
    assert again(context, order).status is S.ACCEPTED
    assert again(context, order).account == "main"


def test_orders_without_a_route_and_orders_in_a_workers_hands_stay(
    context: Context, second: FakeProvider
) -> None:
    plain, held = receive_one(context), routed(context)
    batch = gather(context)
    assert batch is not None
    pause(context)

    assert routes.leave_paused(context) == []
    assert {again(context, order).account for order in (plain, held)} == {"main"}
    assert second.bodies == []


def test_a_worker_that_lost_its_order_to_another_account_sends_nothing(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock
) -> None:
    order = routed(context)
    batch = gather(context)
    assert batch is not None
    clock.advance(31)
    pause(context)
    assert routes.leave_paused(context) == [order.external_id]

    submission.submit_orders(context, batch)  # wakes up
    run_sweep(context)
    submission.submit_orders(context, batch)

    assert (len(provider.bodies), len(second.bodies)) == (0, 1)
    assert states(context, order) == [("main", "refused"), ("backup", "accepted")]


def test_a_sleeping_workers_intent_keeps_the_order_where_it_is(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock
) -> None:
    order = routed(context)
    seen: list[object] = []

    def sleep_through(fields: dict[str, Any]) -> None:
        if not seen:
            # The bytes are about to leave; its claim lapses, and the account is paused meanwhile.
            clock.advance(31)
            pause(context)
            seen.append(routes.leave_paused(context))

    provider.on_purchase = sleep_through
    run_chain(context)
    clock.advance(120)
    run_ticks(context)

    assert seen == [[]]
    assert states(context, order) == [("main", "accepted")]
    assert second.bodies == []


@pytest.mark.parametrize(("is_made", "sweeps"), [(True, 2), (False, 2), (False, 1)])
def test_an_answer_that_comes_after_the_order_has_gone_on_is_not_taken_for_the_seconds(
    context: Context,
    provider: FakeProvider,
    second: FakeProvider,
    clock: FakeClock,
    is_made: bool,
    sweeps: int,
) -> None:
    order = routed(context)
    provider.fail_purchase(GONE)
    if not is_made:
        provider.fail_purchase(ProviderOutcomeUnknown("timeout"))

    def oversleep(fields: dict[str, Any]) -> None:
        provider.on_purchase = lambda fields: None
        for _ in range(sweeps):  # others take over, believe the repetition's no, and go on
            clock.advance(40)
            run_sweep(context)

    provider.on_purchase = oversleep
    run_chain(context)
    for _ in range(15):
        clock.advance(10)
        run_sweep(context)

    tells = [entry.note for entry in view(context, order).timeline if "went on from" in entry.note]
    if is_made:  # the last look before the second buys finds it
        assert (states(context, order), second.bodies) == ([("main", "refused")], [])
        assert again(context, order).status is S.SUBMITTING
        assert tells
        return
    attempt = attempt_of(context, order)
    assert states(context, order) == [("main", "refused"), ("backup", "accepted")]
    assert (attempt.account, attempt.empty_lookups, attempt.unknown_since) == ("backup", 0, None)
    assert again(context, order).status is S.ACCEPTED
    assert tells == []


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_rerouted_order_is_bought_once_whatever_step_was_lost(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock, steps: int
) -> None:
    provider.fail_purchase(GONE)
    order = routed(context)
    run_chain(context)
    if steps:
        batch = dispatch.dispatch(context, "backup")
        assert batch is not None
        for step in (catalog.refresh_catalog, funds.check_wallet)[: steps - 1]:
            assert step(context, batch).goes_on
    status_between = again(context, order).status
    clock.advance(31)  # the worker died

    for _ in range(3):
        run_ticks(context)
        clock.advance(31)

    assert status_between is S.SUBMITTING
    assert again(context, order).status is S.ACCEPTED
    assert (len(provider.orders), len(second.bodies)) == (0, 1)
    assert states(context, order) == [("main", "refused"), ("backup", "accepted")]
    assert_rebuilds(context, again(context, order))


def test_many_sweeps_at_once_move_each_order_once(
    context: Context, provider: FakeProvider, second: FakeProvider
) -> None:
    placed = [routed(context) for _ in range(20)]
    pause(context)

    in_threads(8, lambda place: routes.leave_paused(context))
    run_sweep(context)

    assert len(second.bodies) == len(placed)
    for order in placed:
        notes = [entry.note for entry in view(context, order).timeline]
        assert sum("trying backup" in note for note in notes) == 1


def test_a_delivery_is_booked_at_the_account_that_made_it(
    context: Context, provider: FakeProvider, second: FakeProvider, clock: FakeClock
) -> None:
    provider.fail_purchase(GONE)
    order = routed(context)
    run_chain(context)
    run_sweep(context)
    second.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)
    clock.advance(60)
    run_ticks(context)

    query = "SELECT account, kind FROM wallet_entries WHERE order_id = %(id)s ORDER BY id"
    booked = [(row["account"], row["kind"]) for row in rows(context, query, id=order.id)]
    assert booked == [
        ("main", "hold"),
        ("main", "release"),
        ("backup", "hold"),
        ("backup", "settle"),
    ]


def test_an_account_that_is_no_longer_configured_is_passed_over(
    context: Context, provider: FakeProvider, second: FakeProvider
) -> None:
    order = routed(context)
    del context.settings.accounts["backup"]
    provider.fail_purchase(GONE)

    run_chain(context)

    assert again(context, order).status is S.FAILED
    assert again(context, order).failure_code == "item_unavailable"


class Slow(FakeProvider):
    """Its worker sleeps through its claim between the intent and the request."""

    clock: FakeClock

    @property
    def after_unknown(self) -> AfterUnknown:  # type: ignore[override]
        self.clock.advance(31 if self.bodies else 0)
        return AfterUnknown.LOOKUP_ONLY


def test_a_lookup_that_was_not_sent_leaves_the_purchase_before_it_unknown(
    make_context: MakeContext, clock: FakeClock
) -> None:
    slow = Slow()
    slow.clock = clock
    context = make_context(slow)
    order = receive_one(context)
    slow.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    run_chain(context)

    clock.advance(2)
    run_sweep(context)

    attempt = attempt_of(context, order)
    assert attempt.unknown_since is not None
    assert attempt.posts == 1
    assert len(slow.bodies) == 1


def test_code_of_before_goes_on_to_insert_and_read_orders(context: Context) -> None:
    order = routed(context)
    with context.database.transaction() as session:
        columns = (
            "external_id, account, fingerprint, catalog_item_id, expected_price_cents, submit_by, "
            "status, overdue, polls, sequence, created_at, updated_at"
        )
        session.execute(
            (
                f"INSERT INTO orders ({columns}) SELECT 'old', "
                f"{columns.removeprefix('external_id, ')} FROM orders WHERE id = %(id)s"
            ),
            {"id": order.id},
        )

    (row,) = rows(context, "SELECT * FROM orders WHERE external_id = 'old'")
    assert (row["route"], row["fallbacks"], row["between_attempts"]) == (None, [], False)
