"""What a queue of Redis holds is taken and noted at once: no death in between loses a message."""

import base64
import contextlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import pytest
import redis
from kombu import Connection, Consumer, Exchange, Message, Queue
from pydantic import SecretStr
from structlog.testing import capture_logs

from fulfillment import redis_channel
from fulfillment.broker import complaint
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.settings import Settings
from tests.support import until

EXCHANGE = Exchange("test.events", type="topic", durable=True)
QUEUE = Queue("test.taken", EXCHANGE, routing_key="taken", durable=True)
#: Where Redis keeps what is bound to the exchange, and how kombu parts a member of it.
BINDINGS = f"_kombu.binding.{EXCHANGE.name}"
SEP = b"\x06\x16"
ODD_BINDINGS = {
    "text": b"garbage",
    "no text": b"\xff\xfe",
    "nothing": b"",
    "two parts": SEP.join([b"taken", b"^taken$"]),
    "four parts": SEP.join([b"taken", b"^taken$", b"test.other", b"more"]),
    "no pattern": SEP.join([b"order.[", b"order.[", b"test.other"]),
    "too large a pattern": SEP.join([b"x", b"x{99999999999}", b"test.other"]),
    "no queue": SEP.join([b"taken", b"^taken$", b""]),
}
#: A consumer that dies of the first message before it looks at it.
DOOMED = """
import os, signal, sys
from kombu import Connection, Consumer, Queue
from fulfillment import redis_channel

class Doomed(redis_channel.SafeChannel):
    def _message(self, item):
        os.kill(os.getpid(), signal.SIGKILL)

redis_channel.SafeChannel = Doomed
redis_channel.install()
with Connection(sys.argv[1]) as connection:
    with Consumer(connection, [Queue("test.taken")], on_message=print, prefetch_count=10):
        while True:
            connection.drain_events()
"""


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def client(server_url: str) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=server_url.removeprefix("redis+socket://")) as made:
        made.flushall()
        yield made
        serve(made)


def serve(client: redis.Redis) -> None:
    """Let the server take whatever it is given."""
    client.config_set("maxmemory", 0)
    client.config_set("min-replicas-to-write", 0)
    client.replicaof("NO", "ONE")


@pytest.fixture
def connection(server_url: str, client: redis.Redis) -> Iterator[Connection]:
    """Give a connection that gets back what was taken longer than a second ago."""
    redis_channel.install()
    options = {"visibility_timeout": 1, "unacked_restore_throttle": 1, "socket_timeout": 5}
    with Connection(server_url, transport_options=options) as made:
        yield made


Drain = Callable[[int], list[str]]


@pytest.fixture
def drain(connection: Connection) -> Drain:
    """Consume so many messages, acknowledge them, and give their bodies."""

    def consume(count: int) -> list[str]:
        got: list[Message] = []
        with Consumer(connection, [QUEUE], on_message=got.append, prefetch_count=10):

            def enough() -> bool:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)
                for message in got:
                    if not message.acknowledged:
                        message.ack()
                return len(got) >= count

            until(enough)
        bodies: list[Any] = [message.body for message in got]
        return [bytes(body).decode(errors="replace") for body in bodies]

    return consume


def publish(connection: Connection, *bodies: str, priority: int = 0) -> None:
    producer = connection.Producer(exchange=EXCHANGE)
    for body in bodies:
        producer.publish(
            body.encode(),
            routing_key="taken",
            declare=[QUEUE],
            content_type="x",
            priority=priority,
        )


def test_messages_come_in_order_and_are_gone_when_they_are_acknowledged(
    connection: Connection, client: redis.Redis, drain: Drain
) -> None:
    publish(connection, *"abcdefghijklmno")

    assert "".join(drain(15)) == "abcdefghijklmno"
    assert client.keys("unacked*") == []
    assert client.llen("test.taken") == 0


def test_a_message_with_a_priority_is_taken_too(connection: Connection, drain: Drain) -> None:
    publish(connection, "later", priority=9)

    assert drain(1) == ["later"]


def test_no_more_is_taken_than_may_be_held(connection: Connection, client: redis.Redis) -> None:
    publish(connection, *"abcdefghijklmno")
    got: list[Message] = []

    with Consumer(connection, [QUEUE], on_message=got.append, prefetch_count=10):
        connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        assert (len(got), client.hlen("unacked"), client.llen("test.taken")) == (10, 10, 5)


