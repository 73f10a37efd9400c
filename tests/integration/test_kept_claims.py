"""What a keeper lengthens: no more than its process will use, and without waiting for anybody."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fulfillment.services import submission, sweep
from fulfillment.services.claiming import SUBMIT, take_over
from fulfillment.services.context import Context
from fulfillment.store import orders
from tests.conftest import MakeContext
from tests.integration.test_growing_claims import Connecting, Kept, MakeWorker
from tests.integration.test_sharing import copies, reserved
from tests.support import WAIT_S, FakeClock, FakeProvider, rows, until


@pytest.fixture
def worker(make_context: MakeContext, provider: FakeProvider) -> MakeWorker:
    """Build contexts of worker processes, each with room for two requests."""

    def make(by: FakeProvider | None = None) -> Context:
        made = make_context(by or provider, main={"max_submits_in_flight": 2})
        made.threads = Kept()
        return made

    return make


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
