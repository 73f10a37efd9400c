"""Publish the outbox to the store's exchange: at least once, in order within each order.

Any number of relays may run; the one that has the lease publishes, the others wait.
"""

import functools
import hashlib
import hmac
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from kombu import Connection, Producer

from fulfillment.broker import PUBLISH_ERRORS, connect, store_exchange
from fulfillment.crash import crash_point
from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.services.context import Context
from fulfillment.services.pulse import RELAY, Pulse
from fulfillment.store import leases, outbox

log = get_logger(__name__)

SIGNATURE_HEADER = "x-fulfillment-signature"
_LEASE = "outbox.relay"
_LEASE_TIME = timedelta(seconds=10)
_GROUP = 200
_IDLE_S = 0.2
_RETRY_S = 1.0


def signature(secret: str, body: bytes) -> str:
    """Sign a message's body: lower-case hex HMAC-SHA256 under the API token."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class OutboxRelay:
    """Publishes until `stop` is set; a broker or database may go away and come back."""

    def __init__(self, context: Context, stop: threading.Event) -> None:
        self._context = context
        self._stop = stop
        self._holder = uuid.uuid4().hex
        self._pulse = Pulse(context, RELAY)
        self._secret = context.settings.api_token.get_secret_value()

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._context.settings, confirm=True) as connection:
                    self._relay(connection)
            except (*PUBLISH_ERRORS, ServerUnreachable) as error:
                log.warning("relay.waiting", reason=type(error).__name__)
                self._stop.wait(_RETRY_S)

    def _relay(self, connection: Connection) -> None:
        producer = Producer(connection, exchange=store_exchange)
        store_exchange(connection.default_channel).declare()
        while not self._stop.is_set():
            self._pulse.beat()
            published = self._publish_some(producer)
            if connection.supports_heartbeats and connection.heartbeat:
                connection.heartbeat_check()
            if not published:
                self._stop.wait(_IDLE_S)
        with self._context.database.transaction() as session:
            leases.give_up(session, _LEASE, self._holder)

    def _publish_some(self, producer: Producer) -> int:
        """Publish one group; give its size, 0 also where another relay has the lease."""
        now = self._context.now()
        with self._context.database.transaction() as session:
            if not leases.acquire(session, _LEASE, self._holder, now, now + _LEASE_TIME):
                return 0
            waiting = outbox.unpublished(session, _GROUP)
        crash_point("relay.leased", waiting)
        published: list[int] = []
        # What is only buffered is published when the batch's block has ended.
        is_buffered = producer.supports_batch_publish  # type: ignore[attr-defined]
        confirmed = [] if is_buffered else published
        try:
            batch = producer.batch()  # type: ignore[attr-defined]
            with batch, _bindings_read_once(producer.channel):
                for message_id, key, body in waiting:
                    if self._context.now() >= now + _LEASE_TIME:
                        break  # another relay may have begun; it would publish the rest again
                    self._publish(producer, key, body.encode())
                    published.append(message_id)
            confirmed = published
            crash_point("relay.published", published)
        finally:
            if confirmed:
                with self._context.database.transaction() as session:
                    outbox.remove_published(session, confirmed)
        crash_point("relay.marked", published)
        return len(published)

    def _publish(self, producer: Producer, key: str, body: bytes) -> None:
        producer.publish(
            body,
            routing_key=key,
            content_type="application/json",
            content_encoding="utf-8",
            headers={SIGNATURE_HEADER: signature(self._secret, body)},
            delivery_mode=2,
            retry=False,
        )


@contextmanager
def _bindings_read_once(channel: Any) -> Iterator[None]:
    """Spare Redis the question which queues are bound, which kombu asks for each message."""
    is_asking = hasattr(channel, "get_table")
    if is_asking:
        channel.get_table = functools.cache(channel.get_table)
    try:
        yield
    finally:
        if is_asking:
            del channel.get_table
