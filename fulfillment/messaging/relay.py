"""Publish the outbox to the store's exchange: at least once, in order within each order.

Any number of relays may run; the one that has the lease publishes, the others wait.
"""

import hmac
import threading
import uuid
from contextlib import suppress
from datetime import timedelta

from kombu import Connection

from fulfillment.broker import PUBLISH_ERRORS, connect
from fulfillment.crash import crash_point
from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.messaging.publishing import Publisher, make_publisher
from fulfillment.services.context import Context
from fulfillment.services.pulse import RELAY, Pulse
from fulfillment.store import leases, outbox

log = get_logger(__name__)

SIGNATURE_HEADER = "x-fulfillment-signature"
_LEASE = "outbox.relay"
_LEASE_TIME = timedelta(seconds=10)
#: What of the lease must be left for a group; one that is not through by then is given up.
_PUBLISH_TIME = timedelta(seconds=7)
_GROUP = 500
_GATHER_S = 0.05
_IDLE_S = 0.2
_RETRY_S = 1.0
_LOOK_S = 1.0


def signature(secret: str, body: bytes) -> str:
    """Sign a message's body: lower-case hex HMAC-SHA256 under the API token."""
    return hmac.digest(secret.encode(), body, "sha256").hex()


class OutboxRelay:
    """Publishes until `stop` is set; a broker or database may go away and come back."""

    def __init__(self, context: Context, stop: threading.Event) -> None:
        self._context = context
        self._stop = stop
        self._holder = uuid.uuid4().hex
        self._pulse = Pulse(context, RELAY)
        self._leased_until = context.now()
        self._secret = context.settings.api_token.get_secret_value()

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._context.settings) as connection:
                    self._relay(connection)
            except (*PUBLISH_ERRORS, ServerUnreachable) as error:
                log.warning("relay.waiting", reason=type(error).__name__)
                self._stop.wait(_RETRY_S)

    def _relay(self, connection: Connection) -> None:
        publisher = make_publisher(connection)
        look_at = 0.0
        while not self._stop.is_set():
            self._pulse.beat()
            published = self._publish_some(publisher)
            if not published and self._context.clock.monotonic() >= look_at:
                publisher.look()
                look_at = self._context.clock.monotonic() + _LOOK_S
            # A group costs two transactions, whatever its size: let the next one grow a little.
            pause_s = 0 if published == _GROUP else _GATHER_S if published else _IDLE_S
            if not connection.supports_heartbeats:
                self._stop.wait(pause_s)
                continue
            # The broker's heartbeats are to be read, or the connection counts as silent.
            with suppress(TimeoutError):
                connection.drain_events(timeout=pause_s)
            connection.heartbeat_check()
        with self._context.database.transaction() as session:
            leases.give_up(session, _LEASE, self._holder)

    def _publish_some(self, publisher: Publisher) -> int:
        """Publish one group; give its size, 0 also where another relay has the lease."""
        now = self._context.now()
        until = self._leased_until
        with self._context.database.transaction() as session:
            if until < now + _PUBLISH_TIME:
                until = now + _LEASE_TIME
                if not leases.acquire(session, _LEASE, self._holder, now, until):
                    return 0
            waiting = outbox.unpublished(session, _GROUP)
        self._leased_until = until
        crash_point("relay.leased", waiting)
        if not waiting:
            return 0
        bodies = [(key, body.encode()) for _, key, body in waiting]
        group = [(k, b, {SIGNATURE_HEADER: signature(self._secret, b)}) for k, b in bodies]
        try:
            publisher.publish(group, _PUBLISH_TIME.total_seconds())
            crash_point("relay.published", group)
        finally:
            if confirmed := [waiting[place][0] for place in range(publisher.confirmed)]:
                with self._context.database.transaction() as session:
                    outbox.remove_published(session, confirmed)
        crash_point("relay.marked", group)
        return len(group)
