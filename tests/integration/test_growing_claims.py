"""A claim that more orders join: what a process holds that slept, waits, or cannot take more.

And what its keeper lengthens: no more than the process will use, without waiting for anybody.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from fulfillment.errors import ProviderDeniesAccount, ServerUnreachable
from fulfillment.providers.base import BeforeSend
from fulfillment.services import beginning, claiming, recovery, submission, sweep
from fulfillment.services.claiming import SUBMIT, take_more, take_over
from fulfillment.services.context import Context
from fulfillment.services.threads import Threads
from fulfillment.store import claims, orders
from schemas.provider import OrderReport
from tests.conftest import MakeContext
from tests.integration.test_sharing import copies, reserved, statuses
from tests.support import WAIT_S, FakeClock, FakeProvider, rows, run_sweep, until

#: A claim is lost after 30 s without a renewal.
SLEPT_S = 22


class Kept(Threads):
    """Its keepers renew when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.keep: list[Callable[[], bool]] = []

    @contextmanager
    def repeating(self, every_s: float, act: Callable[[], bool], name: str) -> Iterator[None]:
        self.keep.append(act)
        yield


class Connecting(FakeProvider):
    """Holds up some purchases before the last look at the claim, as a slow handshake does."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, threading.Event] = {}
        self.came: set[str] = set()
        self.posts: Counter[str] = Counter()

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        name = msgspec.json.decode(body)["external_id"]
        self.came.add(name)
        if (gate := self.held.pop(name, None)) is not None:
            assert gate.wait(WAIT_S)
        if before_send is not None:
            before_send()
        self.posts[name] += 1
        return super().purchase(body, None)


MakeWorker = Callable[..., Context]


@pytest.fixture
def worker(make_context: MakeContext, provider: FakeProvider) -> MakeWorker:
    """Build contexts of worker processes, each with room for two requests."""

    def make(by: FakeProvider | None = None, slots: int = 2, **changes: Any) -> Context:
        made = make_context(by or provider, main={"max_submits_in_flight": slots}, **changes)
        made.threads = Kept()
        return made

    return make


def claim_of(context: Context, order_id: int) -> str | None:
    query = "SELECT claim FROM orders WHERE id = %(id)s"
    name: str | None = rows(context, query, id=order_id)[0]["claim"]
    return name


def hold_renewals(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold up whoever has renewed a claim and not taken note of it yet: (there is one, it may)."""
    is_renewed, may_end = threading.Event(), threading.Event()

    def crash_point(name: str, *_: Any) -> None:
        if name == "claim.renewed":
            is_renewed.set()
            assert may_end.wait(WAIT_S)

    monkeypatch.setattr(claiming, "crash_point", crash_point)
    return is_renewed, may_end


def test_who_has_lost_a_part_of_its_claim_holds_none_of_it(
    worker: MakeWorker, clock: FakeClock
) -> None:
    """Two groups of a run lapse at two times; a keeper that slept renews what is left."""
    context, other = worker(), worker()
    batch = reserved(context, 9)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        clock.advance(9)
        assert take_more(context, batch, claim, 1, lambda *_: None)
        clock.advance(SLEPT_S)
        sweep.resume_stuck(other)
        assert claim_of(context, claim.order_ids[0]) != claim.name
        claim.keep()

        assert [claim.holds(id_) for id_ in claim.order_ids] == [False, False, True]


def test_a_process_that_slept_does_not_send_what_another_has_taken_over(
    worker: MakeWorker, clock: FakeClock
) -> None:
    provider = Connecting()
    slow, other = worker(provider), worker(provider)
    batch = reserved(slow, 9)
    one, two, three = batch["names"][:3]
    gates = {name: threading.Event() for name in (one, two, three)}
    provider.held = dict(gates)

    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, slow, batch)
        until(lambda: {one, two} <= provider.came)
        clock.advance(9)
        gates[two].set()  # its answer lets the third be taken
        until(lambda: three in provider.came)
        clock.advance(SLEPT_S)
        run_sweep(other)
        by_the_other = provider.posts[one]
        assert isinstance(slow.threads, Kept)
        for keep in slow.threads.keep:
            keep()
        gates[one].set()
        gates[three].set()
        flying.result()

    assert by_the_other == 1
    assert set(provider.posts.values()) == {1}


