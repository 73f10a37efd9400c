"""A queue of the store that is full and refuses what comes: it waits, and all else goes on."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from fulfillment.broker import connect
from fulfillment.messaging import refusals
from fulfillment.messaging.publishing import make_publisher
from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services import updates
from fulfillment.services.context import Context
from fulfillment.services.operations import Check, check_readiness
from fulfillment.store import outbox
from fulfillment.store.models import Order
from schemas.messages import NEEDS_REVIEW
from tests.acceptance.test_relay import bound, is_all_published, relaying, sequences, taken
from tests.conftest import MakeContext
from tests.support import FakeClock, checkout, receive, rows, run_chain, until

FULL = {"x-max-length": 3, "x-overflow": "reject-publish"}


@pytest.fixture
def context(make_context: MakeContext, provider: Any, broker_url: str) -> Context:
    return make_context(provider, broker_url=broker_url, updates_queues="full")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORTEST_S", "_LONGEST_S"):
        monkeypatch.setattr(refusals, name, 0.05)
    for name in ("_UNHEARD_S", "_COUNT_S"):
        monkeypatch.setattr(f"fulfillment.messaging.relay.{name}", 0.05)


def found(context: Context, name: str) -> Check | None:
    checks = (check for check in check_readiness(context) if check.name == name)
    return next(checks, None)


def is_refused(context: Context) -> bool:
    return found(context, "updates taken") is not None


@contextmanager
def logged_relay(context: Context) -> Iterator[list[Any]]:
    with capture_logs() as logs, relaying(context):
        yield logs


def test_a_full_queue_of_the_store_is_told_of_and_the_relay_is_alive(
    context: Context, clock: FakeClock
) -> None:
    with (
        connect(context.settings) as connection,
        bound(connection, "full", "order.updated", queue_arguments=FULL) as full,
        logged_relay(context) as logs,
    ):
        placed = receive(context, *(checkout() for _ in range(8)))
        until(lambda: is_refused(context))
        for _ in range(3):
            clock.advance(20)
            until(lambda: (relay := found(context, "relay")) and relay.is_ok)
            until(lambda: is_refused(context))
        told = found(context, "updates taken")
        until(lambda: updates.unread(context))
        unread = {each.queue: each.messages for each in updates.unread(context)}
        waiting = len(rows(context, "SELECT 1 FROM outbox_messages"))

        heard = taken(full)

        def is_over() -> bool:
            heard.extend(taken(full))
            return is_all_published(context)

        until(is_over)
        clock.advance(31)
        heard += taken(full)

    assert told is not None
    assert (told.is_ok, told.is_needed) == (False, False)
    assert told.detail == f"order.updated wait and are tried again: {updates.REFUSED}"
    assert unread == {"full": 3}
    assert waiting == 5
    assert not is_refused(context)
    assert sequences(heard) == {order.external_id: [1] for order in placed}
    events = [line["event"] for line in logs if line["event"].startswith("relay.")]
    assert events[:2] == ["relay.refused", "relay.refused_no_more"]
    assert "relay.waiting" not in events
    assert next(line["keys"] for line in logs if line["event"] == "relay.refused") == [
        "order.updated"
    ]


def test_a_queue_beside_one_that_is_full_hears_all_that_is_not_refused_and_little_twice(
    context: Context,
) -> None:
    """RabbitMQ gives a message to every queue that takes it, and refuses it all the same."""
    relay = OutboxRelay(context, threading.Event())
    with (
        connect(context.settings) as connection,
        connect(context.settings) as ours,
        bound(connection, "full", "order.updated", queue_arguments=FULL | {"x-max-length": 1}),
        bound(connection, "beside", "#") as beside,
    ):
        placed = receive(context, *(checkout() for _ in range(20)))
        run_chain(context)
        publisher = make_publisher(ours, relay._doubts, relay._refusals)
        for _ in range(30):
            relay._turn(publisher)
        heard = sequences(taken(beside))

    assert {order.external_id for order in placed} == heard.keys()
    # All were sent once; after that one of them was, at each of the attempts.
    assert sum(map(len, heard.values())) <= 20 + 30


def test_other_keys_go_on_behind_more_than_a_group_that_is_refused(context: Context) -> None:
    """Of an order nothing overtakes what waits; of others, whatever has room goes on."""
    relay = OutboxRelay(context, threading.Event())
    with (
        connect(context.settings) as connection,
        connect(context.settings) as ours,
        bound(connection, "full", "order.updated", queue_arguments=FULL | {"x-max-length": 1}),
        bound(connection, "reviews", "order.needs_review") as reviews,
    ):
        *_, before, free = receive(context, *(checkout() for _ in range(520)))
        rows(context, "DELETE FROM outbox_messages WHERE order_id = %(id)s RETURNING 1", id=free.id)
        for order in (before, free):
            call_for_a_person(context, order)
        publisher = make_publisher(ours, relay._doubts, relay._refusals)
        for _ in range(30):
            relay._turn(publisher)
        heard = sequences(taken(reviews))

    assert heard == {free.external_id: [2]}


def call_for_a_person(context: Context, order: Order) -> None:
    message = outbox.message(order.external_id, 2, NEEDS_REVIEW, {}, context.now(), None)
    values = {"id": order.id, "key": NEEDS_REVIEW, "body": json.dumps(message)}
    query = (
        "INSERT INTO outbox_messages (order_id, routing_key, body, created_at) "
        "VALUES (%(id)s, %(key)s, %(body)s, %(now)s) RETURNING 1"
    )
    rows(context, query, now=context.now(), **values)
