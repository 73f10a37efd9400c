"""Machines whose clocks are apart by as much as is tolerated buy as one; others do nothing."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from fulfillment.clock import SystemClock
from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused, WrongClock
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import clock_guard, sweep
from fulfillment.services.context import Context
from fulfillment.services.operations import Check, check_readiness
from fulfillment.store.engine import Session
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from tests.conftest import MakeContext
from tests.support import (
    NAME,
    FakeProvider,
    again,
    gather,
    receive_one,
    run_chain,
    run_sweep,
)


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


@pytest.mark.parametrize(("one_s", "other_s"), [(-1.9, 0), (-1.9, 1.9), (0, 1.9)])
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


@pytest.mark.parametrize(("one_s", "other_s"), [(0, 1.9), (-1.9, 0), (-1.9, 1.9)])
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
    (behind, _), (right, clock) = on_machine(context, -1.9), on_machine(context, 1.9)
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


@pytest.mark.parametrize(("one_s", "other_s"), [(-1.9, 0), (-1.9, 1.9), (0, 1.9)])
def test_what_two_machines_looked_for_is_not_posted_again_within_a_minute(
    context: Context, provider: FakeProvider, one_s: float, other_s: float
) -> None:
    """The first lookup is of a machine that is behind, so that it seems to be longer ago."""
    provider.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    (one, clock), (other, other_clock) = on_machine(context, one_s), on_machine(context, other_s)
    looked: list[datetime] = []
    posted: list[datetime] = []
    provider.on_read = lambda what: looked.append(clock.now()) if "order" in what else None
    provider.on_purchase = lambda fields: posted.append(clock.now())
    provider.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=False)
    receive_one(one)
    run_chain(one)

    for _ in range(80):
        for each in (clock, other_clock):
            each.passed_s += 1
        run_sweep(other if looked else one)

    assert len(posted) == 2
    assert posted[1] - looked[0] >= timedelta(minutes=1)


def test_a_clock_that_is_set_is_noticed_by_the_next_step(context: Context) -> None:
    own, clock = on_machine(context)
    clock.ahead_s = 3

    with pytest.raises(WrongClock, match="3 s ahead"):
        clock_guard.check(own)


def test_the_databases_clock_is_looked_at_again_within_seconds(context: Context) -> None:
    """It may be the one that is set; then nobody's times are moved, and nothing is done."""
    own, clock = on_machine(context)
    clock.passed_s = 11  # for the machine, and not for the database: that was set back

    with pytest.raises(WrongClock, match="11 s ahead"):
        clock_guard.check(own)


def test_an_answer_that_takes_long_is_no_wrong_clock(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with much to do reads its own clock a while after the database did."""
    own, clock = on_machine(context)
    clock_s = iter(range(0, 100, 5))
    monkeypatch.setattr(Session, "scalar", slowly(Session.scalar, clock, clock_s))

    with own.database.transaction() as session:
        assert clock_guard.ahead(own, session) == timedelta()


def slowly(act: Callable[..., Any], clock: MachineClock, spent_s: Iterator[int]) -> Any:
    def acting(*args: Any) -> Any:
        found = act(*args)
        clock.passed_s = next(spent_s) + 5
        return found + timedelta(seconds=clock.passed_s - 2)  # its time has passed as well

    return acting


def clock_check(context: Context) -> Check:
    (found,) = [each for each in check_readiness(context) if each.name == "clock"]
    return found


@pytest.mark.parametrize(
    ("ahead_s", "detail"),
    [
        *((ahead_s, "") for ahead_s in (0, 1.5, -1.5)),
        (90, r"this machine's clock is (90|89\.9) s ahead of the database's: nothing is done .*"),
        (-90, r"this machine's clock is (90|89\.9) s behind the database's: nothing is done .*"),
    ],
)
def test_readyz_tells_by_how_much_the_clock_is_wrong(
    context: Context, ahead_s: float, detail: str
) -> None:
    own = replace(context, clock=MachineClock(ahead_s))

    found = clock_check(own)

    assert found.is_ok is (not detail)
    assert re.fullmatch(detail, found.detail)
