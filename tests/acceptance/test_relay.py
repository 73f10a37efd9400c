"""The relay of the outbox on real brokers: all of it, in order, signed, as consumers read it."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import kombu
import pytest
from structlog.testing import capture_logs

from fulfillment.broker import connect, store_exchange
from fulfillment.messaging import confirming, refusals
from fulfillment.messaging.outgoing import Outgoing, Publisher, RefusedByQueue
from fulfillment.messaging.publishing import make_publisher
from fulfillment.messaging.relay import SIGNATURE_HEADER, OutboxRelay, signature
from fulfillment.services import updates
from fulfillment.services.context import Context
from fulfillment.services.operations import check_readiness
from fulfillment.store.bindings import Audience
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.servers import rabbitmqctl
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    rows,
    run_chain,
    run_polls,
    until,
)

BODY = b'{"name": "\xe2\x98\x85 Karambit"}'


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
    try:
        yield declared
    finally:
        declared.delete()


def publish(publisher: Publisher, group: list[Outgoing], within_s: float = 10) -> None:
    """Publish as the relay does, which looks before each group where queues are bound."""
    if publisher.look():
        publisher.bind_again()
        assert not publisher.look()
    publisher.publish(group, within_s)


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
        publish(publisher, [("order.updated", BODY, {"x-a": "b"})])
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
        publish(publisher, group)

        assert len(publisher.confirmed) == 3
        assert [as_bytes(m) for m in taken(one)] == [b"1"]
        assert [as_bytes(m) for m in taken(two)] == [b"1", b"3"]


def test_what_the_store_has_not_read_is_counted_by_queue(context: Context) -> None:
    with (
        publisher_to(context) as (connection, publisher),
        bound(connection, "one", "order.#") as one,
        bound(connection, "two", "trade.#"),
    ):
        publish(publisher, numbered(7))

        assert publisher.unread(["one", "two", "missing"]) == {"one": 7, "two": 0}
        one.purge()
        assert publisher.unread(["one", "missing", "two"]) == {"one": 0, "two": 0}
        publish(publisher, numbered(1))
        assert [as_bytes(m) for m in taken(one)] == [b'{"place": 0}']


def test_groups_follow_each_other_in_order(context: Context) -> None:
    with publisher_to(context) as (connection, publisher), bound(connection, "g", "#") as queue:
        for count in (500, 1, 300):
            publish(publisher, numbered(count))
            assert len(publisher.confirmed) == count
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
        with pytest.raises(RefusedByQueue, match="refused"):
            publish(publisher, numbered(10))

        assert len(publisher.confirmed) == len(taken(queue)) < 10


def test_an_orders_messages_keep_their_order_at_a_queue_that_is_full_now_and_then(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that refuses one message may have room for the next."""
    if not context.settings.is_amqp:
        pytest.skip("Redis refuses nothing for a queue's length")
    monkeypatch.setattr("fulfillment.messaging.relay._UNHEARD_S", 0.01)
    monkeypatch.setattr(refusals, "_SHORTEST_S", 0.01)
    monkeypatch.setattr(refusals, "_LONGEST_S", 0.01)
    full = {"x-max-length": 4, "x-overflow": "reject-publish"}
    with (
        connect(context.settings) as connection,
        bound(connection, "tight", "order.#", queue_arguments=full) as queue,
    ):
        placed = receive(context, *(checkout() for _ in range(8)))
        run_chain(context)
        heard: list[kombu.Message] = []

        def hear() -> bool:
            heard.extend(taken(queue))
            return is_all_published(context)

        with relaying(context):
            until(hear)
        heard += taken(queue)

    for order in placed:
        known = sequences(heard)[order.external_id]
        first = [number for place, number in enumerate(known) if number not in known[:place]]
        assert first == [1, 2, 3, 4, 5]


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

    with connect(context.settings) as second, bound(second, "rest", "order.#") as again:
        heard = taken(again)
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


@contextmanager
def relaying(context: Context) -> Iterator[None]:
    """Run a relay beside the block, as `fulfillment intake` does."""
    stop = threading.Event()
    relay = threading.Thread(target=OutboxRelay(context, stop).run)
    relay.start()
    try:
        yield
    finally:
        stop.set()
        relay.join()


def is_all_published(context: Context) -> bool:
    return not rows(context, "SELECT 1 FROM outbox_messages")


def is_unheard(context: Context) -> bool:
    return updates.audience(context).missing_since is not None


