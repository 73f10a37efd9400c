"""The workers' consumer: what is no task of ours harms nobody, and a lost connection neither.

Celery 5.7 logs the whole body of a message that it cannot run, trade URL included, and drops it;
of some it dies, and so does the next worker that gets the message back. It has tasks of its own,
none of which we use.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.bootsteps import ConsumerStep
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks

from celeryconfig import INTAKE
from fulfillment.broker import PUBLISH_ERRORS
from fulfillment.errors import InvalidInput, NotPutAside
from fulfillment.log import get_logger
from fulfillment.messaging import dead_letters
from fulfillment.redis_channel import Refused, open_channels
from fulfillment.settings import load_settings
from schemas.messages import RECEIVE
from tasks.base import put_back_later

log = get_logger(__name__)

#: Who connects to a Redis that takes writes, and refuses others, waits as long before each try.
_REST_S = 1.0


class CheckoutTasks(ConsumerStep):
    """Consumes the checkouts of stores in Python on a channel of their own, where that is Redis.

    There a channel that has one queue loses no message when its process dies; see `redis_channel`.
    """

    requires = (Tasks,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._parent = parent
        queues = parent.app.amqp.queues
        on_redis = parent.app.connection_for_read().transport.driver_type == "redis"
        self._queue = queues.consume_from.get(INTAKE) if on_redis else None
        if self._queue is not None:
            queues.deselect(INTAKE)

    def get_consumers(self, channel: Any) -> list[Any]:
        if self._queue is None:
            return []
        parent = self._parent
        consumer = parent.app.amqp.TaskConsumer(
            channel, queues=[self._queue], on_decode_error=parent.on_decode_error
        )
        consumer.on_message = parent.create_task_handler()
        consumer.qos(prefetch_count=parent.initial_prefetch_count)
        return [consumer]


class SafeConsumer(Consumer):
    """Puts aside what a store sent and nobody can run; drops such hints of our own."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc, valid-type]  # so say the stubs
        """Celery's steps, and the one above."""

        default_steps = (*Consumer.Blueprint.default_steps, CheckoutTasks)

    if TYPE_CHECKING:  # Celery's stubs leave these out.
        connection_errors: tuple[type[Exception], ...]
        strategies: dict[str, Any]
        call_soon_ack: Callable[..., Any]

    def update_strategies(self) -> None:
        """Run our own tasks only: Celery's would show in Flower whatever a store sends to them."""
        super().update_strategies()
        for name in [name for name in self.strategies if name.startswith("celery.")]:
            del self.strategies[name]

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except PUBLISH_ERRORS:
                raise  # of the connection; Celery's own list of these has KeyError in it
            except Exception as error:  # whatever a foreign message's form makes Celery raise
                self._refuse(message, error)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._refuse(message, exc)

    def _refuse(self, message: Any, error: Exception | None) -> None:
        # The error's own text may quote the message, but for ours.
        told = error if isinstance(error, InvalidInput) else type(error).__name__
        why = f" ({told})" if error else ""
        reason = f"expected a task message of `checkout.receive`{why}"
        queue = (message.delivery_info or {}).get("routing_key")
        headers = message.headers
        log.error("task.unreadable", queue=queue, reason=reason)
        # A task that only a newer version knows is a hint, which the sweep makes up for.
        if queue == INTAKE or (isinstance(headers, dict) and headers.get("task") == RECEIVE):
            try:
                kind = message.content_type
                dead_letters.bury(load_settings(), message.body, kind, reason, headers)
            except NotPutAside:
                tell = message.reject_log_error, log, self.connection_errors, True
                put_back_later(partial(self.call_soon_ack, *tell))
                return
        message.ack_log_error(log, self.connection_errors)

    def on_connection_error_after_connected(self, exc: Exception) -> Any:
        """Do not put running tasks back when the connection breaks under them.

        Celery closes such a connection twice; kombu's Redis channel then restores unacknowledged
        messages through a transport that is gone, and the worker dies of an AttributeError.
        """
        for channel in open_channels(self.connection):
            channel.qos.restore_at_shutdown = False
        _rest_after(exc)
        return super().on_connection_error_after_connected(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> Any:
        _rest_after(exc)
        return super().on_connection_error_before_connected(exc)


def _rest_after(error: Exception) -> None:
    if isinstance(error, Refused):
        time.sleep(_REST_S)
