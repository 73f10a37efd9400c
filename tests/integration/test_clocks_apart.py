"""Machines whose clocks are less than a minute apart buy as one: all go by the database's clock."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from fulfillment.clock import SystemClock
from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused
from fulfillment.services import clock_guard, sweep
from fulfillment.services.context import Context
from fulfillment.services.operations import Check, check_readiness
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from tests.conftest import MakeContext
from tests.support import (
    NAME,
    FakeProvider,
    again,
    gather,
    receive_one,
    rows,
    run_chain,
    run_sweep,
)

#: What the reading of two clocks and a test's own work may take.
NEARLY = timedelta(seconds=3)


class MachineClock(SystemClock):
    """A machine's clock, which may be set wrong; time also passes where a test says so."""

    def __init__(self, ahead_s: float = 0) -> None:
        self.ahead_s = ahead_s
        self.passed_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s + self.passed_s)

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_s


def on_machine(context: Context, ahead_s: float = 0) -> tuple[Context, MachineClock]:
    """Give the context of a process on a machine of its own, at the beginning of a task."""
    clock = MachineClock(ahead_s)
    own = replace(context, clock=clock, next_beats={}, clock_seen=None, _budgets={})
    clock_guard.check(own)
    return own, clock


def two(context: Context, one_s: float, other_s: float) -> tuple[Context, Context]:
    return on_machine(context, one_s)[0], on_machine(context, other_s)[0]


@pytest.mark.parametrize(("one_s", "other_s"), [(-50, 0), (-50, 50), (0, 50)])
def test_money_that_another_machine_has_just_spent_is_not_spent_again(
    context: Context,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    one_s: float,
    other_s: float,
) -> None:
    """What the provider says of its wallet is a while old: it lacks what was bought meanwhile."""
    one, other = two(context, one_s, other_s)
    provider.balance_mills = balance = 6120
    monkeypatch.setattr(provider, "wallet_mills", lambda: balance)

    first = receive_one(one)
    run_chain(one)
    second = receive_one(other)
    run_chain(other)

    assert again(context, first).status is S.ACCEPTED
    assert again(context, second).status is not S.ACCEPTED
    assert list(provider.orders) == [first.external_id]
    assert provider.balance_mills == 0


@pytest.mark.parametrize(("one_s", "other_s"), [(0, 50), (-50, 0), (-50, 50)])
def test_a_claim_that_is_kept_is_not_taken_by_a_machine_that_is_ahead(
    context: Context, one_s: float, other_s: float
) -> None:
    one, other = two(context, one_s, other_s)
    order = receive_one(one)
    batch = gather(one)
    claimed_until = again(context, order).claimed_until

    found = sweep.resume_stuck(other)

    assert batch is not None
    assert found.batches == []
    assert again(context, order).claimed_until == claimed_until


def test_an_order_whose_purchase_may_be_on_its_way_goes_to_no_other_account_before_its_time(
    make_context: MakeContext,
) -> None:
    """The first request, of a machine that is behind, arrives after the second was refused."""
    main, second = FakeProvider(), FakeProvider()
    accounts = {name: {"client_id": name, "client_secret": "s"} for name in ("main", "second")}
    context = make_context(main, accounts=accounts, routes={"any": "main,second"})
    context._providers.update(second=second)
    (behind, _), (right, clock) = on_machine(context, -50), on_machine(context)
    main.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=False)
    order = receive_one(behind, account="any", marketHashName=NAME)
    run_chain(behind)

    for _ in range(8):
        main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=False)
        clock.passed_s += 4
        run_sweep(right)

    assert len(main.bodies) > 1
    assert second.orders == {}
    assert again(context, order).account == "main"


def true_time(context: Context) -> datetime:
    found: datetime = rows(context, "SELECT clock_timestamp() AS now")[0]["now"]
    return found


@pytest.mark.parametrize("ahead_s", [-50, 50])
def test_the_present_follows_the_databases_clock_also_when_the_machines_is_set_meanwhile(
    context: Context, ahead_s: float
) -> None:
    own, clock = on_machine(context, ahead_s)
    at_first = own.now() - true_time(context)
    clock.ahead_s = -ahead_s
    clock.passed_s = 20

    later = own.now() - true_time(context)

    assert abs(at_first) < NEARLY
    assert abs(later - timedelta(seconds=20)) < NEARLY


@pytest.mark.parametrize("ahead_s", [-25, 25])
def test_a_clock_that_is_set_in_the_midst_of_a_purchase_stands_in_none_of_its_times(
    context: Context, provider: FakeProvider, ahead_s: float
) -> None:
    own, clock = on_machine(context)
    provider.on_purchase = lambda _: setattr(clock, "ahead_s", ahead_s)
    order = receive_one(own)

    run_chain(own)

    known = again(context, order)
    (attempt,) = rows(context, "SELECT sending_at, last_post_at, confirmed_at FROM attempts")
    assert known.status is S.ACCEPTED
    assert known.next_poll_at is not None
    poll_in = timedelta(seconds=context.settings.poll_min_interval_s)
    times = [known.updated_at, known.next_poll_at - poll_in, *attempt.values()]
    assert [time for time in times if abs(time - true_time(context)) >= NEARLY] == []


def test_a_difference_that_is_no_more_than_noise_moves_nobodys_time_back(context: Context) -> None:
    own, clock = on_machine(context, ahead_s=10)
    seen = own.clock_seen
    assert seen is not None
    # As a comparison whose answer took a while would have it.
    own.clock_seen = seen = seen._replace(true_s=seen.true_s + 0.02)
    before = own.now()
    clock.ahead_s += 2

    clock_guard.check(own)

    assert own.clock_seen is not None
    assert own.clock_seen != seen
    assert own.clock_seen.true_s == seen.true_s
    assert own.now() >= before


def test_a_machine_that_is_right_but_for_noise_is_gone_by(context: Context) -> None:
    own, _ = on_machine(context)

    assert own.clock_seen is not None
    assert own.clock_seen.ahead == timedelta()


def test_a_difference_that_is_more_is_followed_with_the_next_comparison(context: Context) -> None:
    own, clock = on_machine(context, 10)
    assert own.clock_seen is not None
    own.clock_seen = own.clock_seen._replace(true_s=own.clock_seen.true_s + 30)
    clock.ahead_s += 2

    clock_guard.check(own)

    assert abs(own.now() - true_time(context)) < NEARLY


def clock_check(context: Context) -> Check:
    (found,) = [each for each in check_readiness(context) if each.name == "clock"]
    return found


@pytest.mark.parametrize(
    ("ahead_s", "is_ok", "detail"),
    [
        (0, True, ""),
        (20, True, "this machine's clock is 20 s ahead of the database's, which is gone by"),
        (-20, True, "this machine's clock is 20 s behind the database's, which is gone by"),
        (90, False, "this machine's clock is 90 s ahead of the database's: nothing is done before"),
        (-90, False, "this machine's clock is 90 s behind the database's: nothing is done before"),
    ],
)
def test_readyz_tells_by_how_much_the_clock_is_wrong(
    context: Context, ahead_s: float, is_ok: bool, detail: str
) -> None:
    own = replace(context, clock=MachineClock(ahead_s))

    found = clock_check(own)

    assert found.is_ok is is_ok
    assert found.detail.startswith(detail)
    assert bool(found.detail) is bool(detail)
