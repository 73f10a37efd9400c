"""Put aside what cannot be taken in, with the reason in a header, for a person to look at."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from kombu import Connection, Producer

from fulfillment.broker import PUBLISH_ERRORS, connect, dead_queue, reason_of
from fulfillment.errors import NotPutAside
from fulfillment.log import get_logger, masked_field
from fulfillment.settings import Settings
from schemas.messages import REASON_HEADER

log = get_logger(__name__)

#: No checkout is nearly as large, and every broker takes as much.
_MOST_BYTES = 1 << 20
#: Of the sender's own headers so many are kept, and none whose name or value is longer.
_MOST_HEADERS, _LONGEST = 20, 255
_A_NAME = re.compile(r"[\x20-\x7e]+")
#: What we, or a broker, write there; what kombu or RabbitMQ would act by; and arguments of a task.
_NOT_KEPT = re.compile(
    rf"(?i){REASON_HEADER}|x-(first-|last-)?death|x-fulfillment|(compression|b?cc|(kw)?argsrepr)$"
)


def publish(
    connection: Connection, body: Any, content_type: Any, reason: str, headers: Any = None
) -> None:
    """Publish one dead letter as it came in, or the beginning of one that is huge.

    Its sender's headers are kept where they are short texts, masked as in a log. Raises what kombu
    raises; then the connection is of no more use.
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
        headers={**_kept(headers), REASON_HEADER: reason},
        delivery_mode=2,
        retry=False,
    )


def _kept(headers: Any) -> dict[str, str]:
    """Choose from a foreign message's headers what may stand in a message of ours."""
    if not isinstance(headers, Mapping):
        return {}
    mine = (name for name, value in headers.items() if _is_short(name) and _is_short(value))
    kept = (name for name in mine if _A_NAME.fullmatch(name) and not _NOT_KEPT.match(name))
    return {
        name: masked_field(name, headers[name]).encode(errors="replace").decode()
        for name in islice(kept, _MOST_HEADERS)
    }


def _is_short(text: Any) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _LONGEST


def _bytes(body: Any) -> bytes:
    """Write a body down whatever a foreign sender, or kombu, has made of it."""
    if isinstance(body, memoryview):
        return body.tobytes()
    if isinstance(body, bytes):
        return body
    text = body if isinstance(body, str) else json.dumps(body, default=repr)
    return text.encode(errors="replace")


def bury(
    settings: Settings, body: Any, content_type: Any, reason: str, headers: Any = None
) -> None:
    """Put aside what came to a worker. Raises NotPutAside: then it must not be acknowledged."""
    try:
        with connect(settings, confirm=True) as connection:
            publish(connection, body, content_type, reason, headers)
    except PUBLISH_ERRORS as error:
        why = reason_of(error)
        log.error("dead_letter.not_taken", queue=dead_queue.name, reason=reason, why=why)
        raise NotPutAside(why) from error
