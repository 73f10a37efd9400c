"""The rate budget: never above the limit, and never so tight that nothing goes through."""

from datetime import timedelta

import msgspec
import pytest

from fulfillment.errors import (
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.services import outages
from fulfillment.services.context import Context
from fulfillment.store import accounts, claims
from schemas.enums import OrderStatus as S
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    gather,
    receive,
    receive_one,
    rows,
    run_sweep,
    submit,
)


@pytest.mark.parametrize("limit", [10, 11, 15, 19, 20, 25, 60, 500])
def test_every_allowed_rate_lets_orders_through(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, limit: int
) -> None:
    context = make_context(provider, main={"rate_per_minute": limit})
    order = receive_one(context)

    for _ in range(30):
        run_sweep(context)
        clock.advance(2)

    assert again(context, order).status is S.ACCEPTED


@pytest.mark.parametrize("limit", [10, 25, 60, 500])
def test_no_minute_sees_more_requests_than_the_limit(
    context: Context, clock: FakeClock, limit: int
) -> None:
    granted = 0

    for second in range(60):
        with context.database.transaction() as session:
            for purpose in accounts.Purpose:
                granted += accounts.take(session, "main", limit, purpose, 1000, clock.now())
        clock.advance(1 if second < 59 else 0)

    assert limit * 0.5 <= granted <= limit


def test_urgent_requests_go_through_when_submits_have_used_theirs(
    context: Context, clock: FakeClock
) -> None:
    with context.database.transaction() as session:
        take = accounts.take
        for _ in range(3):
            take(session, "main", 500, accounts.Purpose.SUBMIT, 1000, clock.now())
        left = take(session, "main", 500, accounts.Purpose.SUBMIT, 1, clock.now())
        urgent = take(session, "main", 500, accounts.Purpose.URGENT, 5, clock.now())
        polls = take(session, "main", 500, accounts.Purpose.POLL, 1, clock.now())

    assert (left, urgent, polls) == (0, 5, 1)


def test_unknown_outcomes_are_resolved_before_new_orders_are_bought(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"rate_per_minute": 60, "max_submits_in_flight": 1})
    new, unknown = receive(context, checkout(), checkout())
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    batch = gather(context)
    assert batch is not None
    with context.database.transaction() as session:
        claims.release(session, [new.id], f"{batch['token']}/wallet", clock.now())
    submit(context, batch)
    clock.advance(2)
    _leave_budget(context, 2)

    run_sweep(context)

    resolved = msgspec.json.decode(provider.bodies[1])["external_id"]
    assert resolved == unknown.external_id


def _leave_budget(context: Context, requests: int) -> None:
    query = "UPDATE accounts SET budget = :n, poll_budget = 0, budget_at = :now RETURNING 1"
    rows(context, query, n=requests, now=context.now())


def test_an_account_is_paused_longer_with_each_failure_and_never_over_a_minute(
    context: Context, clock: FakeClock
) -> None:
    away = ProviderNotReached("away")

    ends = [outages.pause(context, "main", away) for _ in range(10)]
    lengths = [end - clock.now() for end in ends if end is not None]

    assert lengths == sorted(lengths)
    assert timedelta(0) < lengths[0] <= timedelta(seconds=1)
    assert timedelta(seconds=30) <= lengths[-1] <= timedelta(seconds=60)


def test_the_providers_wish_for_a_pause_is_respected(context: Context, clock: FakeClock) -> None:
    error = ProviderNotReached("429", retry_after=timedelta(seconds=90))

    assert outages.pause(context, "main", error) == clock.now() + timedelta(seconds=90)
