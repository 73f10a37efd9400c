"""A run of a batch while something fails or ends: what is under way is heard all the same."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from kombu.exceptions import OperationalError

import tasks.sweep
from fulfillment import broker
from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused, ServerUnreachable
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import intents, outcomes, purchases, sharing, submission, sweep
from fulfillment.services.answers import Answer, Refused
from fulfillment.services.budget import RateBudget
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.store import orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Database
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.messages import Batch
from tests.conftest import MakeContext
from tests.integration.test_growing_claims import Kept
from tests.integration.test_sharing import Gate, reserved, statuses
from tests.support import (
    WAIT_S,
    FakeClock,
    FakeProvider,
    checkout,
    receive,
    rows,
    run_chain,
    run_sweep,
    until,
)

Worker = Callable[..., Context]
Beside = tuple[Context, FakeProvider, FakeProvider]


@pytest.fixture
def worker(make_context: MakeContext, provider: FakeProvider) -> Worker:
    def make(slots: int = 2, **main: Any) -> Context:
        return make_context(provider, main={"max_submits_in_flight": slots, **main})

    return make


class Held:
    """Holds up these purchases, each until it is let go."""

    def __init__(self, provider: FakeProvider, names: list[str]) -> None:
        self.gates = {name: threading.Event() for name in names}
        self.came: set[str] = set()
        self.refused: set[str] = set()
        provider.on_purchase = self._arrive

    def _arrive(self, fields: dict[str, Any]) -> None:
        name = fields["external_id"]
        self.came.add(name)
        if (gate := self.gates.pop(name, None)) is not None:
            assert gate.wait(WAIT_S)
            if name in self.refused:
                raise ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold out")


@pytest.mark.parametrize(("act", "count"), [("begin", 4), ("write_outcomes", 2)])
def test_a_no_that_is_under_way_is_heard_although_a_transaction_of_others_fails(
    worker: Worker,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    count: int,
) -> None:
    """One statement that timed out, one terminated backend, one wait for a connection too long."""
    context = worker()
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, count)
    one, two = batch["names"][:2]
    held = Held(provider, [one, two])
    held.refused = {two}
    gates, real, failed = dict(held.gates), getattr(submission, act), threading.Event()

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(submission, act, real)
        failed.set()
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    monkeypatch.setattr(submission, act, fail_once)
    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: {one, two} <= held.came)
        gates[one].set()
        assert failed.wait(WAIT_S)
        gates[two].set()  # the database serves us again
        with suppress(ServerUnreachable):  # the task logs it
            flying.result()
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)

    assert statuses(context) == {"accepted": count - 1, "failed": 1}


def test_a_no_that_is_under_way_is_heard_although_what_another_tells_cannot_be_kept(
    worker: Worker, provider: FakeProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out counts for the account, and the connection by which it is counted is cut."""
    context = worker()
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 2)
    one, two = batch["names"]
    held = Held(provider, [two])
    held.refused = {two}
    (gate,), real = held.gates.values(), purchases.fail
    provider.fail_purchase(ProviderOutcomeUnknown("timed out"))

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(purchases, "fail", real)
        gate.set()
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    monkeypatch.setattr(purchases, "fail", fail_once)
    submission.submit_orders(context, batch)
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)

    assert one in held.came
    assert statuses(context) == {"failed": 1, "needs_review": 1}


@pytest.mark.parametrize("what", ["budget", "end"])
def test_what_was_begun_with_the_claim_is_sent_although_a_transaction_of_others_fails(
    worker: Worker,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """The others wait for requests of the budget, or are too late: nothing was sent of any yet."""
    limit = {"budget": 600, "end": None}[what]
    context = worker(rate_per_minute=limit)
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 3)
    if what == "end":
        query = "UPDATE orders SET submit_by = %(at)s WHERE id = %(id)s RETURNING id"
        rows(context, query, at=clock.now(), id=batch["ids"][2])
    owner, name = (RateBudget, "take") if what == "budget" else (submission, "apply_ours")
    real = getattr(owner, name)

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    monkeypatch.setattr(owner, name, fail_once)
    submission.submit_orders(context, batch)
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)

    assert statuses(context).get("needs_review") is None
    assert statuses(context)["accepted"] >= 2


