"""A large batch is submitted by whoever has room: nothing of it waits for one worker's turn."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from celery.signals import worker_shutting_down

import tasks.base
from fulfillment.errors import ProviderDeniesAccount
from fulfillment.services import sharing, submission, sweep
from fulfillment.services.claiming import SUBMIT, take_over
from fulfillment.services.context import Context
from fulfillment.store import orders
from schemas.messages import Batch
from tests.conftest import MakeContext
from tests.support import (
    WAIT_S,
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


def copies(context: Context, batch: Batch) -> list[Batch]:
    mine, others = sharing.share_out(context, batch, is_new=True)
    assert mine is batch
    return others


def test_a_worker_with_room_submits_what_one_whose_requests_hang_has_not_begun(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    slow, quick = worker(), worker()
    batch = reserved(slow, 9)
    copy, *_ = copies(slow, batch)
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


def test_a_slow_answer_delays_only_its_own_order(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    """No other worker joins in."""
    context = worker()
    batch = reserved(context, 9)
    gate = Gate(provider, held=1)

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: statuses(context) == {"accepted": 8, "submitting": 1})
        gate.open()
        own = flying.result()

    assert own
    assert own["ids"] == batch["ids"]


def test_only_a_new_batch_that_is_too_large_for_one_process_is_copied_and_a_copy_is_not(
    worker: Callable[[], Context],
) -> None:
    context = worker()
    few, many, most = (reserved(context, count) for count in (4, 5, 50))

    (copy,) = copies(context, many)

    assert copies(context, few) == []
    assert sharing.share_out(context, copy, is_new=False) == (copy, [])
    assert copy["ids"] == many["ids"]
    assert len(copies(context, most)) == 8


def test_what_was_begun_before_is_parted_and_not_copied(worker: Callable[[], Context]) -> None:
    context = worker()
    batch = reserved(context, 9)

    mine, others = sharing.share_out(context, batch, is_new=False)

    assert [len(part["ids"]) for part in (mine, *others)] == [4, 4, 1]
    assert [i for part in (mine, *others) for i in part["ids"]] == batch["ids"]


def test_a_process_that_is_at_work_on_a_batch_takes_nothing_for_a_copy_of_it(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    batch = reserved(context, 9)
    copy, *_ = copies(context, batch)
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: gate.came == 2)
        helped = submission.submit_orders(context, copy)
        gate.open()
        own = flying.result()
    again = submission.submit_orders(context, copy)

    assert (helped, again) == (None, None)
    assert own
    assert own["ids"] == batch["ids"]


def test_what_nobody_has_taken_yet_is_kept_by_those_who_work_on_the_batch(
    worker: Callable[[], Context], clock: FakeClock
) -> None:
    context = worker()
    batch = reserved(context, 9)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        for _ in range(3):
            clock.advance(context.lease.total_seconds() / 2)
            claim.comes_on = True
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


def test_what_nobody_comes_to_is_left_to_the_sweep(
    worker: Callable[[], Context], provider: FakeProvider, clock: FakeClock
) -> None:
    """All that one process may have under way hangs, and no copy arrives anywhere."""
    context, other = worker(), worker()
    batch = reserved(context, 9)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        for _ in range(4):
            clock.advance(context.lease.total_seconds() / 3)
            assert claim.keep()
        run_sweep(other)

    assert statuses(context) == {"accepted": 7, "reserved": 2}


def test_a_worker_that_is_told_to_stop_leaves_what_is_not_begun_to_others(
    worker: Callable[[], Context], provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 9)
    monkeypatch.setattr(tasks.base, "_context", context)

    def stop(_: Any) -> None:
        worker_shutting_down.send(sender="w1", sig="TERM", how="Warm", exitcode=0)

    provider.on_purchase = stop
    own = submission.submit_orders(context, batch)
    begun = len(provider.bodies)
    run_sweep(other)

    assert own
    assert 1 <= begun == len(own["ids"]) < 9
    assert statuses(context) == {"accepted": 9}
    assert len(provider.bodies) == 9


def test_what_cannot_be_sent_without_a_look_is_left_to_the_sweep(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    batch = reserved(context, 9)
    last = batch["ids"][-1]
    query = "UPDATE orders SET told_early_at = %(now)s WHERE id = %(id)s RETURNING id"
    rows(context, query, now=context.now(), id=last)
    gate = Gate(provider, held=1)
    left = "SELECT id FROM orders WHERE claim IS NULL AND next_attempt_at <= %(now)s"

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: statuses(context) == {"accepted": 7, "submitting": 1, "reserved": 1})
        found = until(lambda: rows(context, left, now=context.now()))
        gate.open()
        flying.result()

    assert found == [{"id": last}]
    assert statuses(context) == {"accepted": 8, "reserved": 1}


def test_the_keeper_waits_for_nobody_who_has_locked_what_is_not_taken(
    worker: Callable[[], Context],
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 9)
    last = batch["ids"][-1]

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        with other.database.transaction() as session, ThreadPoolExecutor(1) as executor:
            orders.lock(session, [last])
            assert executor.submit(claim.keep).result(WAIT_S)


def test_a_lock_on_what_nobody_has_taken_delays_no_answer(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 5)
    last = batch["ids"][-1]
    gate = Gate(provider, held=1)

    with ThreadPoolExecutor(1) as executor:
        with other.database.transaction() as session:
            orders.lock(session, [last])
            flying = executor.submit(submission.submit_orders, context, batch)
            until(lambda: statuses(context).get("accepted") == 3)
            gate.open()
            until(lambda: statuses(context).get("accepted") == 4)
        found = flying.result()

    assert found
    assert sorted(found["ids"]) == batch["ids"]
    assert statuses(context) == {"accepted": 5}


def test_without_a_free_slot_nothing_of_a_shared_batch_is_taken(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context, other = worker(), worker()
    first, second = reserved(context, 5), reserved(context, 5)
    copy, *_ = copies(context, second)
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(3) as executor:
        flying = executor.submit(submission.submit_orders, context, first)
        until(lambda: gate.came == 2)
        helping = executor.submit(submission.submit_orders, context, copy)
        waiting = executor.submit(submission.submit_orders, context, second)
        others = submission.submit_orders(other, copy)
        gate.open()
        own, helped, left = flying.result(), helping.result(), waiting.result()

    assert (helped, left) == (None, None)
    assert others
    assert others["ids"] == second["ids"]
    assert own
    assert own["ids"] == first["ids"]


def waits(context: Context) -> bool:
    return not context.threads.slots("copies that wait", 1).are_free()


@contextmanager
def waiting(
    context: Context, provider: FakeProvider, batch: Batch
) -> Iterator[Future[Batch | None]]:
    """Have a copy of the batch wait for slots, all of which another batch has until the end."""
    first, gate = reserved(context, 5), Gate(provider, held=2)
    with ThreadPoolExecutor(2) as executor:
        flying = executor.submit(submission.submit_orders, context, first)
        until(lambda: gate.came == 2)
        helping = executor.submit(submission.submit_orders, context, copies(context, batch)[0])
        until(lambda: waits(context))
        yield helping
        gate.open()
        own = flying.result()
    assert own
    assert set(own["ids"]) <= set(first["ids"])


def test_a_copy_waits_for_a_slot_and_then_helps(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    batch = reserved(context, 5)

    with waiting(context, provider, batch) as helping:
        pass
    helped = helping.result()

    assert helped
    assert helped["ids"] == batch["ids"]
    assert len(provider.bodies) == 10
    assert not waits(context)


def test_a_second_copy_that_would_wait_leaves_its_thread_to_other_work(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    one, two = reserved(context, 5), reserved(context, 5)

    with waiting(context, provider, one) as helping:
        at_once = submission.submit_orders(context, copies(context, two)[0])
    helped = helping.result()

    assert at_once is None
    assert helped
    assert helped["ids"] == one["ids"]


def test_no_copy_waits_where_a_process_has_few_threads(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 2}, worker_threads=3)
    first, second = reserved(context, 5), reserved(context, 5)
    copy, *_ = copies(context, second)
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, first)
        until(lambda: gate.came == 2)
        helped = submission.submit_orders(context, copy)
        gate.open()
        flying.result()

    assert helped is None


def test_a_copy_that_waited_begins_nothing_once_the_worker_is_told_to_stop(
    worker: Callable[[], Context], provider: FakeProvider
) -> None:
    context = worker()
    batch = reserved(context, 5)

    with waiting(context, provider, batch) as helping:
        context.threads.is_ending = True

    assert helping.result() is None
    assert len(provider.bodies) == 2


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
