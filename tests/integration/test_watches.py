"""What stops an account by itself: deliveries undone in one act, and money that nobody took."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from fulfillment.services import brakes, operations, reconciliation
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.orders import AccountView
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    take_figure,
)

PRICE_MILLS = PRICE_CENTS * 10
#: Deliveries of long ago are asked about so often.
POLLS_APART_S = 6 * 3600


def turns(context: Context) -> list[tuple[str, str]]:
    """Give who has turned which switch, oldest first."""
    found = rows(context, "SELECT account, by FROM account_switches ORDER BY id")
    return [(row["account"], row["by"]) for row in found]


def shown(context: Context) -> AccountView:
    (view,) = brakes.show_accounts(context)
    return view


def delivered(
    context: Context, provider: FakeProvider, clock: FakeClock, count: int
) -> list[Order]:
    """Give deliveries of days ago, whose polls are spread evenly over six hours."""
    placed = receive(context, *(checkout() for _ in range(count)))
    run_chain(context)
    says(provider, placed, R.COMPLETED)
    clock.advance(60)
    run_polls(context)
    clock.advance(3 * 86_400)
    update = """
        UPDATE orders SET next_poll_at = %(now)s + (id - %(first)s) * %(gap)s,
               polled_at = %(now)s + (id - %(first)s) * %(gap)s - %(apart)s RETURNING 1
        """
    apart = timedelta(seconds=POLLS_APART_S)
    times = {"now": clock.now(), "gap": apart / count, "apart": apart}
    rows(context, update, first=placed[0].id, **times)
    return placed


def says(provider: FakeProvider, placed: list[Order], state: R) -> None:
    for order in placed:
        provider.says(order.external_id, state, charged_mills=PRICE_MILLS)


def poll_for(context: Context, clock: FakeClock, hours: float) -> None:
    for _ in range(round(hours * 6)):
        clock.advance(600)
        run_polls(context)


def due_times(context: Context) -> list[datetime]:
    query = "SELECT next_poll_at FROM orders WHERE next_poll_at IS NOT NULL ORDER BY 1"
    return [row["next_poll_at"] for row in rows(context, query)]


def test_one_act_that_undoes_deliveries_of_days_is_found_within_the_hour(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    """No webhook comes, and routine polls alone find fewer in any hour than stop the account."""
    context = make_context(provider, main={"stop_at_reversals": 12})
    context.jitter = random.Random(2).random
    placed = delivered(context, provider, clock, 48)
    says(provider, placed, R.REVERSED)

    poll_for(context, clock, 1)
    after = receive_one(context)
    run_sweep(context)

    assert turns(context) == [("main", "reversal watch")]
    assert again(context, after).status is S.RECEIVED

    poll_for(context, clock, 6)
    assert {again(context, order).status for order in placed} == {S.REVERSED}
    assert turns(context) == [("main", "reversal watch")]


def test_deliveries_are_looked_at_early_in_step_with_the_budget_and_once_an_hour(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = delivered(make_context(provider), provider, clock, 48)
    context = make_context(provider, main={"rate_per_minute": 60})
    says(provider, placed[:8], R.REVERSED)  # each found at its time, within the hour
    fullest: list[datetime] = []
    for _ in range(59):
        clock.advance(60)
        run_polls(context)
        soon = [at for at in due_times(context) if at <= clock.now() + timedelta(minutes=20)]
        fullest = max(fullest, soon, key=len)

    minutes = Counter((at - fullest[0]) // timedelta(minutes=1) for at in fullest)
    asked = rows(context, "SELECT max(polls) AS most, sum(polls) AS n FROM orders")[0]
    assert len(fullest) > 30
    assert max(minutes.values()) <= 4  # three of them early, beside a routine one
    assert turns(context) == []
    assert asked["most"] == 2  # with the one at its delivery
    assert asked["n"] >= 2 * 45


def test_a_few_deliveries_undone_stop_nothing_and_a_resumed_account_forgets_the_old_ones(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"stop_at_reversals": 5})
    placed = delivered(context, provider, clock, 12)
    says(provider, placed[:4], R.REVERSED)
    poll_for(context, clock, 2)
    at_first = turns(context)
    says(provider, placed[4:10], R.REVERSED)
    poll_for(context, clock, 6)
    assert brakes.resume(context, "main", "a known buyer", "anna@host")

    says(provider, placed[10:], R.REVERSED)
    poll_for(context, clock, 6)

    assert at_first == []
    assert turns(context) == [("main", "reversal watch"), ("main", "anna@host")]
    assert {again(context, order).status for order in placed} == {S.REVERSED}


def undo(context: Context, provider: FakeProvider, clock: FakeClock, placed: list[Order]) -> None:
    says(provider, placed, R.REVERSED)
    reconciliation.reconcile_now(context, [order.external_id for order in placed])
    clock.advance(31)
    run_polls(context)
    assert {again(context, order).status for order in placed} == {S.REVERSED}


def stop_by_a_person(context: Context, provider: FakeProvider) -> None:
    brakes.stop(context, "main", "a look at something else", "anna@host")


def stop_by_the_wallet(context: Context, provider: FakeProvider) -> None:
    provider.balance_mills -= 5_000_000
    take_figure(context)


Stops = Callable[[Context, FakeProvider], None]


@pytest.mark.parametrize("is_resumed", [True, False])
@pytest.mark.parametrize("stops", [stop_by_a_person, stop_by_the_wallet])
def test_the_count_of_deliveries_undone_goes_on_through_stops_for_other_reasons(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    stops: Stops,
    is_resumed: bool,
) -> None:
    limits = {"stop_at_reversals": 10, "stop_at_unexplained_cents": 1000}
    context = make_context(provider, main=limits)
    placed = delivered(context, provider, clock, 18)
    take_figure(context)
    undo(context, provider, clock, placed[:9])
    clock.advance(60)
    stops(context, provider)
    clock.advance(10)
    if is_resumed:
        assert brakes.resume(context, "main", "was nothing", "anna@host")
    at_first = turns(context)

    undo(context, provider, clock, placed[9:])

    assert len(at_first) == 1 + is_resumed
    assert turns(context)[len(at_first) :] == [("main", "reversal watch")]


def test_who_resumes_two_stops_at_once_was_told_of_both(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    limits = {"stop_at_reversals": 6, "stop_at_unexplained_cents": 1000}
    context = make_context(provider, main=limits)
    placed = delivered(context, provider, clock, 14)
    take_figure(context)
    undo(context, provider, clock, placed[:6])
    clock.advance(60)
    stop_by_the_wallet(context, provider)
    ended = brakes.resume(context, "main", "a known buyer", "anna@host")
    before = turns(context)
    undo(context, provider, clock, placed[6:10])
    after = turns(context)
    undo(context, provider, clock, placed[10:])

    assert ended is not None
    assert "stopped before that by reversal watch: 6 deliveries were undone" in ended.reason
    assert after == before
    assert turns(context) == [*before, ("main", "reversal watch")]


@pytest.mark.parametrize("account", [None, "main"])
def test_deliveries_undone_while_a_person_has_stopped_all_stop_the_account_when_that_is_over(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, account: str | None
) -> None:
    context = make_context(provider, main={"stop_at_reversals": 5})
    placed = delivered(context, provider, clock, 12)
    brakes.stop(context, account, "something smells", "anna@host")
    says(provider, placed, R.REVERSED)
    poll_for(context, clock, 6)
    reason = shown(context).stop_reason

    if account is None:
        assert brakes.resume(context, None, "it was the drains", "anna@host")
    after = receive_one(context)
    run_sweep(context)
    while_stopped = again(context, after).status
    assert brakes.resume(context, "main", "a known buyer", "anna@host")
    run_sweep(context)

    assert reason is not None
    assert "deliveries were undone within an hour" in reason
    told = "stopped before that by anna@host: something smells"
    assert (told in reason) is (account is not None)
    assert turns(context).count(("main", "reversal watch")) == 1
    assert while_stopped is S.RECEIVED
    assert again(context, after).status is S.ACCEPTED


@pytest.mark.parametrize("account", [None, "main"])
def test_money_gone_while_a_person_has_stopped_all_stops_the_account_when_that_is_over(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, account: str | None
) -> None:
    context = make_context(provider, main={"stop_at_unexplained_cents": 1000})
    take_figure(context)
    brakes.stop(context, account, "maintenance", "anna@host")
    clock.advance(100)
    provider.balance_mills -= 5_000_000
    take_figure(context)
    reason = shown(context).stop_reason

    if account is None:
        assert brakes.resume(context, None, "done", "anna@host")
    clock.advance(100)
    after = receive_one(context)
    run_sweep(context)

    assert reason is not None
    assert reason.startswith("500000 cents went from the wallet")
    assert again(context, after).status is S.RECEIVED
    assert turns(context).count(("main", "wallet watch")) == 1


def test_money_that_went_before_anybody_set_a_limit_stops_the_account_at_the_next_balance(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(provider)
    take_figure(before)
    provider.balance_mills -= 20_000
    clock.advance(10)
    take_figure(before)
    context = make_context(provider, main={"stop_at_unexplained_cents": 1000})

    after = receive_one(context)
    run_sweep(context)

    assert turns(context) == [("main", "wallet watch")]
    assert again(context, after).status is not S.ACCEPTED
    assert provider.bodies == []


def test_a_resumed_account_is_stopped_by_its_wallet_only_for_money_that_went_since(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"stop_at_unexplained_cents": 500})
    take_figure(context)
    stopped = []
    for cents in (600, 0, 400, 0, 100, 0):
        provider.balance_mills -= cents * 10
        clock.advance(10)
        take_figure(context)
        stopped.append(shown(context).stop_reason)
        brakes.resume(context, "main", "looked into", "anna@host")

    assert [reason and reason.split(" ")[0] for reason in stopped] == [
        *("600", None, None, None, "500", None)
    ]
    (wallet,) = operations.wallets(context)
    assert wallet.unexplained == 1100