def test_requests_are_given_back_where_what_they_do_not_suffice_for_cannot_be_left(
    worker: Worker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = worker(slots=10, rate_per_minute=30)
    batch = reserved(context, 10)
    budget = context.budget("main")
    clock.advance(60)
    before = budget.left(Purpose.URGENT)

    def fail(*_: Any, **__: Any) -> Any:
        raise ServerUnreachable("PostgreSQL", "X", "the connection was terminated")

    monkeypatch.setattr(submission, "_put_off", fail)
    with suppress(ServerUnreachable):  # the task logs it
        submission.submit_orders(context, batch)

    assert budget.left(Purpose.URGENT) == before


def test_an_outcome_that_we_fail_at_takes_no_other_with_it(
    worker: Worker, provider: FakeProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A no that nobody has written is a person's where no lookup proves an absence."""
    context = worker(slots=3)
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 3)
    odd, real = batch["ids"][0], outcomes.write_outcomes
    for _ in batch["ids"]:
        provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold out"))

    def write(context: Context, claim: KeptClaim, answers: Sequence[tuple[Order, Answer]]) -> None:
        if any(order.id == odd and isinstance(answer, Refused) for order, answer in answers):
            raise ValueError("a bug")
        real(context, claim, answers)

    monkeypatch.setattr(submission, "write_outcomes", write)
    monkeypatch.setattr(submission, "_GROUP_S", 1.0)
    submission.submit_orders(context, batch)
    for _ in range(60):
        clock.advance(31)
        run_sweep(context)

    assert statuses(context) == {"failed": 2, "needs_review": 1}


def test_a_lock_on_what_is_claimed_and_not_begun_loses_no_answer(
    worker: Worker, provider: FakeProvider, database_url: str
) -> None:
    """The lock outlives a statement."""
    context, other = worker(), worker()
    batch = reserved(context, 4)
    held = Held(provider, batch["names"][:2])
    one, two = held.gates.values()
    context.database = Database(database_url, statement_timeout_s=1)  # 20 where it is not a test

    try:
        with ThreadPoolExecutor(1) as executor, other.database.transaction() as session:
            flying = executor.submit(submission.submit_orders, context, batch)
            until(lambda: len(held.came) == 2)
            orders.lock(session, batch["ids"][2:3])
            one.set()
            until(lambda: statuses(other).get("accepted") == 1)
            threading.Timer(2, two.set).start()
            with suppress(ServerUnreachable):  # the task logs it
                flying.result(WAIT_S)
        assert len(provider.bodies) == 2
        assert statuses(other).get("accepted") == 2
    finally:
        context.database.close()


def test_an_outcome_whose_order_is_locked_for_long_takes_no_other_with_it(
    worker: Worker,
    provider: FakeProvider,
    clock: FakeClock,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For longer than both tries to write them together wait."""
    context, other = worker(), worker()
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 2)
    held = Held(provider, batch["names"])
    held.refused = set(batch["names"])
    gates = list(held.gates.values())
    monkeypatch.setattr(submission, "_GROUP_S", 1.0)
    context.database = Database(database_url, statement_timeout_s=1)  # 20 where it is not a test

    try:
        with ThreadPoolExecutor(1) as executor, other.database.transaction() as session:
            flying = executor.submit(submission.submit_orders, context, batch)
            until(lambda: len(held.came) == 2)
            orders.lock(session, batch["ids"][:1])
            for gate in gates:
                gate.set()
            with suppress(ServerUnreachable):  # the task logs it
                flying.result(WAIT_S)
    finally:
        context.database.close()
    for _ in range(60):
        clock.advance(31)
        run_sweep(other)

    assert statuses(other) == {"failed": 1, "needs_review": 1}


def doubt_last(context: Context, ids: list[int], clock: FakeClock) -> None:
    """Let somebody have told of the last one, long enough ago to ask for it."""
    query = "UPDATE orders SET told_early_at = %(at)s WHERE id = %(id)s RETURNING id"
    rows(context, query, at=clock.now() - timedelta(minutes=2), id=ids[-1])


def test_nothing_is_begun_before_others_of_its_batch_are_looked_for(
    worker: Worker, provider: FakeProvider, clock: FakeClock
) -> None:
    """The worker dies in the search: what was never sent needs no person."""
    context, other = worker(), worker()
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 2)
    doubt_last(context, batch["ids"], clock)

    class Killed(BaseException):
        pass

    def on_read(what: str) -> None:
        if what.startswith("order"):
            raise Killed

    provider.on_read = on_read
    with pytest.raises(Killed):
        submission.submit_orders(context, batch)
    assert provider.bodies == []
    provider.on_read = lambda _: None
    for _ in range(60):
        clock.advance(31)
        run_sweep(other)

    assert statuses(other) == {"accepted": 2}


@pytest.fixture
def beside(make_context: MakeContext) -> Beside:
    """Give an account `main` with two slots, another one, and the provider of each."""
    slow, quick = FakeProvider(), FakeProvider()
    account = {"provider": "skinsnode", "base_url": "http://127.0.0.1:9", "client_secret": "x" * 32}
    main = account | {"client_id": "a", "max_submits_in_flight": 2}
    context = make_context(accounts={"main": main, "second": account | {"client_id": "b"}})
    context._providers.update(main=slow, second=quick)
    return context, slow, quick


def assert_another_account_is_served(beside: Beside, batches: Sequence[Batch]) -> None:
    """While the first two purchases hang, in as many threads as a worker has by default."""
    context, slow, quick = beside
    gate = Gate(slow, held=2)
    receive(context, checkout(account="second"))
    with ThreadPoolExecutor(context.settings.worker_threads) as celery:
        for batch in batches:
            celery.submit(submission.submit_orders, context, batch)
        until(lambda: gate.came == 2)
        celery.submit(run_chain, context, "second")
        try:
            until(lambda: len(quick.bodies) == 1, within_s=5)
        finally:
            gate.open()


def test_parts_of_one_account_that_wait_for_its_slots_leave_threads_to_other_accounts(
    beside: Beside, clock: FakeClock
) -> None:
    """One batch of the default size, whose message was lost."""
    context = beside[0]
    reserved(context, 64)
    clock.advance(31)
    (found,) = sweep.resume_stuck(context).batches
    mine, others = sharing.share_out(context, found, is_new=False)

    assert_another_account_is_served(beside, [mine, *others])


def test_first_messages_that_wait_for_an_accounts_slots_leave_threads_to_other_accounts(
    beside: Beside,
) -> None:
    """Of batches that one process has no room for; the rest is bought all the same."""
    context = beside[0]
    batches = [reserved(context, 5) for _ in range(17)]

    assert_another_account_is_served(beside, batches)
    for _ in range(20):
        run_sweep(context)

    assert statuses(context) == {"accepted": 86}


def test_runs_that_lost_their_slots_to_others_leave_threads_to_other_accounts(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it writes its first outcomes, each loses them to the next message."""
    context, slow, quick = beside
    threads = context.settings.worker_threads
    batches = [reserved(context, 4) for _ in range(threads)]
    receive(context, checkout(account="second"))
    came, hang, gate = set[str](), threading.Event(), threading.Event()
    real, lock = outcomes.write_outcomes, threading.Lock()

    def on_purchase(fields: dict[str, Any]) -> None:
        with lock:
            came.add(fields["external_id"])
        if len(came) >= 2 * threads:
            hang.set()
            assert gate.wait(WAIT_S)

    with ThreadPoolExecutor(threads) as celery:

        def write(context: Context, claim: KeptClaim, answers: list[tuple[Order, Answer]]) -> None:
            if not hang.is_set() and len(answers) == 2:
                celery.submit(submission.submit_orders, context, batches.pop())
                assert hang.wait(WAIT_S)
            real(context, claim, answers)

        slow.on_purchase = on_purchase
        monkeypatch.setattr(submission, "write_outcomes", write)
        monkeypatch.setattr(submission, "_GROUP_S", 1.0)
        celery.submit(submission.submit_orders, context, batches.pop())
        try:
            assert hang.wait(WAIT_S)
            celery.submit(run_chain, context, "second")
            until(lambda: len(quick.bodies) == 1, within_s=5)
        finally:
            gate.set()


def test_a_worker_that_is_told_to_stop_begins_none_of_what_waits_for_its_slots(
    worker: Worker, provider: FakeProvider
) -> None:
    """What the sweep found, in parts: the first has the slot, and four wait."""
    context = worker(slots=1)
    batch = reserved(context, 32)
    mine, others = sharing.share_out(context, batch, is_new=False)
    gate = Gate(provider, held=1)
    taken = "SELECT count(*) AS n FROM orders WHERE claim LIKE '%%/submit'"

    with ThreadPoolExecutor(16) as executor:
        for part in (mine, *others):
            executor.submit(submission.submit_orders, context, part)
        until(lambda: gate.came == 1 and rows(context, taken) == [{"n": 10}])
        context.threads.is_ending = True
        gate.open()

    assert len(provider.bodies) == 1


def test_a_first_message_that_waited_begins_nothing_once_the_worker_is_told_to_stop(
    worker: Worker, provider: FakeProvider
) -> None:
    context = worker()
    first, second = reserved(context, 5), reserved(context, 5)
    gate = Gate(provider, held=2)

    with ThreadPoolExecutor(2) as executor:
        executor.submit(submission.submit_orders, context, first)
        until(lambda: gate.came == 2)
        executor.submit(submission.submit_orders, context, second)
        until(lambda: context.threads._names.total() == 2)
        context.threads.is_ending = True
        gate.open()

    assert len(provider.bodies) == 2


def test_who_waits_for_a_locked_order_ends_when_the_worker_is_told_to_stop(worker: Worker) -> None:
    context, other = worker(), worker()
    batch = reserved(context, 4)

    with ThreadPoolExecutor(1) as executor, other.database.transaction() as session:
        orders.lock(session, batch["ids"][3:])
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: statuses(context).get("accepted") == 3)
        context.threads.is_ending = True
        try:
            flying.result(5)  # it waits for a lease
        finally:
            session.connection.commit()


def test_a_connection_that_was_cut_costs_what_the_sweep_found_no_lease(
    worker: Worker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after RabbitMQ was started anew: the first publish without a retry fails."""
    context = worker()
    reserved(context, 4)
    clock.advance(31)
    sent: list[str] = []
    cut = [OperationalError("the connection was closed")]

    def send_task(name: str, args: Any, *, retry: bool = True) -> None:
        if cut and (error := cut.pop()) and not retry:
            raise error
        sent.append(name)

    monkeypatch.setattr(tasks.sweep, "context", lambda: context)
    monkeypatch.setattr(broker.app, "send_task", send_task)
    monkeypatch.setattr(broker, "_silent_until", 0.0)
    for _ in range(5):
        tasks.sweep.resume_stuck.run()
        clock.advance(2)
        monkeypatch.setattr(broker, "_silent_until", 0.0)

    assert "checkout.submit_orders" in sent


def test_what_a_late_first_message_begins_with_is_priced_afresh_too(
    worker: Worker, provider: FakeProvider, clock: FakeClock
) -> None:
    """Of a batch that one process has room for, as all are by default."""
    context = worker()
    batch = reserved(context, 4)
    clock.advance(900)

    submission.submit_orders(context, batch)

    assert provider.bodies == []


def test_what_has_lapsed_while_it_waited_for_a_slot_is_not_begun(
    worker: Worker, provider: FakeProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was locked for a lease, so that nobody renewed it; a sweep comes upon the intent."""
    context, other = worker(slots=1), worker(slots=1)
    context.threads = keepers = Kept()
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    batch = reserved(context, 2)
    held = Held(provider, batch["names"][:1])
    (gate,) = held.gates.values()

    def crash_point(name: str, *_: Any) -> None:
        if name == "intent.after_commit" and gate.is_set():
            monkeypatch.undo()
            run_sweep(other)

    monkeypatch.setattr(intents, "crash_point", crash_point)
    with ThreadPoolExecutor(1) as executor:
        flying = executor.submit(submission.submit_orders, context, batch)
        until(lambda: held.came)
        with other.database.transaction() as session:
            orders.lock(session, batch["ids"][1:])
            for _ in range(3):
                clock.advance(10)
                for keep in keepers.keep:
                    keep()
        clock.advance(1)
        gate.set()
        flying.result()
    for _ in range(60):
        clock.advance(31)
        run_sweep(other)

    assert statuses(context) == {"accepted": 2}
