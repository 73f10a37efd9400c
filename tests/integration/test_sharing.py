"""A large batch is submitted by whoever has room: nothing of it waits for one worker's turn."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fulfillment.errors import ProviderDeniesAccount
from fulfillment.services import submission, sweep
from fulfillment.services.claiming import SUBMIT, take_over
from fulfillment.services.context import Context
from fulfillment.store import claims
from schemas.messages import Batch
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    checkout,
    gather,
    receive,
    rows,
    run_sweep,
    until,
)


@pytest.fixture
def worker(make_context: MakeContext, provider: FakeProvider) -> Callable[[], Context]:
    """Give a further process that may have two requests in flight."""
    return lambda: make_context(provider, main={"max_submits_in_flight": 2})


class Gate:
    """Lets the first purchases wait until it opens; says how many have come."""

    def __init__(self, provider: FakeProvider, held: int) -> None:
        self.came = 0
        self._held = held
        self._lock = threading.Lock()
        self._is_open = threading.Event()
        provider.on_purchase = self._arrive

    def _arrive(self, _fields: dict[str, Any]) -> None:
        with self._lock:
            self.came += 1
            is_held = self.came <= self._held
        if is_held:
            assert self._is_open.wait(20)

    def open(self) -> None:
        self._is_open.set()


def reserved(context: Context, count: int) -> Batch:
    receive(context, *(checkout() for _ in range(count)))
    batch = gather(context)
    assert batch is not None
    return batch


def statuses(context: Context) -> dict[str, int]:
    query = "SELECT status, count(*) AS n FROM orders GROUP BY status"
    return {row["status"]: row["n"] for row in rows(context, query)}


def test_a_worker_with_room_submits_what_one_whose_requests_hang_has_not_begun(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    slow, quick = worker(), worker()
    batch = reserved(slow, 9)
    (copy, *_) = submission.share_out(slow, batch)
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, slow, batch)
        until(lambda: gate.came == 2)
        helped = submission.submit_orders(quick, copy)
        meanwhile = statuses(slow)
        gate.open()
        own = flying.result()

    assert helped
    assert own
    assert (len(helped["ids"]), meanwhile) == (7, {"accepted": 7, "submitting": 2})
    assert sorted(helped["ids"] + own["ids"]) == batch["ids"]
    assert len(provider.bodies) == 9


def test_only_a_batch_that_is_too_large_for_one_process_is_copied_and_a_copy_is_not(
    worker: Callable[[], Context],
) -> None:
    context = worker()
    few, many = reserved(context, 4), reserved(context, 5)

    (copy,) = submission.share_out(context, many)

    assert submission.share_out(context, few) == []
    assert submission.share_out(context, copy) == []
    assert copy["ids"] == many["ids"]


def test_a_copy_waits_for_room_and_what_is_new_does_not(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    """The process has two parts in submission, whose requests hang."""
    context = worker()
    batch = reserved(context, 9)
    copy, another, *_ = submission.share_out(context, batch) * 2
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(4) as executor:
        first = [executor.submit(submission.submit_orders, context, b) for b in (batch, copy)]
        taken = "SELECT count(*) AS n FROM orders WHERE claim LIKE '%%/submit'"
        until(lambda: rows(context, taken) == [{"n": 4}])
        last = executor.submit(submission.submit_orders, context, another)
        new = reserved(context, 1)
        third = executor.submit(submission.submit_orders, context, new)
        until(lambda: rows(context, taken) == [{"n": 5}])
        gate.open()
        found = [each.result() for each in (*first, third, last)]

    assert sorted(i for each in found if each for i in each["ids"]) == [*batch["ids"], *new["ids"]]
    assert len(provider.bodies) == 10


def test_what_nobody_has_taken_yet_is_kept_by_those_who_work_on_the_batch(
    worker: Callable[[], Context], clock: FakeClock
) -> None:
    context = worker()
    batch = reserved(context, 9)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        for _ in range(3):
            clock.advance(context.lease.total_seconds() / 2)
            assert claim.keep()
        found = sweep.resume_stuck(context)

    assert len(claim.orders) == 2
    assert found.batches == []


def test_where_the_account_turns_us_away_the_rest_of_the_batch_is_left_at_once(
    worker: Callable[[], Context], provider: FakeProvider, clock: FakeClock
) -> None:
    context = worker()
    batch = reserved(context, 9)
    for _ in range(2):
        provider.fail_purchase(ProviderDeniesAccount("403"))

    submission.submit_orders(context, batch)
    tried = len(provider.bodies)
    claimed = "SELECT count(*) AS n FROM orders WHERE claimed_until IS NOT NULL"
    left = rows(context, claimed)
    clock.advance(61)
    for _ in range(3):
        run_sweep(context)

    assert (tried, left) == (2, [{"n": 0}])
    assert statuses(context) == {"accepted": 9}
    assert len(provider.orders) == 9


def test_of_a_large_batch_what_was_begun_goes_before_what_is_new(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    batch = reserved(context, 9)
    query = "UPDATE orders SET status = 'submitting' WHERE id = ANY(%(ids)s) RETURNING id"
    begun = batch["ids"][-2:]
    rows(context, query, ids=begun)

    with context.database.transaction() as session:
        old, new = (f"{batch['token']}/{step}" for step in ("wallet", "submit"))
        until_at = context.now() + context.lease
        taken = claims.take_over_some(session, batch["ids"], old, new, until_at, 3)

    assert [order.id for order in taken] == [batch["ids"][0], *begun]


def test_an_order_that_somebody_has_locked_is_taken_last_and_not_left_out(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 5)
    first = batch["ids"][0]

    with ThreadPoolExecutor(1) as executor, other.database.transaction() as session:
        session.execute("SELECT id FROM orders WHERE id = %(id)s FOR UPDATE", {"id": first})
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: statuses(context).get("accepted") == 4)
        session.connection.commit()
        found = flying.result()

    assert found
    assert sorted(found["ids"]) == batch["ids"]
