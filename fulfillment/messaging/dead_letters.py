"""Put aside what cannot be taken in, with the reason in a header, for a person to look at."""

import json
from typing import Any

from kombu import Connection, Producer

from fulfillment.broker import PUBLISH_ERRORS, connect, dead_queue
from fulfillment.log import get_logger
from fulfillment.settings import Settings
from schemas.messages import REASON_HEADER

log = get_logger(__name__)

#: No checkout is nearly as large, and every broker takes as much.
_MOST_BYTES = 1 << 20


def publish(connection: Connection, body: Any, content_type: Any, reason: str) -> None:
    """Publish one dead letter as it came in, or the beginning of one that is huge.

    Raises what kombu raises; then the connection is of no more use.
    """
    raw = _bytes(body)
    if len(raw) > _MOST_BYTES:
        reason = f"{reason}; these are the first {_MOST_BYTES} of {len(raw)} bytes"
    # kombu would declare it once a connection, and it may have been deleted since.
    dead_queue(connection.default_channel).declare()
    producer = Producer(connection)
    producer.publish(
        raw[:_MOST_BYTES],
        routing_key=dead_queue.name,
        mandatory=True,  # what comes back is raised as an error: nobody listens for it
        # A foreign message may call its content anything, or nothing.
        content_type=content_type if isinstance(content_type, str) else "application/octet-stream",
        content_encoding="utf-8",
        headers={REASON_HEADER: reason},
        delivery_mode=2,
        retry=False,
    )


def _bytes(body: Any) -> bytes:
    """Write a body down whatever a foreign sender, or kombu, has made of it."""
    if isinstance(body, memoryview):
        return body.tobytes()
    if isinstance(body, bytes):
        return body
    text = body if isinstance(body, str) else json.dumps(body, default=repr)
    return text.encode(errors="replace")


def bury(settings: Settings, body: Any, content_type: Any, reason: str) -> None:
    """Put aside what came to a worker; when the broker is away, only log it."""
    try:
        with connect(settings, confirm=True) as connection:
            publish(connection, body, content_type, reason)
    except PUBLISH_ERRORS as error:
        log.warning("dead_letter.lost", reason=reason, why=type(error).__name__)
