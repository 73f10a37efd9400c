"""Processes and messages are taken away on purpose; orders finish all the same, bought once."""

import subprocess
import sys

import httpx
import redis

from tests.acceptance.driver import SPEED, Driver, until

WORKERS = ("worker-1", "worker-2")


def test_orders_finish_although_every_message_was_lost_after_intake(stack: Driver) -> None:
    for name in (*WORKERS, "beat"):
        stack.stack.processes.end(name)
    ids = stack.send(stack.checkout() for _ in range(10))

    address = stack.stack.settings.broker_url.get_secret_value()
    broker = redis.Redis(unix_socket_path=address.removeprefix("redis+socket://"))
    assert broker.dbsize()
    broker.flushall()
    broker.close()
    for name in (*WORKERS, "beat"):
        stack.stack.start_child(name)

    assert set(stack.wait_final(ids).values()) == {"completed"}
    stack.assert_agreement(ids)


def test_two_beats_change_nothing(stack: Driver) -> None:
    other = subprocess.Popen(
        [sys.executable, "-m", "fulfillment.cli", "beat"],
        env=stack.stack.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ids = stack.send(stack.checkout("webhooks_lost") for _ in range(5))
        stack.wait_final(ids)
    finally:
        other.terminate()
        other.wait(20)

    stack.assert_agreement(ids)
    gaps = [stack.purchases()[external_id][0]["minReadGapS"] for external_id in ids]
    # Virtual seconds: at this speed the smallest interval of 1 s is 30 s of the provider's.
    assert all(gap is None or gap >= SPEED for gap in gaps), gaps


def test_a_dead_beat_shows_in_readiness(stack: Driver) -> None:
    assert stack.web.get("/readyz").status_code == httpx.codes.OK

    stack.stack.processes.end("beat")

    def ticks() -> bool:
        answer = stack.web.get("/readyz")
        return answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "beat" in answer.text

    until("not ready for want of ticks", ticks, 40)
    stack.stack.start_child("beat")
    until("ready again", lambda: stack.web.get("/readyz").is_success)
