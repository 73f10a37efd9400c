"""Processes and messages are taken away on purpose; orders finish all the same, bought once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
import redis

from fulfillment.devstack.stack import StackOptions
from tests.acceptance.driver import SPEED, Driver, running_stack, until


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Run a stack with one worker, for tests that break it and mend it again."""
    options = StackOptions(
        children=("simulator", "web", "worker", "beat", "intake"),
        workers=1,
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    with running_stack(tmp_path_factory.mktemp("fragile"), options) as driver:
        yield driver


def test_orders_finish_although_every_message_was_lost_after_intake(fragile: Driver) -> None:
    fragile.stack.processes.end("worker-1")
    fragile.stack.processes.end("beat")
    ids = fragile.send(fragile.checkout() for _ in range(10))

    address = fragile.stack.settings.broker_url.get_secret_value()
    broker = redis.Redis(unix_socket_path=address.removeprefix("redis+socket://"))
    assert broker.dbsize()
    broker.flushall()
    broker.close()
    fragile.stack.start_child("worker-1")
    fragile.stack.start_child("beat")

    assert set(fragile.wait_final(ids).values()) == {"completed"}
    fragile.assert_agreement(ids)


@pytest.mark.parametrize("step", ["received", "reserved", "submitting"])
def test_a_worker_killed_between_two_steps_is_replaced_and_nothing_is_bought_twice(
    fragile: Driver, step: str
) -> None:
    # The provider answers slowly, so that every step can be caught in the act.
    slow = {"fault": "latency", "seconds": 1.5}
    fragile.provider.post("/_sim/faults", json=slow).raise_for_status()
    ids = fragile.send(fragile.checkout() for _ in range(20))
    # Only a few are submitted at a time, so the others of the batch can be seen before it.
    until(step, lambda: fragile.any_is(step, ids))

    fragile.stack.processes.kill("worker-1", signal.SIGKILL)
    fragile.provider.delete("/_sim/faults")

    assert set(fragile.wait_final(ids).values()) == {"completed"}
    fragile.assert_agreement(ids)


def test_a_worker_frozen_past_its_lease_buys_nothing_twice(fragile: Driver) -> None:
    slow = {"fault": "latency", "seconds": 1.5}
    fragile.provider.post("/_sim/faults", json=slow).raise_for_status()
    ids = fragile.send(fragile.checkout() for _ in range(40))
    until("submitting", lambda: fragile.any_is("submitting", ids))

    frozen = fragile.stack.processes.pids["worker-1"]
    os.kill(frozen, signal.SIGSTOP)
    fragile.provider.delete("/_sim/faults")
    helper = fragile.stack.env | {"FULFILLMENT_LOG_LEVEL": "INFO"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fulfillment.cli", "worker", "--name", "second"],
        env=helper,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        fragile.wait_final(ids)
        os.kill(frozen, signal.SIGCONT)
        until("the frozen worker's own answers", lambda: fragile.web.get("/readyz").is_success)
        fragile.assert_agreement(ids)
    finally:
        process.terminate()
        process.wait(20)


def test_a_restarted_redis_does_not_stop_the_workers(fragile: Driver) -> None:
    first = fragile.send(fragile.checkout() for _ in range(5))
    fragile.wait_final(first)
    address = fragile.stack.settings.broker_url.get_secret_value()
    broker = redis.Redis(unix_socket_path=address.removeprefix("redis+socket://"))

    broker.client_kill_filter(_type="normal", skipme=True)
    broker.client_kill_filter(_type="pubsub", skipme=True)
    broker.close()
    second = fragile.send(fragile.checkout() for _ in range(5))

    assert set(fragile.wait_final(second).values()) == {"completed"}


def test_two_beats_change_nothing(fragile: Driver) -> None:
    other = subprocess.Popen(
        [sys.executable, "-m", "fulfillment.cli", "beat"],
        env=fragile.stack.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ids = fragile.send(fragile.checkout("webhooks_lost") for _ in range(5))
        fragile.wait_final(ids)
    finally:
        other.terminate()
        other.wait(20)

    fragile.assert_agreement(ids)
    gaps = [fragile.purchases()[external_id][0]["minReadGapS"] for external_id in ids]
    # Virtual seconds: at this speed the smallest interval of 1 s is 30 s of the provider's.
    assert all(gap is None or gap >= SPEED for gap in gaps), gaps


def test_a_dead_beat_shows_in_readiness(fragile: Driver) -> None:
    assert fragile.web.get("/readyz").status_code == httpx.codes.OK

    fragile.stack.processes.end("beat")

    def ticks() -> bool:
        answer = fragile.web.get("/readyz")
        return answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "beat" in answer.text

    until("not ready for want of ticks", ticks, 40)
    fragile.stack.start_child("beat")
    until("ready again", lambda: fragile.web.get("/readyz").is_success)
