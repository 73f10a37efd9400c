"""kombu's messages as they came: none is ever decompressed.

What is packed small may be large, and kombu unpacks it before anybody can look at its size.
"""

from typing import Any

from kombu import compression
from kombu.message import Message
from kombu.transport import pyamqp
from kombu.transport.virtual import base as virtual

from fulfillment.errors import InvalidInput
from fulfillment.log import get_logger

log = get_logger(__name__)


class _AsItCame(Message):
    """Has an error instead of an unpacked body, as kombu's own have where one is packed wrongly."""

    def __init__(self, body: Any = None, *, headers: Any = None, **more: Any) -> None:
        if headers and (name := headers.get("compression")):
            error = InvalidInput(None, f"expected a body that is not compressed{_told(name)}")
            self.errors = [(InvalidInput, error, None)]
        super().__init__(body, headers=headers, **more)

    def ack_log_error(self, _logger: Any, errors: Any, multiple: bool = False) -> None:
        """Tell in one line, where kombu writes two stacks: the message comes again."""
        try:
            self.ack(multiple=multiple)
        except (BrokenPipeError, *errors) as error:
            log.warning("broker.not_acknowledged", reason=type(error).__name__)
            if isinstance(error, BrokenPipeError):  # as kombu's own
                raise

    def reject_log_error(self, _logger: Any, errors: Any, requeue: bool = False) -> None:
        try:
            self.reject(requeue=requeue)
        except errors as error:
            log.warning("broker.not_rejected", reason=type(error).__name__)


def _told(name: Any) -> str:
    """Name the packing, for whoever unpacks it; only one that kombu knows, since it is foreign."""
    try:
        compression.get_decoder(name)
    except (KeyError, TypeError):
        return ""
    return f", found {name}"


class AMQPMessage(pyamqp.Message, _AsItCame):
    """A message of RabbitMQ's."""


class RedisMessage(virtual.Message, _AsItCame):
    """A message of Redis'."""