def test_who_renews_while_more_is_taken_believes_in_no_more_time_than_that_has(
    worker: MakeWorker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 9)
    is_renewed, may_end = hold_renewals(monkeypatch)

    with take_over(context, batch, SUBMIT, limit=2) as claim, ThreadPoolExecutor(1) as executor:
        assert claim is not None
        renewing = []

        def commit_slowly(*_: Any) -> None:
            clock.advance(12)
            renewing.append(executor.submit(claim.keep))
            assert is_renewed.wait(WAIT_S)

        group = take_more(context, batch, claim, 1, commit_slowly)
        assert group is not None
        may_end.set()
        assert renewing[0].result()
        clock.advance(19)  # 31 s after the group was taken
        sweep.resume_stuck(other)

        assert claim_of(context, group.order_ids[0]) != claim.name
        assert not claim.holds(group.order_ids[0])


def test_renewals_while_more_is_taken_keep_what_was_there_before(
    worker: MakeWorker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = worker()
    batch = reserved(context, 12)

    with take_over(context, batch, SUBMIT, limit=2) as claim, ThreadPoolExecutor(1) as executor:
        assert claim is not None
        is_renewed, may_end = hold_renewals(monkeypatch)
        for _ in range(3):
            clock.advance(10)
            is_renewed.clear()
            may_end.clear()
            renewing = executor.submit(claim.keep)
            assert is_renewed.wait(WAIT_S)
            assert take_more(context, batch, claim, 1, lambda *_: None)
            may_end.set()
            assert renewing.result()
        clock.advance(9)

        assert claim.is_held
        assert all(claim.holds(id_) for id_ in claim.order_ids)


def test_what_is_taken_after_all_before_it_was_answered_has_a_whole_lease(
    worker: MakeWorker, clock: FakeClock
) -> None:
    context = worker()
    batch = reserved(context, 12)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        for _ in range(4):
            with context.database.transaction() as session:  # as an outcome does
                claims.release(session, claim.order_ids, claim.name, clock.now())
            clock.advance(10)
            assert claim.keep()
            group = take_more(context, batch, claim, 1, lambda *_: None)
            assert group is not None
            clock.advance(1)

            assert claim.is_held
            assert claim.holds(group.order_ids[0])


@pytest.mark.parametrize("error", [ServerUnreachable("PostgreSQL", "X", "away"), ValueError("bug")])
def test_what_keeps_more_of_a_batch_from_being_begun_leaves_no_answer_unwritten(
    worker: MakeWorker,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    context = worker()
    batch = reserved(context, 9)
    tried, gate = threading.Event(), threading.Event()

    def fail(*_: Any) -> None:
        tried.set()
        raise error

    def hold(fields: dict[str, Any]) -> None:
        if fields["external_id"] == batch["names"][1]:
            assert gate.wait(WAIT_S)

    provider.on_purchase = hold
    monkeypatch.setattr(beginning, "take_more", fail)
    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        assert tried.wait(WAIT_S)
        gate.set()
        flying.result()

    query = "SELECT DISTINCT status FROM orders WHERE id = ANY(%(ids)s)"
    assert rows(context, query, ids=batch["ids"][:2]) == [{"status": "accepted"}]


def test_what_is_taken_late_is_priced_afresh_before_it_is_sent(
    worker: MakeWorker, provider: FakeProvider, clock: FakeClock
) -> None:
    """Slow answers, one at a time: a shared batch is kept for as long as it comes on."""
    context = worker(slots=1, claim_lease_s=3000)
    batch = reserved(context, 8)
    ages = []

    def answer_slowly(fields: dict[str, Any]) -> None:
        query = "SELECT created_at FROM attempts WHERE external_id = %(name)s"
        (attempt,) = rows(context, query, name=fields["external_id"])
        ages.append(clock.now() - attempt["created_at"])
        clock.advance(120)

    provider.on_purchase = answer_slowly
    submission.submit_orders(context, batch)
    by_itself = len(ages)
    for _ in range(8):
        run_sweep(context)

    assert 3 <= by_itself < 8
    assert len(ages) == 8
    assert max(ages) <= timedelta(minutes=5)


def test_what_a_late_copy_begins_with_is_priced_afresh_too(
    worker: MakeWorker, provider: FakeProvider, clock: FakeClock
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 9)
    copy, *_ = copies(context, batch)

    with take_over(context, batch, SUBMIT, limit=2) as claim:
        assert claim is not None
        for _ in range(31):
            clock.advance(10)
            claim.comes_on = True
            assert claim.keep()
        submission.submit_orders(other, copy)

    assert provider.bodies == []


def test_what_is_to_be_looked_for_is_not_left_to_the_sweep_for_its_old_price(
    worker: MakeWorker, provider: FakeProvider, clock: FakeClock
) -> None:
    """The sweep prices nothing afresh that may be bought already, and hands it on."""
    context = worker()
    batch = reserved(context, 9)
    clock.advance(301)
    recovery.doubt(context, timedelta(hours=1))

    submission.submit_orders(context, batch)
    later = "SELECT count(*) FROM orders WHERE next_attempt_at > %(now)s"
    assert rows(context, later, now=clock.now()) == [{"count": 2}]  # the others are the sweep's
    for _ in range(20):
        run_sweep(context)
        clock.advance(31)

    assert statuses(context) == {"accepted": 9}
    assert len(provider.bodies) == 9


@pytest.mark.parametrize("count", [4, 9])
def test_who_is_locked_for_an_instant_is_not_behind_a_slow_answer(
    worker: MakeWorker, provider: FakeProvider, count: int
) -> None:
    """Of a batch for one process, and of one that is shared."""
    context, other = worker(slots=4), worker()
    batch = reserved(context, count)
    gate = threading.Event()

    def hold(fields: dict[str, Any]) -> None:
        if fields["external_id"] == batch["names"][0]:
            assert gate.wait(WAIT_S)

    provider.on_purchase = hold
    with ThreadPoolExecutor(1) as executor:
        with other.database.transaction() as session:
            orders.lock(session, batch["ids"][-1:])
            flying = executor.submit(submission.submit_orders, context, batch)
            until(lambda: statuses(context).get("accepted") == count - 2)
        until(lambda: statuses(context).get("accepted") == count - 1)
        gate.set()
        found = flying.result()

    assert found
    assert sorted(found["ids"]) == batch["ids"]


def test_of_two_that_are_locked_whichever_is_free_first_is_taken(worker: MakeWorker) -> None:
    context, long, brief = worker(slots=4), worker(), worker()
    batch = reserved(context, 4)

    with ThreadPoolExecutor(1) as executor:
        with long.database.transaction() as person:
            orders.lock(person, batch["ids"][2:3])
            with brief.database.transaction() as passing:
                orders.lock(passing, batch["ids"][3:])
                flying = executor.submit(submission.submit_orders, context, batch)
                until(lambda: statuses(context).get("accepted") == 2)
            until(lambda: statuses(context).get("accepted") == 3)
        flying.result()

    assert statuses(context) == {"accepted": 4}


def test_what_is_locked_for_longer_than_a_lease_is_left_to_the_sweep(
    worker: MakeWorker, clock: FakeClock
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 4)

    with ThreadPoolExecutor(1) as executor, other.database.transaction() as session:
        orders.lock(session, batch["ids"][3:])
        flying = executor.submit(submission.submit_orders, context, batch)

        def is_done() -> bool:
            clock.advance(0.5)
            return flying.done()

        until(is_done)

    found = flying.result()
    assert found
    assert found["ids"] == batch["ids"][:3]


def test_what_is_left_to_the_sweep_is_left_without_a_wait_for_what_is_locked(
    worker: MakeWorker, provider: FakeProvider
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 9)
    for _ in range(2):
        provider.fail_purchase(ProviderDeniesAccount("403"))
    left = "SELECT count(*) FROM orders WHERE claim IS NULL"

    with other.database.transaction() as session, ThreadPoolExecutor(1) as executor:
        orders.lock(session, batch["ids"][8:])
        executor.submit(submission.submit_orders, context, batch).result(WAIT_S)

        assert rows(other, left) == [{"count": 8}]


def test_who_waits_for_a_locked_order_keeps_no_slots_and_no_others(
    worker: MakeWorker, provider: FakeProvider
) -> None:
    """The last two of a batch are locked by two; another batch of the account comes meanwhile."""
    context, other = worker(), worker()
    first, second = reserved(context, 9), reserved(context, 9)
    copy, *_ = copies(context, first)

    with ThreadPoolExecutor(4) as executor:
        with other.database.transaction() as last:
            orders.lock(last, first["ids"][8:])
            with other.database.transaction() as last_but_one:
                orders.lock(last_but_one, first["ids"][7:8])
                flying = [
                    executor.submit(submission.submit_orders, context, first),
                    executor.submit(submission.submit_orders, other, copy),
                ]
                until(lambda: statuses(context).get("accepted") == 7)
            until(lambda: statuses(context).get("accepted") == 8)
            flying += [
                executor.submit(submission.submit_orders, each, second) for each in (context, other)
            ]
            until(lambda: statuses(context).get("accepted") == 17)
        for each in flying:
            each.result()

    assert statuses(context) == {"accepted": 18}
    assert set(Counter(provider.bodies).values()) == {1}


def test_a_lock_on_one_order_costs_the_others_of_its_claim_nothing(
    worker: MakeWorker, clock: FakeClock
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 4)

    with take_over(context, batch, SUBMIT) as claim, ThreadPoolExecutor(1) as executor:
        assert claim is not None
        with other.database.transaction() as session:
            orders.lock(session, batch["ids"][-1:])
            for _ in range(3):
                clock.advance(10)
                assert executor.submit(claim.keep).result(WAIT_S)
            clock.advance(1)

            assert [claim.holds(id_) for id_ in batch["ids"]] == [True, True, True, False]
            assert claim.is_held


def test_what_a_process_that_slept_will_not_send_is_free_for_others(
    worker: MakeWorker, clock: FakeClock
) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 2)

    with take_over(context, batch, SUBMIT) as claim:
        assert claim is not None
        clock.advance(31)
        claim.keep()
        found = sweep.resume_stuck(other)

        assert not claim.is_held
        assert [sorted(each["ids"]) for each in found.batches] == [batch["ids"]]


def test_who_slept_leaves_the_rest_to_those_who_are_at_work_on_it(
    worker: MakeWorker, clock: FakeClock
) -> None:
    provider = Connecting()
    slow, other = worker(provider), worker(provider)
    batch = reserved(slow, 12)
    copy, *_ = copies(slow, batch)
    one, two, three, four = batch["names"][:4]
    gates = {name: threading.Event() for name in (one, two, three, four)}
    provider.held = dict(gates)

    with ThreadPoolExecutor(2) as executor:
        flying = executor.submit(submission.submit_orders, slow, batch)
        until(lambda: {one, two} <= provider.came)
        clock.advance(20)
        helping = executor.submit(submission.submit_orders, other, copy)
        until(lambda: {three, four} <= provider.came)
        assert isinstance(other.threads, Kept)
        for keep in other.threads.keep:
            keep()
        clock.advance(11)
        gates[one].set()
        gates[two].set()
        flying.result()
        left = rows(other, "SELECT 1 FROM orders WHERE claim IS NULL AND status = 'reserved'")
        gates[three].set()
        gates[four].set()
        helped = helping.result()

    assert left == []
    assert helped
    assert helped["ids"] == batch["ids"][2:]
