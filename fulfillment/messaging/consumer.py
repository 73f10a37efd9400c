"""Checkouts from the store's exchange: stored in groups, acknowledged after the commit."""

import contextlib
import threading
from typing import Any

from kombu import Connection, Consumer, Message

from fulfillment.broker import (
    PUBLISH_ERRORS,
    REFUSALS,
    checkout_queue,
    connect,
    dead_queue,
    hint,
    reason_of,
)
from fulfillment.crash import crash_point
from fulfillment.errors import InvalidInput, ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.messaging import dead_letters
from fulfillment.redis_channel import SafeChannel
from fulfillment.services import intake
from fulfillment.services.context import Context
from fulfillment.services.pulse import CONSUMER, Pulse
from schemas.messages import DISPATCH

log = get_logger(__name__)

_GROUP = 100
#: How long to wait for more messages once one is there: a commit's worth of time.
_GROUP_S = 0.003
_IDLE_S = 1.0
_RETRY_S = 1.0
_BIND_S = 1.0
_UNREADABLE = "expected a body as its headers say"


class CheckoutConsumer:
    """Consumes until `stop` is set; a broker or database may go away and come back."""

    def __init__(self, context: Context, stop: threading.Event) -> None:
        self._context = context
        self._stop = stop
        self._waiting: list[Message] = []
        self._pulse = Pulse(context, CONSUMER)
        self._bind_at = 0.0

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._context.settings, confirm=True) as connection:
                    self._consume(connection)
            except (*PUBLISH_ERRORS, ServerUnreachable) as error:
                log.warning("intake.interrupted", reason=reason_of(error))
                self._stop.wait(_RETRY_S)
            except Exception as error:
                # Nothing is acknowledged, and without a heartbeat `/readyz` tells of it.
                log.error("intake.failed", reason=type(error).__name__)
                self._stop.wait(_RETRY_S)

    def _consume(self, connection: Connection) -> None:
        self._waiting.clear()
        channel = connection.channel()
        dead_queue(channel).declare()
        consumer = Consumer(
            channel,
            [checkout_queue],
            on_message=self._waiting.append,
            # Its body is packed, or not what its headers say: refused as it came.
            on_decode_error=lambda message, _error: self._waiting.append(message),
            prefetch_count=_GROUP,
        )
        with consumer:
            log.info("intake.consuming", queue=checkout_queue.name)
            while not self._stop.is_set():
                self._bind_again(channel)
                self._gather(connection)
                # Taken out first: publishing a dead letter may let more messages in meanwhile.
                group = self._waiting[:_GROUP]
                del self._waiting[: len(group)]
                if group:
                    self._take(connection, group)
                self._pulse.beat()  # of a whole turn, or a failure that comes again tells nobody

    def _bind_again(self, channel: Any) -> None:
        """Tell a broker where checkouts go, which a Redis forgets with all else when it is wiped.

        RabbitMQ tells its consumers of a queue that is gone, and nobody of a binding.
        """
        now = self._context.clock.monotonic()
        if now < self._bind_at:
            return
        if isinstance(channel, SafeChannel):
            channel.bind_again(checkout_queue)
        else:
            checkout_queue(channel).declare()
        self._bind_at = now + _BIND_S

    def _gather(self, connection: Connection) -> None:
        timeout = _GROUP_S if self._waiting else _IDLE_S
        with contextlib.suppress(TimeoutError):
            while len(self._waiting) < _GROUP:
                connection.drain_events(timeout=timeout)
                timeout = _GROUP_S
        if connection.supports_heartbeats and connection.heartbeat:
            connection.heartbeat_check()

    def _take(self, connection: Connection, waiting: list[Message]) -> None:
        results = self._store([_parse(message) for message in waiting])
        if results is None:
            return
        crash_point("consumer.before_ack")
        refused = []
        for message, result in zip(waiting, results, strict=True):
            if result.error is None:
                message.ack()
            else:
                refused.append((message, result))
        crash_point("consumer.after_ack")
        for account in intake.new_accounts(results):
            hint(DISPATCH, account)
        # The last of all: what keeps these from being put aside holds up none that is stored.
        for message, result in refused:
            self._put_aside(connection, message, result)

    def _put_aside(self, connection: Connection, message: Message, result: intake.Received) -> None:
        reason = str(result.error)
        log.warning("intake.refused", order_id=result.external_id, reason=reason)
        try:
            kind, headers = message.content_type, message.headers
            dead_letters.publish(connection, message.body, kind, reason, headers)
        except REFUSALS as error:
            told = reason_of(error)
            log.error("intake.dead_letters_refused", queue=dead_queue.name, reason=told)
            raise
        message.ack()

    def _store(self, parsed: list[Any]) -> list[intake.Received] | None:
        """Store a group, waiting for the database as long as it takes; None when told to stop."""
        while not self._stop.is_set():
            try:
                return _receive(self._context, parsed)
            except ServerUnreachable as error:
                # Not acknowledged, so nothing is lost if we end while waiting.
                log.warning("intake.waiting", reason=str(error))
                self._stop.wait(_RETRY_S)
        return None


def _body(message: Message) -> bytes | str:
    """Give what came; "", which is no event, for what is neither text nor bytes."""
    body: Any = message.body
    if isinstance(body, memoryview):
        return body.tobytes()
    return body if isinstance(body, bytes | str) else b""


def _parse(message: Message) -> Any:
    """Give the decoded event, or the error that says why there is none."""
    body = _body(message)
    try:
        for _, error, _ in message.errors or ():
            raise error if isinstance(error, InvalidInput) else InvalidInput(None, _UNREADABLE)
        if len(body) > intake.MAX_EVENT_BYTES:
            raise InvalidInput(None, f"expected at most {intake.MAX_EVENT_BYTES} bytes")
        return intake.parse_json(body)
    except InvalidInput as error:
        return error


def _receive(context: Context, parsed: list[Any]) -> list[intake.Received]:
    good = [raw for raw in parsed if not isinstance(raw, InvalidInput)]
    answers = iter(intake.receive_raw(context, good))
    return [
        intake.Received(None, error=raw) if isinstance(raw, InvalidInput) else next(answers)
        for raw in parsed
    ]
