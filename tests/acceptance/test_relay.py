"""The relay of the outbox on real brokers: all of it, in order, signed, as consumers read it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import pytest
from kombu.exceptions import OperationalError

from fulfillment.broker import connect, store_exchange
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.messaging.publishing import Outgoing, Publisher, make_publisher
from fulfillment.messaging.relay import SIGNATURE_HEADER, OutboxRelay, signature
from fulfillment.services.context import Context
from tests.conftest import MakeContext
from tests.servers import rabbitmqctl
from tests.support import checkout, receive, rows, run_chain, until

BODY = b'{"name": "\xe2\x98\x85 Karambit"}'


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Give the address of a broker that nobody else uses."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("broker_url")
        return
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    url = server.start()
    yield f"{url}?virtual_host=3"
    server.stop()


@pytest.fixture
def context(make_context: MakeContext, provider: Any, broker: str) -> Context:
    return make_context(provider, broker_url=broker)


@contextmanager
def publisher_to(context: Context) -> Iterator[tuple[kombu.Connection, Publisher]]:
    with connect(context.settings) as connection:
        yield connection, make_publisher(connection)


@contextmanager
def bound(connection: kombu.Connection, name: str, key: str, **how: Any) -> Iterator[kombu.Queue]:
    queue = kombu.Queue(name, store_exchange, routing_key=key, durable=True, **how)
    declared = queue(connection.default_channel)
    declared.declare()
    yield declared
    declared.delete()


def taken(queue: kombu.Queue) -> list[kombu.Message]:
    found = []
    while message := queue.get():
        message.ack()
        found.append(message)
    return found


def as_bytes(message: kombu.Message) -> bytes:
    return message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")


def numbered(count: int, key: str = "order.updated") -> list[Outgoing]:
    return [(key, b'{"place": %d}' % place, {"x-place": str(place)}) for place in range(count)]


def test_the_store_hears_every_step_in_order_and_signed(context: Context) -> None:
    with connect(context.settings) as connection, bound(connection, "all", "order.#") as queue:
        receive(context, *(checkout() for _ in range(3)))
        run_chain(context)
        written = rows(context, "SELECT body FROM outbox_messages ORDER BY id")
        stop = threading.Event()
        relay = threading.Thread(target=OutboxRelay(context, stop).run)

        relay.start()
        until(lambda: not rows(context, "SELECT 1 FROM outbox_messages"))
        stop.set()
        relay.join()
        heard = taken(queue)

    assert [json.loads(as_bytes(m)) for m in heard] == [json.loads(row["body"]) for row in written]
    secret = context.settings.api_token.get_secret_value()
    assert all(m.headers[SIGNATURE_HEADER] == signature(secret, as_bytes(m)) for m in heard)
    assert not rows(context, "SELECT 1 FROM leases WHERE name = 'outbox.relay'")


def test_a_message_reads_as_one_that_kombu_published(context: Context) -> None:
    with publisher_to(context) as (connection, publisher), bound(connection, "b", "#") as queue:
        kombu.Producer(connection, exchange=store_exchange).publish(
            BODY,
            routing_key="order.updated",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"x-a": "b"},
            delivery_mode=2,
        )
        publisher.publish([("order.updated", BODY, {"x-a": "b"})], 5)
        theirs, ours = taken(queue)

    assert as_bytes(ours) == BODY
    assert ours.headers == theirs.headers
    for name in ("content_type", "content_encoding"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("delivery_mode", "body_encoding"):
        assert ours.properties.get(name) == theirs.properties.get(name)
    assert ours.delivery_info["routing_key"] == "order.updated"


def test_each_queue_gets_what_its_key_matches_and_what_nobody_wants_is_done(
    context: Context,
) -> None:
    group: list[Outgoing] = [
        ("order.updated", b"1", {}),
        ("trade.reminder", b"2", {}),
        ("order.other", b"3", {}),
    ]
    with (
        publisher_to(context) as (connection, publisher),
        bound(connection, "one", "order.updated") as one,
        bound(connection, "two", "order.*") as two,
    ):
        publisher.publish(group, 5)

        assert publisher.confirmed == 3
        assert [as_bytes(m) for m in taken(one)] == [b"1"]
        assert [as_bytes(m) for m in taken(two)] == [b"1", b"3"]


def test_groups_follow_each_other_in_order(context: Context) -> None:
    with publisher_to(context) as (connection, publisher), bound(connection, "g", "#") as queue:
        for count in (500, 1, 300):
            publisher.publish(numbered(count), 10)
            assert publisher.confirmed == count
        heard = [int(m.headers["x-place"]) for m in taken(queue)]

    assert heard == [*range(500), 0, *range(300)]


def test_what_rabbitmq_refuses_and_all_behind_it_is_not_confirmed(context: Context) -> None:
    if not context.settings.is_amqp:
        pytest.skip("Redis refuses nothing for a queue's length")
    full = {"x-max-length": 2, "x-overflow": "reject-publish"}
    with (
        publisher_to(context) as (connection, publisher),
        bound(connection, "full", "#", queue_arguments=full) as queue,
    ):
        with pytest.raises(OperationalError, match="refused"):
            publisher.publish(numbered(10), 5)

        assert publisher.confirmed <= len(taken(queue)) < 10


def test_a_relay_whose_connection_breaks_publishes_the_rest_on_a_new_one(context: Context) -> None:
    stop = threading.Event()
    with connect(context.settings) as first:
        queue = kombu.Queue("rest", store_exchange, routing_key="order.#", durable=True)
        queue(first.default_channel).declare()
        receive(context, *(checkout() for _ in range(5)))
        relay = threading.Thread(target=OutboxRelay(context, stop).run)
        relay.start()
        until(lambda: not rows(context, "SELECT 1 FROM outbox_messages"))
        cut_all_connections(context, first)

    receive(context, *(checkout() for _ in range(5)))
    until(lambda: not rows(context, "SELECT 1 FROM outbox_messages"))
    stop.set()
    relay.join()

    with connect(context.settings) as second:
        heard = taken(queue(second.default_channel))
    assert len({json.loads(as_bytes(m))["externalId"] for m in heard}) == 10


def cut_all_connections(context: Context, connection: kombu.Connection) -> None:
    if context.settings.is_amqp:
        vhost = context.settings.broker_url.get_secret_value().rpartition("/")[2]
        if rabbitmqctl("close_all_connections", "--vhost", vhost, "a test") is None:
            pytest.skip("rabbitmqctl cannot be run here")
    else:
        channel: Any = connection.default_channel
        with channel.conn_or_acquire() as client:
            client.client_kill_filter(_type="normal", skipme=True)


def test_a_wiped_redis_is_told_again_where_the_stores_queues_are_bound(context: Context) -> None:
    """The store's connection lives and has seen nothing: it would never bind its queue again."""
    with publisher_to(context) as (connection, publisher):
        if connection.transport.driver_type != "redis":
            pytest.skip("RabbitMQ is not wiped under a connection that lives")
        channel: Any = connection.default_channel
        with bound(connection, "store.wiped", "order.updated") as queue:
            publisher.look()
            with channel.conn_or_acquire() as client:
                client.flushall()
            publisher.publish(numbered(3), 5)

            assert [as_bytes(message) for message in taken(queue)] == [
                body for _, body, _ in numbered(3)
            ]
        publisher.publish(numbered(1), 5)  # a queue that its owner deleted stays away
        assert publisher.confirmed == 1
        with channel.conn_or_acquire() as client:
            assert client.llen("store.wiped") == 0