def test_a_turn_that_fails_is_tried_again_and_readyz_tells_of_it(
    context: Context, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulfillment.messaging.relay._RETRY_S", 0.01)
    failing = mock.Mock(side_effect=OverflowError)
    with relaying(context):
        until(lambda: relay_is_ready(context))
        with mock.patch.object(OutboxRelay, "_turn", failing):
            until(lambda: failing.called)
            clock.advance(31)
            before = failing.call_count
            until(lambda: failing.call_count > before + 2)
            assert not relay_is_ready(context)
            receive(context, checkout())
        until(lambda: is_all_published(context) and relay_is_ready(context))


def relay_is_ready(context: Context) -> bool:
    return all(check.is_ok for check in check_readiness(context) if check.name == "relay")


def wipe(connection: kombu.Connection) -> None:
    if connection.transport.driver_type != "redis":
        pytest.skip("RabbitMQ is not wiped under a connection that lives")
    channel: Any = connection.default_channel
    with channel.conn_or_acquire() as client:
        client.flushall()


def sequences(messages: list[kombu.Message]) -> dict[str, list[int]]:
    """Give what was heard of each order, in the order in which it was."""
    heard: dict[str, list[int]] = {}
    for message in messages:
        body = json.loads(as_bytes(message))
        heard.setdefault(body["externalId"], []).append(body["sequence"])
    return heard


def test_what_waited_in_a_redis_that_is_wiped_is_told_again_by_a_relay_that_is_new(
    context: Context,
) -> None:
    """Of what was known before only the database tells; the store's connection sees nothing."""
    with connect(context.settings) as connection, bound(connection, "wiped", "order.#") as queue:
        placed = receive(context, *(checkout() for _ in range(3)))
        with relaying(context):
            until(lambda: is_all_published(context) and updates.audience(context).known)
        wipe(connection)
        run_chain(context)
        fresh = receive(context, checkout())

        with relaying(context):
            until(lambda: rows(context, "SELECT 1 FROM replays WHERE finished_at IS NOT NULL"))
            until(lambda: is_all_published(context))
        heard = sequences(taken(queue))

    assert heard.keys() == {order.external_id for order in (*placed, *fresh)}
    for order in placed:
        known = heard[order.external_id]
        first = [number for place, number in enumerate(known) if number not in known[:place]]
        assert first == [1, 2, 3, 4, 5]
    assert len(rows(context, "SELECT 1 FROM replays")) == 1


def test_what_is_told_again_waits_for_a_store_that_does_not_take_it_and_news_do_not(
    context: Context, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    if context.settings.is_amqp:
        pytest.skip("RabbitMQ tells nobody how long the store's queues are")
    monkeypatch.setattr("fulfillment.messaging.relay._MOST_WAITING", 4)
    with connect(context.settings) as connection, bound(connection, "slow", "order.#") as queue:
        old = receive(context, *(checkout() for _ in range(5)))
        with relaying(context):
            until(lambda: is_all_published(context) and updates.audience(context).known)
            updates.replay(context, old[0].created_at)
            clock.advance(5)  # the relay reads it with the next renewal of its lease
            for _ in range(2):
                receive(context, checkout())
                until(lambda: is_all_published(context))
            assert rows(context, "SELECT messages FROM replays") == [{"messages": 0}]

            heard = taken(queue)
            until(lambda: rows(context, "SELECT 1 FROM replays WHERE finished_at IS NOT NULL"))
            heard += taken(queue)

    assert len(heard) == 5 + 2 + 5
    assert all(sequences(heard)[order.external_id] == [1, 1] for order in old)


def test_a_binding_that_is_none_keeps_nothing_from_the_store(context: Context) -> None:
    if context.settings.is_amqp:
        pytest.skip("RabbitMQ's bindings are its own")
    with connect(context.settings) as connection, bound(connection, "sane", "order.#") as queue:
        channel: Any = connection.default_channel
        with channel.conn_or_acquire() as client:
            client.sadd(f"_kombu.binding.{store_exchange.name}", "garbage")
            client.sadd(f"_kombu.binding.{store_exchange.name}", "order.[\x06\x16order.[\x06\x16q")
        placed = receive(context, *(checkout() for _ in range(3)))
        with relaying(context):
            until(lambda: is_all_published(context))
        heard = sequences(taken(queue))

    assert heard == {order.external_id: [1] for order in placed}


def test_a_new_relay_on_a_redis_that_was_not_wiped_tells_nothing_again(context: Context) -> None:
    with connect(context.settings) as connection, bound(connection, "kept", "order.#") as queue:
        receive(context, checkout())
        for _ in range(2):
            with relaying(context):
                until(lambda: is_all_published(context) and updates.audience(context).known)
            receive(context, checkout())
        with relaying(context):
            until(lambda: is_all_published(context))

        assert list(sequences(taken(queue)).values()) == [[1]] * 3
    assert not rows(context, "SELECT 1 FROM replays")


def test_updates_wait_while_no_queue_of_the_store_is_left_and_reach_the_next(
    context: Context,
) -> None:
    with connect(context.settings) as connection, relaying(context):
        with bound(connection, "first", "order.updated") as queue:
            receive(context, checkout())
            until(lambda: is_all_published(context) and updates.audience(context).known)
            assert len(taken(queue)) == 1

        with capture_logs() as logs:
            placed = receive(context, checkout(), checkout())
            until(lambda: is_unheard(context))
            assert len(rows(context, "SELECT 1 FROM outbox_messages")) == 2

            with bound(connection, "second", "order.*") as queue:
                until(lambda: is_all_published(context))
                heard = sequences(taken(queue))
            until(lambda: not is_unheard(context))

    assert heard == {order.external_id: [1] for order in placed}
    told = [line["event"] for line in logs if line["event"].startswith("relay.")]
    assert told == ["relay.unheard", "relay.heard_again"]


def test_updates_of_queues_that_an_operator_forgets_are_dropped_as_if_there_were_none(
    context: Context, clock: FakeClock
) -> None:
    with connect(context.settings) as connection, relaying(context):
        with bound(connection, "gone", "#") as queue:
            receive(context, checkout())
            until(lambda: is_all_published(context) and updates.audience(context).known)
            assert len(taken(queue)) == 1
        receive(context, checkout())
        until(lambda: is_unheard(context))

        updates.forget(context)
        clock.advance(5)  # the relay reads it with the next renewal of its lease

        until(lambda: is_all_published(context))
        assert updates.audience(context) == Audience()


def test_a_store_that_wants_less_than_before_is_told_less(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue is there: what it is not bound for is dropped, as by every topic exchange."""
    monkeypatch.setattr(confirming, "PATIENCE_S", 0.0)
    group: list[Outgoing] = [
        ("order.updated", b'{"externalId": "a"}', {}),
        ("trade.reminder", b'{"externalId": "b"}', {}),
    ]
    with publisher_to(context) as (connection, publisher):
        with bound(connection, "all", "#"):
            publish(publisher, group)
        with bound(connection, "less", "order.#") as less:
            publish(publisher, group)
            if context.settings.is_amqp:  # which is asked whether the other is not wanted
                assert (publisher.confirmed, publisher.is_in_doubt) == ([0], True)
                publisher.settle(10)
                publish(publisher, group)

            assert len(publisher.confirmed) == 2
            assert not publisher.is_unheard
            assert not publisher.is_in_doubt
            assert {as_bytes(m) for m in taken(less)} == {group[0][1]}

        publish(publisher, group)
        assert len(publisher.confirmed) == 0
        assert publisher.is_unheard


def test_what_a_store_is_told_again_ends_also_where_it_wants_the_last_of_it_no_more(
    context: Context, provider: FakeProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News of orders that are behind it are heard then."""
    monkeypatch.setattr(confirming, "PATIENCE_S", 0.0)
    reviewed, behind = receive(context, checkout(), checkout())
    run_chain(context)
    provider.says(reviewed.external_id, R.ACCEPTED, item_name="Another | Item", item_id="x")
    clock.advance(60)
    run_polls(context)
    assert again(context, reviewed).status is S.NEEDS_REVIEW
    relay = OutboxRelay(context, threading.Event())
    with publisher_to(context) as (connection, publisher):

        def take_turns() -> None:
            for _ in range(4):
                clock.advance(5)
                relay._turn(publisher)

        with bound(connection, "wide", "order.#"):
            take_turns()
            assert is_all_published(context)
        with bound(connection, "narrow", "order.updated") as queue:
            updates.replay(context, None)
            take_turns()
            provider.says(behind.external_id, R.COMPLETED, charged_mills=6120)
            clock.advance(60)
            run_polls(context)
            take_turns()
            heard = [json.loads(as_bytes(message)) for message in taken(queue)]

    assert rows(context, "SELECT 1 FROM replays WHERE finished_at IS NOT NULL")
    assert is_all_published(context)
    told = [each["order"]["status"] for each in heard if each["externalId"] == behind.external_id]
    assert told[-1] == S.COMPLETED


def test_what_a_queue_missed_that_comes_back_in_the_midst_of_a_group_reaches_it(
    context: Context,
) -> None:
    if not context.settings.is_amqp:
        pytest.skip("on Redis a group goes to the queues of one look")
    keys = ("order.needs_review", "order.updated")
    orders = ("a", "b", "c")
    group: list[Outgoing] = [
        (keys[n > 0], json.dumps({"externalId": each}).encode(), {})
        for n, each in enumerate(orders)
    ]
    with (
        publisher_to(context) as (connection, publisher),
        connect(context.settings) as store,
        ExitStack() as stack,
    ):
        publisher.known = frozenset((key, "", "") for key in keys)
        channel = publisher._channel  # type: ignore[attr-defined]
        publish_one = channel.basic_publish
        queues: list[kombu.Queue] = []

        def publish_and_come(*args: Any, **more: Any) -> None:
            publish_one(*args, **more)
            if not queues:
                while not publisher._returned:  # type: ignore[attr-defined]
                    connection.drain_events(timeout=10)
                queues.append(stack.enter_context(bound(store, "back", "order.#")))

        with mock.patch.object(channel, "basic_publish", publish_and_come):
            publish(publisher, group)
        left = [each for n, each in enumerate(group) if n not in publisher.confirmed]
        publish(publisher, left)
        heard = {json.loads(as_bytes(message))["externalId"] for message in taken(queues[0])}

    assert len(publisher.confirmed) == len(left)
    assert heard == set(orders)


def test_a_queue_that_goes_in_the_midst_of_a_group_keeps_the_rest_of_it_unconfirmed(
    context: Context,
) -> None:
    if not context.settings.is_amqp:
        pytest.skip("on Redis a group goes to the queues of one look")
    with (
        publisher_to(context) as (_, publisher),
        connect(context.settings) as store,
        bound(store, "brief", "#") as queue,
    ):
        publish(publisher, numbered(3))
        channel = publisher._channel  # type: ignore[attr-defined]
        publish_one = channel.basic_publish
        sent: list[object] = []

        def publish_and_go(*args: Any, **more: Any) -> None:
            if len(sent) == 2:
                queue.delete()
            sent.append(publish_one(*args, **more))

        with mock.patch.object(channel, "basic_publish", publish_and_go):
            publish(publisher, numbered(4))

    assert publisher.confirmed == [0, 1]
    assert len(sent) == 3  # what comes after it in its order is not sent
    assert not publisher.is_unheard


def test_a_key_that_nobody_listens_to_costs_a_message_a_group_until_somebody_does(
    context: Context,
) -> None:
    if not context.settings.is_amqp:
        pytest.skip("on Redis a group goes to the queues of one look")
    with publisher_to(context) as (connection, publisher):
        group = numbered(50)
        channel = publisher._channel  # type: ignore[attr-defined]
        with mock.patch.object(channel, "basic_publish", wraps=channel.basic_publish) as sent:
            publish(publisher, group)
            unheard = sent.call_count, len(publisher.confirmed)
            with bound(connection, "late", "#") as queue:
                publish(publisher, group)
                heard = taken(queue)

    assert unheard == (1, 50)
    assert len(publisher.confirmed) == 50
    assert [message.headers["x-place"] for message in heard] == [str(n) for n in range(50)]


def test_messages_of_several_keys_keep_their_order_when_a_queue_comes(context: Context) -> None:
    if not context.settings.is_amqp:
        pytest.skip("on Redis a group goes to the queues of one look")
    keys = ("order.updated", "order.needs_review", "trade.reminder")
    group = [(keys[n % 3], b'{"place": %d}' % n, {"x-place": str(n)}) for n in range(30)]
    with publisher_to(context) as (connection, publisher):
        publish(publisher, group)
        with bound(connection, "late", "order.#") as queue:
            publish(publisher, group)
            heard = taken(queue)

    assert len(publisher.confirmed) == 30
    places = list(dict.fromkeys(message.headers["x-place"] for message in heard))
    assert places == [str(n) for n in range(30) if n % 3 != 2]


def test_a_store_that_was_bound_by_a_pattern_at_a_redis_is_waited_for(context: Context) -> None:
    if not context.settings.is_amqp:
        pytest.skip("a Redis knows its own bindings")
    with publisher_to(context) as (_, publisher):
        publisher.known = frozenset({("order.#", r"^order\..*?$", "store.updates")})
        publish(publisher, numbered(5))

        assert (len(publisher.confirmed), publisher.is_unheard) == (0, True)
        publish(publisher, numbered(1, "trade.reminder"))
        assert (len(publisher.confirmed), publisher.is_unheard) == (0, True)
