"""Workers, web, beat and intake are killed and frozen at work; the books agree all the same."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fulfillment.simulator.options import path_of
from tests.acceptance.driver import until
from tests.faults.brokers import OwnRedis
from tests.faults.ground import Ground

NoteS = Callable[[str, float], None]
WORKERS = ("worker-1", "worker-2")


@pytest.fixture
def ground(redis_ground: Ground) -> Ground:
    return redis_ground


@contextmanager
def laid(ground: Ground, account: str, **fault: Any) -> Iterator[None]:
    """Spoil an account's provider for the block."""
    faults = f"{path_of(account)}/_sim/faults"
    ground.driver.provider.post(faults, json=fault).raise_for_status()
    try:
        yield
    finally:
        ground.driver.provider.delete(faults)


@contextmanager
def slow_provider(ground: Ground, account: str = "main") -> Iterator[None]:
    """Let each answer of the provider take so long that every step can be caught in the act."""
    with laid(ground, account, fault="latency", seconds=1.5):
        yield


def claims(ground: Ground, ids: list[str]) -> dict[str, str]:
    rows = ground.sql(
        "SELECT external_id, claim FROM orders WHERE external_id = ANY(%(ids)s) "
        "AND claim IS NOT NULL",
        ids=ids,
    )
    return {row["external_id"]: row["claim"] for row in rows}


def test_work_of_workers_that_are_killed_goes_on_within_the_lease(
    ground: Ground, note_s: NoteS
) -> None:
    with slow_provider(ground):
        ids = ground.send(16)
        ground.until_any("submitting", ids)
        for name in WORKERS:
            ground.kill(name)
        died = time.monotonic()
        held = claims(ground, ids)
    assert held

    def have_gone_on() -> bool:
        return not set(held.items()) & set(claims(ground, ids).items())

    until("every claim of the dead is another's", have_gone_on)
    took_s = time.monotonic() - died

    note_s("all workers killed, until their last order went on (lease 5 s)", took_s)
    lease_s = ground.context.settings.claim_lease_s
    assert took_s <= lease_s + 10, "the workers' own start included"
    ground.assert_settled()


def test_workers_frozen_past_their_lease_wake_up_to_nothing_left(ground: Ground) -> None:
    with slow_provider(ground):
        ids = ground.send(16)
        ground.until_any("submitting", ids)
        frozen = ground.pids["worker-1"], ground.pids["worker-2"]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
    try:
        # Both: nobody takes the orders over, and whoever wakes finds its own lease gone.
        time.sleep(ground.context.settings.claim_lease_s + 1)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    ground.assert_settled()


def test_a_worker_frozen_past_its_lease_posts_nothing_that_its_successor_took_over(
    ground: Ground,
) -> None:
    processes = ground.driver.stack.processes
    processes.end("worker-2")
    with slow_provider(ground, "link"):
        ids = ground.send(16, account="link")

        def are_under_way() -> bool:
            begun = {name for name, s in ground.statuses(ids).items() if s == "submitting"}
            return bool(begun) and begun <= set(ground.driver.purchases())

        until("requests that the provider has and has not answered", are_under_way)
        frozen = ground.pids["worker-1"]
        os.kill(frozen, signal.SIGSTOP)
    try:
        ground.driver.stack.start_child("worker-2")
        before = {"received", "quoted", "reserved", "submitting"}
        until("all bought", lambda: not before & set(ground.statuses(ids).values()))
    finally:
        os.kill(frozen, signal.SIGCONT)
    ground.assert_settled()

    posts = [
        purchase["posts"]
        for each in ground.driver.purchases().items()
        if each[0] in ids
        for purchase in each[1]
    ]
    assert posts == [1] * len(ids)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_orders_of_a_route_are_bought_once_while_its_first_account_comes_and_goes(
    ground: Ground,
) -> None:
    """A purchase at the first account is answered by nobody, the account goes away, workers die."""
    with ground.flow(40, gap_s=0.1, route="either") as flow:
        for fault in ("torn", "outage", "gateway_timeout"):
            with laid(ground, "main", fault=fault):
                ground.until_busy()
                ground.kill("worker-1")
                ground.until_busy()
                ground.kill("worker-2")

    # SkinsBack is posted to again only after two empty lookups a minute apart.
    ground.assert_settled(within_s=240)
    accounts = [account for account in ("main", "back") if _sold(ground, account, flow.ids)]
    assert accounts == ["main", "back"], "one account sold all"


def _sold(ground: Ground, account: str, ids: Iterable[str]) -> set[str]:
    purchases = ground.driver.ledger(account)["purchases"]
    return {purchase["externalId"] for purchase in purchases} & set(ids)


def test_a_web_process_that_is_killed_and_frozen_costs_the_store_some_repetitions(
    ground: Ground,
) -> None:
    with ground.flow(20, gap_s=0.1) as flow:
        ground.until_busy()
        ground.kill("web")
        ground.until_busy()
        pid = until("web again", lambda: ground.pids.get("web"))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(pid, signal.SIGCONT)

    ground.assert_settled()
    assert flow.answers[0], "no connection was lost"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_intake_process_that_is_killed_loses_no_checkout_and_no_update(ground: Ground) -> None:
    """What a dead consumer held unacknowledged, Redis gives out again after a minute."""
    assert ground.redis is not None
    broker = OwnRedis(ground.redis, ground.broker_url)
    events = [ground.driver.checkout() for _ in range(20)]
    for place, event in enumerate(events):
        broker.send_checkout(event)
        if place in (5, 12):
            ground.kill("intake")
    ground.ids += [event["externalId"] for event in events]

    ground.assert_settled(within_s=180)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_without_any_beat_workers_find_what_is_due(ground: Ground, note_s: NoteS) -> None:
    ground.driver.stack.processes.end("beat")
    began = time.monotonic()
    try:
        # Nobody tells of them: neither a hint, for the broker loses it, nor a webhook.
        assert ground.redis is not None
        for name in WORKERS:
            ground.driver.stack.processes.end(name)
        ids = ground.send(5, "webhooks_lost")
        OwnRedis(ground.redis, ground.broker_url).wipe()
        for name in WORKERS:
            ground.driver.stack.start_child(name)

        until("purchases", lambda: "received" not in ground.statuses(ids).values())
        note_s("beat dead and every hint lost, until orders went on", time.monotonic() - began)
        ground.assert_settled()
        told = ground.driver.web.get("/readyz").json()["checks"]["ticks"]
        assert not told["ok"]
        assert "the workers stand in" in told["detail"]
    finally:
        ground.driver.stack.start_child("beat")
