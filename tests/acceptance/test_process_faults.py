"""Processes and messages are taken away on purpose; orders finish all the same, bought once."""

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
