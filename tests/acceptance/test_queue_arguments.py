"""Our queues at RabbitMQ: classic ones in every virtual host, and named where they are others."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from fulfillment import broker
from fulfillment.broker import connect
from fulfillment.messaging import consumer, store_client
from fulfillment.messaging.consumer import CheckoutConsumer
from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services.context import Context
from fulfillment.settings import Settings
from schemas.messages import CHECKOUT_QUEUE, DEAD_QUEUE
from tests.acceptance.test_checkout_queue import consuming, is_stored, send
from tests.acceptance.test_relay import relaying
from tests.acceptance.test_worker_process import worker
from tests.conftest import MakeContext, environment_of
from tests.servers import own_vhost, rabbitmqctl
from tests.support import FakeProvider, checkout, until

TASK_QUEUES = ("celery", "fulfillment.chain", "fulfillment.follow")
QUEUES = (*TASK_QUEUES, CHECKOUT_QUEUE, DEAD_QUEUE)


@pytest.fixture(scope="module")
def quorum() -> Iterator[tuple[str, str]]:
    """Give the address and the name of a virtual host whose queues are quorum queues by default."""
    with own_vhost("--default-queue-type", "quorum") as (url, name):
        if not name:
            pytest.skip("rabbitmqctl cannot be run here, or may make no such virtual host")
        yield url, name


@pytest.fixture(scope="module")
def vhost() -> Iterator[tuple[str, str]]:
    with own_vhost() as (url, name):
        if not name:
            pytest.skip("rabbitmqctl cannot be run here, or may make no virtual host")
        yield url, name


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "hint", lambda *_: False)
    monkeypatch.setattr(consumer, "_RETRY_S", 0.05)
    monkeypatch.setattr("fulfillment.messaging.relay._RETRY_S", 0.05)


def complaint(url: str) -> str:
    return broker.complaint(Settings(_env_file=None, broker_url=SecretStr(url)))


def types(vhost: str) -> dict[str, str]:
    listed = rabbitmqctl("--quiet", "list_queues", "--vhost", vhost, "name", "type") or ""
    rows = (line.split("\t") for line in listed.splitlines()[1:])
    return {row[0]: row[1] for row in rows}


def test_a_worker_runs_where_queues_are_quorum_queues_by_default(
    context: Context, tmp_path: Path, quorum: tuple[str, str]
) -> None:
    url, name = quorum
    with worker(context, tmp_path, url) as ours:
        event = checkout()
        store_client._application.cache_clear()
        store_client.send_checkout(url, event)
        until(lambda: ours.process.poll() is not None or is_stored(context, event))
        # Celery's own queues: what Flower and `inspect` ask by, and the answers.
        ping = (sys.executable, "-m", "celery", "-A", "fulfillment.broker", "inspect", "ping")
        env = environment_of(context, tmp_path, url)
        answer = subprocess.run(ping, env=env, capture_output=True, text=True, check=False)

        assert ours.process.poll() is None, ours.said
        assert "does not support global qos" not in ours.said
        assert "pong" in answer.stdout, answer
    assert complaint(url) == ""
    assert {name: kind for name, kind in types(name).items() if name in QUEUES} == dict.fromkeys(
        QUEUES, "classic"
    )


def test_checkouts_are_taken_in_and_put_aside_where_queues_are_quorum_queues_by_default(
    make_context: MakeContext, provider: FakeProvider, quorum: tuple[str, str]
) -> None:
    context = make_context(provider, broker_url=quorum[0])
    good, bad = checkout(), checkout(expectedPrice="none")
    with consuming(context), relaying(context), connect(context.settings) as store:
        until(lambda: CHECKOUT_QUEUE in types(quorum[1]))
        send(store, bad)
        send(store, good)
        until(lambda: is_stored(context, good))
        dead = broker.dead_queue(store.default_channel)
        until(lambda: dead.get(no_ack=True))


def test_queues_that_a_version_before_declared_are_taken_as_they_are(
    vhost: tuple[str, str],
) -> None:
    with kombu.Connection(vhost[0]) as connection:
        channel: Any = connection.default_channel
        for name in QUEUES:
            channel.queue_declare(name, durable=True, auto_delete=False)

        assert complaint(vhost[0]) == ""
        for name in QUEUES:  # ... and the other way round: it goes on beside this one
            channel.queue_declare(name, durable=True, auto_delete=False)


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_with_other_arguments_is_named(vhost: tuple[str, str], name: str) -> None:
    with kombu.Connection(vhost[0]) as connection:
        channel: Any = connection.default_channel
        channel.queue_delete(name)
        channel.queue_declare(
            name, durable=True, auto_delete=False, arguments={"x-max-length": 1000}
        )

        told = complaint(vhost[0])
        channel.queue_delete(name)

    assert told.startswith("it refuses our queues: PRECONDITION_FAILED - ")
    assert f"'{name}'" in told
    assert "'x-max-length'" in told
    assert complaint(vhost[0]) == ""


@pytest.mark.parametrize(
    ("name", "part", "event"),
    [
        (DEAD_QUEUE, CheckoutConsumer, "intake.interrupted"),
        (CHECKOUT_QUEUE, OutboxRelay, "relay.waiting"),
    ],
)
def test_intake_names_the_queue_that_it_cannot_declare(
    make_context: MakeContext,
    provider: FakeProvider,
    vhost: tuple[str, str],
    name: str,
    part: type[CheckoutConsumer | OutboxRelay],
    event: str,
) -> None:
    context, stop = make_context(provider, broker_url=vhost[0]), threading.Event()
    with kombu.Connection(vhost[0]) as connection:
        channel: Any = connection.default_channel
        channel.queue_delete(name)
        channel.queue_declare(name, durable=True, auto_delete=False, arguments={"x-expires": 10**7})
        with capture_logs() as logs:
            thread = threading.Thread(target=part(context, stop).run)
            thread.start()
            try:
                told = until(lambda: next((e for e in logs if e["event"] == event), None))
            finally:
                stop.set()
                thread.join()
        channel.queue_delete(name)

    assert told["reason"].startswith("PreconditionFailed: PRECONDITION_FAILED - ")
    assert f"'{name}'" in told["reason"]
    assert "'x-expires'" in told["reason"]
