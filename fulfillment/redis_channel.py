"""kombu's Redis channel, but no message and no lost connection ends the process that reads it.

Anybody who can write to Redis can push bytes that are no message at all. kombu 5.7 has taken them
off the queue when it finds that out, and raises whatever Python raises then.
"""

import base64
import json
import uuid
from typing import Any

import redis
from kombu.transport import redis as kombu_redis

from fulfillment.log import get_logger

log = get_logger(__name__)

#: What kombu raises about an envelope that is none.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)


class SafeQoS(kombu_redis.QoS):
    """Tells of a channel that is gone by the error that consumers know how to survive."""

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except AttributeError as error:
            raise redis.ConnectionError("channel gone; the message comes again") from error

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)
        except AttributeError as error:
            raise redis.ConnectionError("channel gone; the message comes again") from error


class SafeChannel(kombu_redis.Channel):
    """Delivers bytes that are no message as one: whoever consumes it finds that it says nothing."""

    QoS = SafeQoS
    #: What BRPOP gave last: the queue's key and the item.
    _popped: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc]  # the stubs lack it
        client.set_response_callback("BRPOP", self._note)
        return client

    def _note(self, answer: Any, **_options: Any) -> Any:
        self._popped = tuple(answer) if answer else None
        return self._popped

    def _brpop_read(self, **options: Any) -> Any:
        self._popped = None
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs lack it
        except _UNREADABLE:
            if self._popped is None or self._is_message(self._popped[1]):
                raise  # the consumer's own error
        queue, item = self._popped
        name = queue.decode().rsplit(self.sep, 1)[0]
        log.error("broker.no_message", queue=name, bytes=len(item))
        self.connection._deliver(_envelope(name, item), name)
        return True

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        # Remote control and events: what is no message there is nobody's loss.
        try:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[misc]
        except _UNREADABLE:
            if self._is_message(json.dumps(message)):
                raise
        log.error("broker.no_message", exchange=exchange)
        return True

    def _is_message(self, item: bytes | str) -> bool:
        try:
            message = self.Message(json.loads(item), channel=self)
            route = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        except _UNREADABLE:
            return False
        return all(isinstance(text, str) for text in (message.delivery_tag, *route))


def _envelope(queue: str, body: bytes) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": "application/octet-stream",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": uuid.uuid4().hex,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def install() -> None:
    """Let every Redis connection of this process use it."""
    kombu_redis.Transport.Channel = SafeChannel
