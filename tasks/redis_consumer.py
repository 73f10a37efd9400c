"""Keep a worker alive when its Redis connection is lost.

Celery 5.7.0 closes such a connection twice; kombu's Redis channel then restores unacknowledged
messages through a transport that is gone, and the worker's main process dies of an AttributeError.
"""

from typing import Any

import redis
from celery.worker.consumer import Consumer
from kombu.transport import redis as kombu_redis


class SafeQoS(kombu_redis.QoS):
    """Tells of a channel that is gone by the error that the consumer knows how to survive."""

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


kombu_redis.Channel.QoS = SafeQoS


class RedisSafeConsumer(Consumer):
    """Does not put running tasks back when the connection breaks under them."""

    def on_connection_error_after_connected(self, exc: Exception) -> Any:
        channel = getattr(self.connection, "_default_channel", None)
        qos = getattr(channel, "_qos", None)
        if isinstance(qos, SafeQoS):
            qos.restore_at_shutdown = False
        return super().on_connection_error_after_connected(exc)