def test_what_a_process_took_comes_again_when_it_dies_at_once(
    connection: Connection, client: redis.Redis, drain: Drain, server_url: str
) -> None:
    publish(connection, "one", "two")

    died = subprocess.run([sys.executable, "-c", DOOMED, server_url], check=False, timeout=60)

    assert died.returncode == -signal.SIGKILL
    assert client.llen("test.taken") == 0
    assert sorted(drain(2)) == ["one", "two"]


def test_bytes_that_are_no_message_are_told_once_and_hold_nothing_up(
    connection: Connection, client: redis.Redis, drain: Drain
) -> None:
    publish(connection, "before")
    nearly = b'{"properties": {"delivery_tag": "t", "delivery_info": {"exchange": 1}}}'
    for junk in (b"\xff\x00", b"[]", b"7", nearly, b'{"properties": {"delivery_tag": {}}}'):
        client.lpush("test.taken", junk)
    publish(connection, "after")

    got = drain(7)

    assert (got[0], got[-1]) == ("before", "after")
    assert client.keys("unacked*") == []


@pytest.mark.parametrize("tag", [b"\xff\xfe", rb"\ud800", rb"\u0000", b""])
def test_a_message_with_an_odd_tag_is_told_once_and_holds_nothing_up(
    connection: Connection, client: redis.Redis, drain: Drain, tag: bytes
) -> None:
    publish(connection, "before")
    client.lpush(
        "test.taken",
        b'{"body": "", "headers": {}, "content-type": "x", "content-encoding": "utf-8", '
        b'"properties": {"delivery_tag": "' + tag + b'", '
        b'"delivery_info": {"exchange": "", "routing_key": "x"}}}',
    )
    publish(connection, "after")

    got = drain(3)

    assert (got[0], got[-1]) == ("before", "after")
    assert client.keys("unacked*") == []


@pytest.mark.parametrize("odd", ODD_BINDINGS.values(), ids=ODD_BINDINGS)
def test_what_stands_among_the_bindings_and_is_none_is_told_once_and_bound_is_what_is(
    connection: Connection, client: redis.Redis, drain: Drain, odd: bytes
) -> None:
    publish(connection, "before")
    client.sadd(BINDINGS, odd)

    with capture_logs() as logs:
        publish(connection, "after", "and after")

    assert drain(3) == ["before", "after", "and after"]
    assert [line["event"] for line in logs] == ["broker.no_binding"]


def test_a_full_redis_keeps_its_messages_until_it_has_room(
    connection: Connection, client: redis.Redis, drain: Drain
) -> None:
    publish(connection, "kept")
    got: list[Message] = []
    with Consumer(connection, [QUEUE], on_message=got.append):
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.ConnectionError):
            connection.drain_events(timeout=2)
        assert (client.llen("test.taken"), got) == (1, [])
        client.config_set("maxmemory", 0)

    assert drain(1) == ["kept"]


Refuse = Callable[[redis.Redis], Any]
#: What makes a Redis refuse whatever writes to it.
REFUSING: dict[str, Refuse] = {
    "a replica": lambda client: client.replicaof("127.0.0.1", "1"),
    "no replicas": lambda client: client.config_set("min-replicas-to-write", 1),
    "full": lambda client: client.config_set("maxmemory", 1),
}


@pytest.mark.parametrize("refuse", REFUSING.values(), ids=REFUSING)
def test_a_redis_that_takes_no_writes_is_not_connected_to_and_is_complained_of(
    server_url: str, client: redis.Redis, refuse: Refuse
) -> None:
    redis_channel.install()
    refuse(client)

    with Connection(server_url) as connection, pytest.raises(redis.ConnectionError):
        connection.transport.establish_connection()
    told = complaint(Settings(_env_file=None, broker_url=SecretStr(server_url)))

    assert told.startswith("it takes no messages: ")
    assert client.keys() == []


@pytest.mark.parametrize("refuse", REFUSING.values(), ids=REFUSING)
def test_a_redis_that_takes_no_writes_any_more_is_told_of_as_a_lost_connection(
    connection: Connection, client: redis.Redis, refuse: Refuse
) -> None:
    publish(connection, "one")
    got: list[Message] = []
    with Consumer(connection, [QUEUE], on_message=got.append):
        connection.drain_events(timeout=5)
        channel = connection.default_channel
        assert isinstance(channel, redis_channel.SafeChannel)
        is_full = refuse is REFUSING["full"]  # then what makes room is allowed
        refuse(client)

        for act in (
            channel.qos.restore_visible,
            lambda: channel.bind_again(QUEUE),
            *(() if is_full else (got[0].ack, got[0].requeue)),
        ):
            with pytest.raises(redis.ConnectionError):
                act()
        serve(client)


