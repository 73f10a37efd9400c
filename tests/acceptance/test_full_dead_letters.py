"""A queue of dead letters that takes no more: workers acknowledge nothing that it has not taken."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kombu
import pytest

from celeryconfig import INTAKE
from fulfillment.broker import connect, dead_queue
from fulfillment.clock import SystemClock
from fulfillment.services.context import Context
from fulfillment.services.operations import Check, check_readiness
from schemas.messages import RECEIVE
from tests.acceptance.test_checkout_queue import is_stored, refusing
from tests.acceptance.test_worker_process import Worker, worker
from tests.conftest import MakeContext
from tests.servers import own_vhost
from tests.support import FakeProvider, checkout, until

PAST = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider) -> Iterator[Context]:
    """Give a context at a virtual host of its own, in which time passes by itself."""
    with own_vhost() as (url, _):
        yield replace(make_context(provider, broker_url=url), clock=SystemClock())


@pytest.fixture
def connection(context: Context) -> Iterator[kombu.Connection]:
    with connect(context.settings, confirm=True) as made:
        dead_queue(made.default_channel).declare()
        yield made


def send(connection: kombu.Connection, body: Any, **headers: Any) -> None:
    headers = {"task": RECEIVE, "id": uuid.uuid4().hex, **headers}
    connection.Producer().publish(body, routing_key=INTAKE, serializer="json", headers=headers)


def send_what_is_put_aside(connection: kombu.Connection) -> None:
    """Send what is expired, what nobody can read, and a checkout that intake refuses."""
    send(connection, [[checkout()], {}, {}], expires=PAST)
    send(connection, [[checkout()], [1], {}])
    send(connection, [[checkout(expectedPrice="none")], {}, {}])


def told(context: Context) -> Check | None:
    found = (check for check in check_readiness(context) if check.name == "dead letters")
    return next(found, None)


def count(connection: kombu.Connection, name: str) -> int:
    channel: Any = connection.default_channel
    return int(channel.queue_declare(name, passive=True).message_count)


def is_tried_again(ours: Worker, times: int) -> bool:
    """Say whether each of the three was refused so many times, at the least."""
    return ours.said.count("dead_letter.not_taken") >= 3 * times


def test_what_a_worker_cannot_put_aside_goes_round_slowly_until_it_can(
    context: Context, connection: kombu.Connection, tmp_path: Path
) -> None:
    url, good = context.settings.broker_url.get_secret_value(), checkout()
    with worker(context, tmp_path, url) as ours:
        assert ours.takes_a_checkout(), ours.said
        with refusing(context, connection):
            began, before = time.monotonic(), count(connection, dead_queue.name)
            send_what_is_put_aside(connection)
            until(lambda: is_tried_again(ours, 2))
            send(connection, [[good], {}, {}])
            until(lambda: is_stored(context, good))
            turns, refused = time.monotonic() - began, ours.said.count("dead_letter.not_taken")
            while_full = told(context)

        until(lambda: count(connection, dead_queue.name) == before + 3)

        assert refused <= 3 * (turns + 1), ours.said  # a second lies between two tries
        assert while_full is not None
        assert (while_full.is_ok, while_full.is_needed) == (False, True)
        assert ours.takes_a_checkout(), ours.said


def test_what_a_worker_could_not_put_aside_is_back_in_its_queue_when_it_ends(
    context: Context, connection: kombu.Connection, tmp_path: Path
) -> None:
    url = context.settings.broker_url.get_secret_value()
    with worker(context, tmp_path, url) as ours:
        assert ours.takes_a_checkout(), ours.said
        with refusing(context, connection):
            send_what_is_put_aside(connection)
            until(lambda: is_tried_again(ours, 1))
            ours.process.terminate()
            assert ours.process.wait(20) == 0, ours.said

            assert until(lambda: count(connection, INTAKE)) == 3
