"""Everything that was said in between may be lost: what the rows say is enough to finish."""

import itertools

import pytest

from fulfillment.errors import ProviderOutcomeUnknown
from fulfillment.services import catalog, dispatch, funds, submission, sweep
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    available,
    checkout,
    entries,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10


def test_orders_whose_every_message_was_lost_still_come_to_their_true_end(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    scenarios = [
        "webhooks_lost",
        "webhooks_lost",
        "fails_after_accept",
        "cancelled",
        "declined",
        "error_after_accept",
        "dropped_before_accept",
        "unknown_status",
    ]
    raws = [simulator.checkout(name, place) for place, name in enumerate(scenarios)]
    placed = receive(simulated, *raws)

    for _ in range(40):
        run_ticks(simulated)
        clock.advance(10)
        simulator.jump(10)

    assert_agrees(simulated, simulator, placed)
    assert available(simulated) == simulator.ask("GET", "/ledger")["wallet"]["balance"] * 10


def assert_agrees(context: Context, simulator: Simulator, placed: list[Order]) -> None:
    """Compare our view of every order with the provider's own record, to the cent."""
    for order in placed:
        purchase = simulator.purchase(order)
        shown = view(context, order)
        assert purchase is not None
        assert shown.status == purchase["status"]
        kept = purchase["amountCents"] - purchase["refundedCents"]
        assert (shown.charged_price or 0) == kept
        settled = sum(mills for kind, mills in entries(context, order) if kind == "settle")
        assert settled == kept * 10


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_whatever_step_was_lost_the_sweep_goes_on_from_there(
    context: Context, provider: FakeProvider, clock: FakeClock, steps: int
) -> None:
    placed = receive(context, *(checkout() for _ in range(5)))
    if steps:
        batch = dispatch.dispatch(context, "main")
        assert batch is not None
        for step in (catalog.refresh_catalog, funds.check_wallet)[: steps - 1]:
            step(context, batch)

    clock.advance(31)
    run_sweep(context)

    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.bodies) == 5


def test_what_a_living_worker_holds_is_left_to_it(context: Context, clock: FakeClock) -> None:
    receive_one(context)
    dispatch.dispatch(context, "main")

    clock.advance(29)
    found = sweep.resume_stuck(context)

    assert (found.accounts, found.batches) == ([], [])


def test_a_sweep_that_dies_after_its_claim_costs_one_lease(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    clock.advance(2)
    lost = sweep.resume_stuck(context)

    clock.advance(29)
    during = sweep.resume_stuck(context).batches
    clock.advance(2)
    run_sweep(context)

    assert [batch["ids"] for batch in lost.batches] == [[order.id]]
    assert during == []
    assert again(context, order).status is S.ACCEPTED


def test_unknown_outcomes_are_asked_about_about_a_second_later_and_then_ever_more_rarely(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    for _ in range(100):
        provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    tries = []

    for second in range(1, 181):
        clock.advance(1)
        before = len(provider.bodies)
        run_sweep(context)
        tries += [second] * (len(provider.bodies) - before)

    assert tries[0] <= 2
    assert len(tries) <= 12
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert max(gaps) <= 36


def test_money_of_failed_orders_comes_back_although_nobody_buys_anything(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.FAILED, failure_code="item_unavailable")
    provider.balance_mills += PRICE_MILLS
    clock.advance(31)
    run_polls(context)

    clock.advance(36)
    run_sweep(context)

    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]
    assert available(context) == provider.balance_mills


def test_the_wallet_is_not_asked_when_no_money_waits_for_it(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    clock.advance(40)
    run_sweep(context)
    before = provider.reads.count("wallet")

    for _ in range(20):
        clock.advance(40)
        run_sweep(context)

    assert provider.reads.count("wallet") == before


def test_a_wallet_that_pays_at_the_end_is_not_asked_while_orders_are_under_way(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"debits_at": "final"})
    order = receive_one(context)
    run_chain(context)
    before = provider.reads.count("wallet")

    for _ in range(5):
        clock.advance(40)
        run_sweep(context)
    during = provider.reads.count("wallet")
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    run_polls(context)
    clock.advance(40)
    run_sweep(context)

    assert during == before
    assert provider.reads.count("wallet") == before + 1


def test_orders_of_an_account_that_is_no_longer_configured_wait_and_stop_nobody(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    orphan, order = receive(context, checkout(), checkout())
    update = "UPDATE orders SET account = 'removed' WHERE id = %(id)s RETURNING 1"
    rows(context, update, id=orphan.id)

    for _ in range(3):
        run_ticks(context)
        clock.advance(31)

    assert again(context, order).status is S.ACCEPTED
    assert again(context, orphan).status is S.RECEIVED


def test_an_order_that_waits_at_a_provider_that_is_away_ends_too_late(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    rows(
        context,
        "UPDATE accounts SET paused_until = %(until)s RETURNING 1",
        until=context.now().replace(year=2099),
    )

    clock.advance(3601)
    run_sweep(context)

    assert again(context, order).failure_code == "too_late"


def test_a_reserved_order_at_a_provider_that_is_away_ends_too_late_and_frees_its_money(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    catalog.refresh_catalog(context, batch)
    funds.check_wallet(context, batch)
    rows(
        context,
        "UPDATE accounts SET paused_until = %(until)s RETURNING 1",
        until=context.now().replace(year=2099),
    )

    clock.advance(3601)
    run_sweep(context)
    late_step = submission.submit_orders(context, batch)

    assert again(context, order).failure_code == "too_late"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]
    assert provider.bodies == []
    assert not late_step
