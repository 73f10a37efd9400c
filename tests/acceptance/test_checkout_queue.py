"""The checkouts' queue on real brokers: it is bound again, and nothing ends its consumer."""

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import kombu
import pytest
from structlog.testing import capture_logs

from fulfillment.broker import (
    PUBLISH_ERRORS,
    checkout_queue,
    connect,
    dead_queue,
    store_exchange,
)
from fulfillment.clock import SystemClock
from fulfillment.errors import NotPutAside
from fulfillment.messaging import consumer, dead_letters
from fulfillment.messaging.consumer import CheckoutConsumer
from fulfillment.messaging.publishing import make_publisher
from fulfillment.services import operations
from fulfillment.services.context import Context
from schemas.messages import CHECKOUT_KEY, REASON_HEADER
from tests.conftest import MakeContext
from tests.servers import rabbitmqctl
from tests.support import TOKEN, FakeClock, FakeProvider, checkout, receive, rows, until


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider, broker: str) -> Context:
    return make_context(provider, broker_url=broker)


@pytest.fixture
def own(context: Context) -> Context:
    """Give a context in which time passes by itself."""
    return replace(context, clock=SystemClock())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the consumer wait for little; no worker is there to hear its hints."""
    for name in ("_IDLE_S", "_RETRY_S", "_BIND_S"):
        monkeypatch.setattr(consumer, name, 0.05)
    monkeypatch.setattr(consumer, "hint", lambda *_: False)


@pytest.fixture
def connection(context: Context) -> Iterator[kombu.Connection]:
    """Give a store's connection, with the queues empty."""
    with connect(context.settings, confirm=True) as made:
        for queue in (checkout_queue, dead_queue):
            queue(made.default_channel).declare()
            queue(made.default_channel).purge()
        yield made