@pytest.mark.parametrize("count", [1, 2], ids=["checkouts", "hints"])
def test_a_wait_that_redis_breaks_off_is_a_lost_connection(
    server_url: str, client: redis.Redis, count: int
) -> None:
    redis_channel.install()
    queues = [Queue(f"test.waiting.{place}") for place in range(count)]
    with Connection(server_url) as connection, Consumer(connection, queues, on_message=print):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        (waiting,) = [each for each in client.client_list() if "b" in each["flags"]]
        assert client.client_unblock(int(waiting["id"]), error=True)

        with pytest.raises(redis.ConnectionError, match="UNBLOCKED"):
            connection.drain_events(timeout=5)


def test_what_cannot_be_acknowledged_any_more_is_one_line_and_comes_again(
    connection: Connection, drain: Drain, caplog: pytest.LogCaptureFixture
) -> None:
    publish(connection, "held", "given back")
    got: list[Message] = []
    with Connection(connection.as_uri(), transport_options={"socket_timeout": 5}) as lost:
        consumer = Consumer(lost, [QUEUE], on_message=got.append, prefetch_count=2)
        consumer.consume()
        while len(got) < 2:
            lost.drain_events(timeout=5)
        for channel in redis_channel.open_channels(lost):
            channel.qos.restore_at_shutdown = False
        lost.release()

        with capture_logs() as logs:
            got[0].ack_log_error(logging.getLogger("celery"), lost.connection_errors)
            got[1].reject_log_error(logging.getLogger("celery"), lost.connection_errors)

    told = [(each["log_level"], each["event"], each["reason"]) for each in logs]
    assert told == [
        ("warning", "broker.not_acknowledged", "ConnectionError"),
        ("warning", "broker.not_rejected", "ConnectionError"),
    ]
    assert caplog.records == []
    assert sorted(drain(2)) == ["given back", "held"]


def test_a_queue_is_bound_again_after_everything_was_wiped(
    connection: Connection, client: redis.Redis, drain: Drain
) -> None:
    publish(connection, "known")
    channel = connection.default_channel
    drain(1)
    client.flushall()
    publish(connection, "lost")

    assert isinstance(channel, redis_channel.SafeChannel)
    channel.bind_again(QUEUE)
    publish(connection, "heard")

    assert drain(1) == ["heard"]


def test_hints_are_noted_nowhere_and_come_again_when_a_consumer_stops(
    server_url: str, client: redis.Redis
) -> None:
    redis_channel.install()
    queues = [Queue("test.steps"), Queue("test.ticks")]
    got: list[Message] = []
    with Connection(server_url) as connection:
        producer = connection.Producer()
        for body in ("done", "held", "given back"):
            producer.publish(body, routing_key="test.steps", declare=queues)
        with Consumer(connection, queues, on_message=got.append, prefetch_count=3):
            for _ in range(3):
                connection.drain_events(timeout=5)
            assert client.keys("unacked*") == []
            got[0].ack()
            got[2].requeue()

    assert sorted(message.decode() for message in got) == ["done", "given back", "held"]
    again = client.lrange("test.steps", 0, -1)
    assert isinstance(again, list)
    bodies = [base64.b64decode(json.loads(each)["body"]).decode() for each in again]
    assert sorted(bodies) == ["given back", "held"]
    assert client.keys("unacked*") == []


@pytest.mark.parametrize(
    ("policy", "most", "is_complaint"),
    [
        ("noeviction", 10**8, False),
        ("allkeys-lru", 0, False),
        ("volatile-lru", 10**8, False),  # none of our keys has an end
        ("allkeys-lru", 10**8, True),
        ("allkeys-random", 10**8, True),
    ],
)
def test_a_redis_that_drops_queues_when_it_is_full_is_complained_of(
    server_url: str, client: redis.Redis, policy: str, most: int, is_complaint: bool
) -> None:
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", most)

    told = complaint(Settings(_env_file=None, broker_url=SecretStr(server_url)))

    client.config_set("maxmemory-policy", "noeviction")
    assert ("set maxmemory-policy noeviction" in told) is is_complaint


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_does_not_answer_is_complained_of_without_its_address(scheme: str) -> None:
    url = SecretStr(f"{scheme}://user:canary-pw@127.0.0.1:1//")

    told = complaint(Settings(_env_file=None, broker_url=url))

    assert told.startswith("it does not answer")
    assert "canary" not in told


def test_a_connection_that_rabbitmq_has_closed_has_no_open_channels() -> None:
    connection: Any = Connection("amqp://")
    connection._connection = amqp.Connection()
    connection._connection.collect()

    assert list(redis_channel.open_channels(connection)) == []
