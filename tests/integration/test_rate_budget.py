"""The rate budget: never above the limit, and never so tight that nothing goes through."""

import random
import threading
from bisect import bisect_right
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import pytest

from fulfillment import crash
from fulfillment.clock import SystemClock
from fulfillment.errors import (
    OverBudget,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import outages, reconciliation, submission
from fulfillment.services.budget import RateBudget
from fulfillment.services.context import Context
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.store import accounts, claims
from fulfillment.store.accounts import Purpose
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.support import (
    WAIT_S,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    assert_invariants,
    checkout,
    gather,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
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
    query = "UPDATE accounts SET budget = %(n)s, poll_budget = 0, budget_at = %(now)s RETURNING 1"
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


@pytest.mark.parametrize("limit", [10, 60, 500])
def test_no_minute_sees_more_though_requests_are_under_way_for_seconds(
    context: Context, clock: FakeClock, limit: int
) -> None:
    """The worst that fits: much is taken at once, arrives late, and what follows arrives soon."""
    budget, chance = context.budget("main"), random.Random(limit)
    budget._limit = limit
    start, arrivals = clock.now(), []

    for _ in range(120):
        purpose = chance.choice(list(Purpose))
        granted = budget.take(purpose, chance.choice([1, limit])).size
        sent_s = (clock.now() - start).total_seconds()
        arrivals += [sent_s + (5.0 if chance.random() < 0.5 else 0.0)] * granted
        clock.advance(chance.choice([0.0, 0.3, 2.0, 20.0]))

    arrivals.sort()
    for place, at in enumerate(arrivals):
        assert bisect_right(arrivals, at + 59.99) - place <= limit


@pytest.mark.parametrize("limit", [10, 500])
@pytest.mark.parametrize("hungry", [Purpose.URGENT, Purpose.POLL])
def test_a_batch_can_gather_while_others_never_have_enough(
    make_context: MakeContext, clock: FakeClock, limit: int, hungry: Purpose
) -> None:
    context = make_context(FakeProvider(), main={"rate_per_minute": limit})
    budget, gathered, asked = context.budget("main"), 0, 0
    budget.take(hungry, 1000)

    for _ in range(300):
        clock.advance(4)
        asked += budget.take(hungry, 1000).size
        if budget.take(Purpose.SUBMIT, leaving=1).size:
            gathered += budget.take(Purpose.SUBMIT).size

    assert gathered >= 3
    assert asked >= (limit // 2 if hungry is Purpose.POLL else 4 * limit)


def test_urgent_requests_come_first_and_a_tenth_is_kept_for_each_of_the_others(
    make_context: MakeContext, clock: FakeClock
) -> None:
    context = make_context(FakeProvider(), main={"rate_per_minute": 500})
    budget = context.budget("main")
    granted = Counter(dict.fromkeys(Purpose, 0))

    for _ in range(300):
        for purpose in reversed(Purpose):
            granted[purpose] += budget.take(purpose, 1000).size
        clock.advance(1)

    flow = granted.total() / 5
    assert 400 <= flow <= 430
    assert granted[Purpose.POLL] / 5 >= flow / 11
    # All were asked in the worst order, and nothing was left lying.
    assert granted[Purpose.SUBMIT] / 5 >= flow / 11


def test_what_was_not_sent_is_given_back(make_context: MakeContext, clock: FakeClock) -> None:
    budget = make_context(FakeProvider(), main={"rate_per_minute": 500}).budget("main")
    for purpose in Purpose:
        before = budget.left(purpose)
        grant = budget.take(purpose, 1000)
        assert grant.size == before

        grant.give_back()

        assert budget.left(purpose) == before


def test_what_was_taken_long_ago_is_taken_anew(make_context: MakeContext, clock: FakeClock) -> None:
    context = make_context(FakeProvider(), main={"rate_per_minute": 60})
    budget = context.budget("main")
    grant = budget.take(Purpose.URGENT, 2)
    with grant:
        budget.spend()
    clock.advance(2.5)
    budget.take(Purpose.URGENT, 1000)

    with grant, pytest.raises(OverBudget):
        budget.spend()


def test_what_was_taken_long_ago_is_taken_anew_by_each_part_of_it(
    make_context: MakeContext, clock: FakeClock
) -> None:
    budget = make_context(FakeProvider(), main={"rate_per_minute": 60}).budget("main")
    grant = budget.take(Purpose.SUBMIT, 2)
    clock.advance(2.5)
    budget.take(Purpose.SUBMIT, 1000)

    for part in grant.for_each(2):
        with part, pytest.raises(OverBudget):
            budget.spend()


def test_a_worker_that_stands_still_in_its_intent_keeps_no_request_from_others(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, main={"rate_per_minute": 600})
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None
    stands, goes_on = threading.Event(), threading.Event()

    def stand_still(point: str) -> None:
        if point == "intent.before_commit":
            stands.set()
            goes_on.wait(WAIT_S)

    with crash.acting(stand_still), ThreadPoolExecutor(2) as executor:
        submitting = executor.submit(submission.submit_orders, context, batch)
        try:
            assert stands.wait(WAIT_S)
            taken = executor.submit(context.budget("main").take, Purpose.URGENT).result(3)
        finally:
            goes_on.set()
        assert submitting.result()

    assert taken.size == 1
    assert again(context, order).status is S.ACCEPTED


def test_an_order_that_others_were_faster_than_at_the_budget_is_bought_later_and_once(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    """Its intent is written when the budget still seemed enough."""
    context = make_context(provider, main={"rate_per_minute": 60})
    budget = context.budget("main")
    provider.on_purchase = lambda _: budget.spend()
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None
    points: list[str] = []

    def take_all(point: str) -> None:
        points.append(point)
        if points.count("intent.before_commit") == 1 and point == "intent.before_commit":
            for purpose in Purpose:
                budget.take(purpose, 1000)

    with crash.acting(take_all):
        submit(context, batch)

    assert "intent.after_commit" in points
    assert provider.bodies == []
    assert again(context, order).status is not S.ACCEPTED
    assert_invariants(context)
    for _ in range(30):
        clock.advance(2)
        run_sweep(context)
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert_invariants(context)


@pytest.mark.parametrize(("left", "is_at_once"), [(2, True), (1, False)])
def test_orders_are_begun_with_their_claim_only_where_the_budget_seems_enough_for_all(
    make_context: MakeContext, provider: FakeProvider, left: int, is_at_once: bool
) -> None:
    """In the claim's own transaction: it is one less that a small batch waits for."""
    context = make_context(provider, main={"rate_per_minute": 60})
    receive(context, checkout(), checkout())
    batch = gather(context)
    assert batch is not None
    _leave_budget(context, 0)
    rows(context, "UPDATE accounts SET submit_budget = %(n)s RETURNING 1", n=left)
    points: list[str] = []

    with crash.acting(points.append):
        submit(context, batch)

    begun = points.index("intent.before_commit")
    assert (begun < points.index("claim.taken_over")) is is_at_once
    assert len(provider.bodies) == left


class AheadClock(SystemClock):
    """A machine's clock that is ten minutes ahead."""

    def now(self) -> datetime:
        return super().now() + timedelta(minutes=10)


def test_a_process_whose_clock_is_wrong_neither_empties_nor_fills_the_budget_of_all(
    context: Context,
) -> None:
    right, ahead = (
        RateBudget("main", 600, context.database, clock) for clock in (SystemClock(), AheadClock())
    )

    taken = [budget.take(Purpose.URGENT, 600).size for budget in (ahead, right, ahead, right)]

    assert taken[0] > 20
    assert sum(taken[1:]) < 20
    with context.database.transaction() as session:
        at = session.scalar("SELECT budget_at FROM accounts WHERE name = 'main'")
    assert at < SystemClock().now() + timedelta(minutes=1)


def test_a_budget_that_is_used_up_is_no_failure_of_the_account(context: Context) -> None:
    assert outages.pause(context, "main", OverBudget()) is None

    with context.database.transaction() as session:
        assert accounts.failures(session, "main") == 0


def test_a_wished_pause_ends_at_another_moment_for_each(context: Context, clock: FakeClock) -> None:
    error = ProviderNotReached("429", retry_after=timedelta(seconds=60))
    context.jitter = lambda: 0.5

    assert outages.pause(context, "main", error) == clock.now() + timedelta(seconds=63)


def test_every_unknown_outcome_has_its_turn_under_a_small_budget(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    """None may take another's turn by being older, or by being due again sooner."""
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    unlimited = make_context(provider)
    for _ in range(25):
        provider.fail_purchase(ProviderOutcomeUnknown("silence"))
    found = receive(unlimited, *(checkout() for _ in range(25)))
    run_chain(unlimited)
    context = make_context(provider, main={"rate_per_minute": 60})

    for _ in range(75):
        run_sweep(context)
        clock.advance(2)

    asked = Counter(read for read in provider.reads if read.startswith("order"))
    assert len(asked) == len(found)
    assert max(asked.values()) - min(asked.values()) <= 3


def test_the_question_at_a_deadline_is_not_behind_routine(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"rate_per_minute": 60})
    found = receive(context, *(checkout() for _ in range(12)))
    for _ in range(20):
        run_sweep(context)
        clock.advance(1)
    last = found[-1]
    provider.says(last.external_id, ReportState.SENT)
    clock.advance(31)
    while again(context, last).status is not S.SENT:
        run_polls(context)
        clock.advance(20)
    rows(
        context,
        "UPDATE orders SET trade_deadline_at = %(now)s, next_poll_at = %(now)s "
        "WHERE id = %(id)s RETURNING 1",
        now=clock.now(),
        id=last.id,
    )
    rows(
        context,
        "UPDATE orders SET next_poll_at = %(at)s WHERE id <> %(id)s RETURNING 1",
        at=clock.now() - timedelta(minutes=5),
        id=last.id,
    )
    _leave_budget(context, 1)
    provider.reads.clear()

    run_polls(context)

    assert provider.reads == [f"order {last.external_id}"]


def test_polls_beyond_the_budget_keep_their_places(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"rate_per_minute": 60})
    found = receive(context, *(checkout() for _ in range(30)))
    while any(again(context, order).status is not S.ACCEPTED for order in found):
        run_sweep(context)
        clock.advance(5)
    clock.advance(300)
    provider.reads.clear()

    for _ in range(60):
        run_polls(context)
        clock.advance(1)

    asked = Counter(what for what in provider.reads if what.startswith("order"))
    assert len(asked) == len(found)
    # Due again after 45 s, the first may have had another turn: after the last had theirs.
    assert max(asked.values()) <= 2


def test_polls_that_the_budget_has_no_room_for_are_due_again_and_not_overdue(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, poll_min_interval_s=3600.0, main={"rate_per_minute": 10})
    order = receive_one(context)
    run_chain(context)
    clock.advance(2 * 3600)
    (batch,) = reconciliation.poll_due(context)
    _leave_budget(context, 0)

    reconciliation.poll_orders(context, "main", batch["ids"])

    next_poll_at = again(context, order).next_poll_at
    assert next_poll_at is not None
    assert next_poll_at < clock.now()  # before those that have just become due
    assert_invariants(context)


def test_of_each_account_the_stuck_are_found(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    second = {"provider": "skinsnode", "client_id": "c", "client_secret": "s"}
    context = make_context(provider)
    settings = context.settings.model_copy(deep=True)
    settings.accounts["second"] = type(settings.account("main"))(**second)
    context = make_context(provider, accounts=settings.accounts)
    for _ in range(3):
        receive_one(context)
        gather(context)
    receive_one(context, account="second")
    gather(context, "second")
    clock.advance(60)

    with context.database.transaction() as session:
        found = claims.claim_stuck(
            session, ["main", "second"], "c", clock.now(), clock.now() + timedelta(seconds=30), 2
        )

    assert Counter(account for _, account in found) == {"main": 2, "second": 1}


def test_a_poll_that_met_the_providers_limit_pauses_the_account(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    run_chain(context)
    clock.advance(60)
    provider.reads_fail(ProviderNotReached("-7", retry_after=timedelta(seconds=60)))
    run_polls(context)
    provider.reads_fail(None)
    provider.reads.clear()

    clock.advance(59)
    run_polls(context)
    assert provider.reads == []

    clock.advance(2)
    run_polls(context)
    assert len(provider.reads) == 1


PATHS: dict[str, str] = {"skinsnode": "", "skinsback": "/api.php", "skinslink": "/api/v1"}
SCENARIOS = ("webhooks_lost", "dropped_after_accept", "error_before_accept", "webhooks_lost")


@pytest.mark.parametrize("name", PATHS)
def test_the_smallest_limit_is_kept_and_everything_ends(
    make_context: MakeContext,
    clock: FakeClock,
    name: Literal["skinsnode", "skinsback", "skinslink"],
) -> None:
    options = SimulatorOptions(
        provider=name,
        client_id=CLIENT_ID,
        client_secret=SECRET,
        api_key="key",
        port=0,
        items=5,
        reusable_items=True,
        requests_per_minute=10,
    )
    main = {"provider": name, "api_key": "key", "rate_per_minute": 10}
    with running(options) as url:
        judge = Simulator(url, CLIENT_ID, SECRET)
        context = make_context(base_url=url + PATHS[name], main=main)
        item = judge.item()
        name_of_item = {"marketHashName": item["marketHashName"]}
        found = receive(context, *(judge.checkout(s, **name_of_item) for s in SCENARIOS))

        for _ in range(400):
            run_ticks(context)
            clock.advance(3)
            judge.jump(3)
        ledger = judge.ask("GET", "/ledger")
        judge.close()

    assert ledger["requestsLimited"] == 0
    assert ledger["peakRequestsPerMinute"] <= 10
    # What Skinslink never heard of is never posted again: a person decides.
    unheard = S.NEEDS_REVIEW if name == "skinslink" else S.COMPLETED
    ends = {order.external_id.partition(".")[2]: again(context, order).status for order in found}
    assert ends.pop("error_before_accept") is unheard
    assert set(ends.values()) == {S.COMPLETED}