@contextmanager
def consuming(context: Context) -> Iterator[threading.Thread]:
    """Run a consumer beside the block, as `fulfillment intake` does."""
    stop = threading.Event()
    thread = threading.Thread(target=CheckoutConsumer(context, stop).run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def send(connection: kombu.Connection, event: dict[str, Any]) -> None:
    """Publish a checkout as a store does; json writes half a surrogate pair in ASCII."""
    connection.Producer(exchange=store_exchange).publish(
        json.dumps(event).encode(),
        routing_key=CHECKOUT_KEY,
        content_type="application/json",
        content_encoding="utf-8",
    )


def is_stored(context: Context, event: dict[str, Any]) -> bool:
    query = "SELECT 1 FROM orders WHERE external_id = %(name)s"
    return bool(rows(context, query, name=event["externalId"]))


def arrives(connection: kombu.Connection, context: Context, event: dict[str, Any]) -> bool:
    """Send a checkout once more, which is safe, and say whether one of it has come."""
    send(connection, event)
    return is_stored(context, event)


def intake_is_ready(context: Context) -> bool:
    (found,) = [each for each in operations.check_readiness(context) if each.name == "intake"]
    return found.is_ok


def test_a_known_checkout_with_an_account_that_is_no_text_is_put_aside_and_the_others_are_taken(
    context: Context, connection: kombu.Connection
) -> None:
    known, good = checkout(), [checkout() for _ in range(5)]
    receive(context, known)
    for event in (*good[:2], known | {"account": "\ud800"}, *good[2:]):
        send(connection, event)

    with consuming(context) as thread:
        until(lambda: all(is_stored(context, event) for event in good))
        letter = until(lambda: dead_queue(connection.default_channel).get(no_ack=True))
        is_alive = thread.is_alive()

    assert is_alive
    assert json.loads(letter.body)["externalId"] == known["externalId"]


@pytest.mark.parametrize(
    ("packing", "told"),
    [("application/x-gzip", ", found application/x-gzip"), ("rot13", ""), ("canary\n", "")],
)
def test_a_packed_checkout_is_put_aside_as_it_came_and_never_unpacked(
    context: Context, connection: kombu.Connection, packing: str, told: str
) -> None:
    event, good = checkout(), checkout()
    packed = zlib.compress(json.dumps(event).encode() + b" " * (1 << 26))
    connection.Producer(exchange=store_exchange).publish(
        packed,
        routing_key=CHECKOUT_KEY,
        content_type="application/json",
        content_encoding="utf-8",
        headers={"compression": packing},
    )
    send(connection, good)

    with consuming(context):
        letter = until(lambda: dead_queue(connection.default_channel).get(no_ack=True))
        until(lambda: is_stored(context, good))

    assert letter.body == packed
    assert letter.headers[REASON_HEADER] == f"expected a body that is not compressed{told}"
    assert not is_stored(context, event)


def test_of_a_huge_dead_letter_the_beginning_is_kept(
    context: Context, connection: kombu.Connection
) -> None:
    with connect(context.settings, confirm=True) as other:
        dead_letters.publish(other, b"ab" * (1 << 20), "text/plain", "a test")

    letter = until(lambda: dead_queue(connection.default_channel).get(no_ack=True))
    assert len(letter.body or "") == 1 << 20
    assert letter.headers[REASON_HEADER] == ("a test; these are the first 1048576 of 2097152 bytes")


KEPT = {"x-test": "a run", "traceparent": "00-1", "x-url": "https://a.example/?token=***"}


def test_a_dead_letter_bears_its_senders_short_headers_and_none_that_means_something_to_others(
    context: Context, connection: kombu.Connection
) -> None:
    odd = {"x-long": "v" * 256, "x-number": 5, "x-list": ["v"], "x-ä": "v"}
    ours = {"X-Reason": "mine", "x-death-count": "9", "x-fulfillment-signature": "0", "cc": "v"}
    secret = {"x-url": f"https://a.example/?token={TOKEN}", "x-api-key": TOKEN}
    connection.Producer(exchange=store_exchange).publish(
        checkout(expectedPrice="none"),
        routing_key=CHECKOUT_KEY,
        headers=odd | ours | KEPT | secret,
    )

    with consuming(context):
        letter = until(lambda: dead_queue(connection.default_channel).get(no_ack=True))

    reason = letter.headers.pop(REASON_HEADER)
    assert reason.startswith("expectedPrice: ")
    assert letter.headers == KEPT | {"x-api-key": "***"}


def test_a_dead_letter_bears_no_more_headers_than_a_few(
    context: Context, connection: kombu.Connection
) -> None:
    many = {f"x-{number}": "v" * 255 for number in range(200)}
    with connect(context.settings, confirm=True) as other:
        dead_letters.publish(other, b"{}", "application/json", "a test", many)

    letter = until(lambda: dead_queue(connection.default_channel).get(no_ack=True))
    assert len(letter.headers) == 21


def refused(connection: kombu.Connection) -> str:
    """Send what is no checkout; give its mark."""
    event = checkout(expectedPrice="none")
    send(connection, event)
    return str(event["externalId"])


def letters(connection: kombu.Connection) -> list[str]:
    """Take what was put aside; give the marks."""
    found = []
    while letter := dead_queue(connection.default_channel).get(no_ack=True):
        found.append(json.loads(letter.body or "")["externalId"])
    return found


def test_dead_letters_outlive_the_deletion_of_their_queue(
    context: Context, connection: kombu.Connection
) -> None:
    with consuming(context):
        first = refused(connection)
        until(lambda: letters(connection) == [first])
        dead_queue(connection.default_channel).delete()
        later = [refused(connection) for _ in range(3)]
        until(lambda: is_there(context, lambda each: dead_queue(each).queue_declare(passive=True)))
        found: list[str] = []
        while len(found) < len(later):
            found += until(lambda: letters(connection))

    assert found == later


def test_a_dead_letter_that_reaches_no_queue_is_an_error(
    context: Context, connection: kombu.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_rabbitmq(context)
    dead_queue(connection.default_channel).delete()
    monkeypatch.setattr(kombu.Queue, "declare", lambda *_, **__: None)

    with connect(context.settings, confirm=True) as other, pytest.raises(PUBLISH_ERRORS):
        dead_letters.publish(other, b"{}", "application/json", "a test")


@contextmanager
def refusing(context: Context, connection: kombu.Connection) -> Iterator[None]:
    """Let the queue of dead letters take no more while the block lasts."""
    on_rabbitmq(context)
    vhost = context.settings.broker_url.get_secret_value().rpartition("/")[2]
    limit = json.dumps({"max-length": 1, "overflow": "reject-publish"})
    pattern = f"^{dead_queue.name}$"
    if rabbitmqctl("set_policy", "--vhost", vhost, "full", pattern, limit) is None:
        pytest.skip("rabbitmqctl cannot be run here")
    try:
        until(lambda: not is_put_aside(connection))
        yield
    finally:
        rabbitmqctl("clear_policy", "--vhost", vhost, "full")


def is_put_aside(connection: kombu.Connection) -> bool:
    try:
        dead_letters.publish(connection, b'{"externalId": "one"}', "application/json", "a test")
    except PUBLISH_ERRORS:
        return False
    return True


def waiting(connection: kombu.Connection) -> int:
    """Count what nobody has acknowledged, where nobody consumes."""
    queue: Any = checkout_queue(connection.default_channel)
    return int(queue.queue_declare().message_count)


def test_dead_letters_that_are_refused_hold_up_no_checkout_of_their_group_and_are_told_of(
    context: Context, connection: kombu.Connection
) -> None:
    with refusing(context, connection):
        bad, good = refused(connection), [checkout() for _ in range(3)]
        for event in good:
            send(connection, event)
        with capture_logs() as logs, consuming(context):
            until(lambda: sum(line["event"] == "intake.dead_letters_refused" for line in logs) > 1)
            assert all(is_stored(context, event) for event in good)
        assert until(lambda: waiting(connection)) == 1

    with consuming(context):
        until(lambda: bad in letters(connection))
    told = {line.get("reason") for line in logs if line["event"] == "intake.dead_letters_refused"}
    assert told == {"MessageNacked"}


def test_a_workers_dead_letter_that_is_refused_is_logged_and_told_to_the_worker(
    context: Context, connection: kombu.Connection
) -> None:
    with (
        refusing(context, connection),
        capture_logs() as logs,
        pytest.raises(NotPutAside, match="MessageNacked"),
    ):
        dead_letters.bury(context.settings, b"{}", "application/json", "a test")

    (line,) = [line for line in logs if line["event"] == "dead_letter.not_taken"]
    assert line["why"] == "MessageNacked"


def test_a_turn_that_fails_is_tried_again_and_readyz_tells_of_it(
    context: Context,
    connection: kombu.Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gather, event = CheckoutConsumer._gather, checkout()
    failures: list[Exception] = []

    def failing(self: CheckoutConsumer, connection: kombu.Connection) -> None:
        failures.append(OverflowError("canary-detail"))
        raise failures[-1]

    with consuming(context) as thread:
        until(lambda: intake_is_ready(context))
        with capture_logs() as logs:
            monkeypatch.setattr(CheckoutConsumer, "_gather", failing)
            until(lambda: failures)
            clock.advance(31)
            seen = len(failures)
            until(lambda: len(failures) > seen + 2 or not thread.is_alive())
        assert thread.is_alive()
        assert not intake_is_ready(context)
        send(connection, event)
        monkeypatch.setattr(CheckoutConsumer, "_gather", gather)
        until(lambda: is_stored(context, event) and intake_is_ready(context))

    told = {(line["event"], line.get("reason")) for line in logs}
    assert ("intake.failed", "OverflowError") in told
    assert "canary" not in str(logs)


def on_rabbitmq(context: Context) -> None:
    if not context.settings.is_amqp:
        pytest.skip("a Redis has no exchanges, and its bindings are bound again as after a wipe")


def test_checkouts_come_again_after_their_queue_was_unbound(
    own: Context, connection: kombu.Connection
) -> None:
    on_rabbitmq(own)
    with consuming(own):
        first, later = checkout(), checkout()
        until(lambda: arrives(connection, own, first))
        checkout_queue(connection.default_channel).unbind_from(store_exchange, CHECKOUT_KEY)

        until(lambda: arrives(connection, own, later))


def test_checkouts_come_again_after_the_exchange_was_deleted(
    own: Context, connection: kombu.Connection
) -> None:
    on_rabbitmq(own)
    with consuming(own) as thread:
        first, later = checkout(), checkout()
        until(lambda: arrives(connection, own, first))
        store_exchange(connection.default_channel).delete()
        until(lambda: is_there(own, lambda each: store_exchange(each).declare(passive=True)))

        until(lambda: arrives(connection, own, later))
        assert thread.is_alive()


def is_there(context: Context, look: Callable[[Any], Any]) -> bool:
    """Say whether what is looked for is; asking for what is not costs the channel."""
    with connect(context.settings) as connection:
        try:
            look(connection.default_channel)
        except connection.channel_errors:
            return False
    return True


def test_a_relay_that_declares_the_exchange_anew_binds_the_checkouts_queue_as_well(
    context: Context, connection: kombu.Connection
) -> None:
    """What the store sends to an exchange that has no queue is confirmed, and dropped."""
    on_rabbitmq(context)
    event = checkout()
    checkout_queue(connection.default_channel).delete()
    store_exchange(connection.default_channel).delete()

    with connect(context.settings) as other:
        make_publisher(other)
        send(connection, event)

    message = until(lambda: checkout_queue(connection.default_channel).get(no_ack=True))
    assert json.loads(message.body) == event
