"""Workers that die, freeze, come twice or are turned away: each order is still bought once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.services import catalog as catalog_step
from fulfillment.services import dispatch, funds, sharing, submission
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    entries,
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


@pytest.mark.parametrize(
    "error", [ProviderDeniesAccount("401"), ProviderNotReached("refused")], ids=["denied", "away"]
)
def test_an_account_that_cannot_be_asked_pauses_and_keeps_its_orders(
    context: Context, provider: FakeProvider, clock: FakeClock, error: Any
) -> None:
    order = receive_one(context)
    provider.reads_fail(error)
    run_chain(context)
    paused = dispatch.dispatch(context, "main")

    provider.reads_fail(None)
    clock.advance(61)
    run_sweep(context)

    assert paused is None
    assert again(context, order).status is S.ACCEPTED


def test_wrong_credentials_cause_no_storm_of_requests(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, *(checkout() for _ in range(10)))
    provider.reads_fail(ProviderDeniesAccount("401"))

    for _ in range(120):
        run_ticks(context)
        clock.advance(1)

    assert len(provider.reads) <= 5


def test_a_batch_stops_when_the_account_is_turned_away_and_what_is_left_keeps_its_hold(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(4)))
    provider.fail_purchase(ProviderDeniesAccount("403"))

    run_chain(context)
    tried = len(provider.bodies)
    statuses = {again(context, order).status for order in placed}
    clock.advance(61)
    run_sweep(context)

    assert tried == 1
    assert statuses <= {S.SUBMITTING, S.RESERVED}
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.orders) == 4


def test_a_step_that_lost_its_claim_before_the_post_sends_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None

    rows(context, "UPDATE orders SET claim = 'another/submit' RETURNING 1")
    submit(context, batch)

    assert provider.bodies == []
    assert again(context, order).status is S.RESERVED


def _freeze(clock: FakeClock) -> None:
    clock.advance(31)


def _freeze_and_set_back(clock: FakeClock) -> None:
    clock.advance(31)
    clock.jump(-31)


def _suspend_the_machine(clock: FakeClock) -> None:
    clock.jump(31)


@pytest.mark.parametrize("stop", [_freeze, _freeze_and_set_back, _suspend_the_machine])
def test_a_frozen_worker_that_wakes_after_its_lease_sends_nothing_more(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    stop: Callable[[FakeClock], None],
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(3)))
    provider.on_purchase = lambda fields: stop(clock)

    run_chain(context)
    sent = len(provider.bodies)
    provider.on_purchase = lambda fields: None
    for _ in range(3):
        clock.advance(31)
        run_sweep(context)

    assert sent == 1
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.bodies) == len(placed)


def test_a_doubled_step_finds_nothing_left_to_do(context: Context, provider: FakeProvider) -> None:
    receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None

    steps = (catalog_step.refresh_catalog, funds.check_wallet)
    outcomes = [(step(context, batch).goes_on, step(context, batch).goes_on) for step in steps]
    submitted = (submission.submit_orders(context, batch), submission.submit_orders(context, batch))

    assert outcomes == [(True, False), (True, False)]
    assert [bool(found) for found in submitted] == [True, False]
    assert len(provider.bodies) == 1


def test_a_step_of_a_batch_that_was_taken_over_does_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    late = dispatch.dispatch(context, "main")
    assert late is not None
    clock.advance(31)

    run_sweep(context)
    zombie = catalog_step.refresh_catalog(context, late)

    assert not zombie.goes_on
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1


@pytest.mark.parametrize("crash_after", ["dispatch", "catalog", "wallet"])
def test_a_worker_that_dies_between_two_steps_is_taken_over_within_the_lease(
    context: Context, provider: FakeProvider, clock: FakeClock, crash_after: str
) -> None:
    order = receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    if crash_after != "dispatch":
        catalog_step.refresh_catalog(context, batch)
    if crash_after == "wallet":
        funds.check_wallet(context, batch)

    clock.advance(31)
    run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def test_a_worker_that_dies_after_its_intent_is_resolved_by_a_replay(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None
    provider.on_purchase = _die
    with pytest.raises(KeyboardInterrupt):
        submission.submit_orders(context, batch)
    intended = again(context, order).status

    provider.on_purchase = lambda fields: None
    clock.advance(31)
    run_sweep(context)

    assert intended is S.SUBMITTING
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.orders) == 1


def _die(fields: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def test_one_bad_order_does_not_fail_its_batch(context: Context, provider: FakeProvider) -> None:
    good = receive_one(context)
    gone = receive_one(context, catalogItemId="gone")
    other = receive_one(context)

    run_chain(context)

    assert again(context, gone).failure_code == "item_unavailable"
    assert {again(context, o).status for o in (good, other)} == {S.ACCEPTED}


def test_the_stores_id_and_the_webhooks_address_reach_the_provider_unchanged(
    context: Context, provider: FakeProvider
) -> None:
    receive_one(context, externalId="Order.42_x-Y")

    run_chain(context)

    sent = msgspec.json.decode(provider.bodies[0])
    assert sent["external_id"] == "Order.42_x-Y"
    assert sent["webhook_url"] == "http://127.0.0.1:9/webhooks/main"


def test_lookups_that_are_all_unanswered_pause_the_account(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, *(checkout() for _ in range(5)))
    run_chain(context)
    provider.reads_fail(ProviderNotReached("HTTP 503", is_outage=True))
    provider.reads.clear()

    for _ in range(240):
        run_polls(context)
        clock.advance(1)

    # Without a pause there would be 240: a claim that led to nothing lasts 5 s.
    assert 5 <= len(provider.reads) <= 60


def test_one_lookup_that_fails_among_others_pauses_nobody(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = receive(context, *(checkout() for _ in range(5)))
    run_chain(context)

    def fail_one(what: str) -> None:
        if placed[0].external_id in what:
            raise ProviderNotReached("a page that is no JSON", is_outage=True)

    provider.on_read = fail_one
    clock.advance(60)
    run_polls(context)

    assert rows(context, "SELECT paused_until FROM accounts") == [{"paused_until": None}]


def test_after_an_outage_one_purchase_goes_ahead_of_the_others(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 8})
    placed = receive(context, *(checkout() for _ in range(4)))
    for _ in placed:
        provider.fail_purchase(ProviderOutcomeUnknown("HTTP 503", is_outage=True), is_made=True)
    run_chain(context)
    clock.advance(61)
    in_flight, most_before_an_answer = list[str](), list[int]()
    another = threading.Event()

    def arrive(fields: dict[str, Any]) -> None:
        in_flight.append(fields["external_id"])
        if len(in_flight) == 1:
            another.wait(0.3)  # long enough for any other that were let go with it
            most_before_an_answer.append(len(in_flight))
        else:
            another.set()

    provider.on_purchase = arrive
    run_sweep(context)

    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert most_before_an_answer == [1]
    assert rows(context, "SELECT failures FROM accounts") == [{"failures": 0}]


def test_batches_of_a_process_share_its_slots_and_no_intent_waits_for_one(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 2})
    placed = receive(context, *(checkout() for _ in range(8)))
    batch = gather(context)
    assert batch is not None
    lock, in_flight = threading.Lock(), list[int]()
    intents: list[int] = []
    flying = 0

    def arrive(fields: dict[str, Any]) -> None:
        nonlocal flying
        with lock:
            flying += 1
            in_flight.append(flying)
            (found,) = rows(context, "SELECT count(*) n FROM orders WHERE status = 'submitting'")
            intents.append(found["n"])
            flying -= 1

    provider.on_purchase = arrive
    mine, others = sharing.share_out(context, batch, is_new=False)
    parts = [mine, *others]
    with ThreadPoolExecutor(len(parts)) as executor:
        assert all(executor.map(lambda part: submission.submit_orders(context, part), parts))

    assert len(parts) == 2
    assert max(in_flight) <= 2
    # An answered order reads "submitting" until its group's outcome is written.
    assert max(intents) <= 2 + 2
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.bodies) == len(placed)
