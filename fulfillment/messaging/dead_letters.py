"""Put aside what cannot be taken in, with the reason in a header, for a person to look at."""

from typing import Any

from kombu import Connection, Producer

from fulfillment.broker import PUBLISH_ERRORS, connect, dead_queue
from fulfillment.log import get_logger
from fulfillment.settings import Settings
from schemas.messages import REASON_HEADER

log = get_logger(__name__)


def publish(connection: Connection, body: bytes | str, content_type: str, reason: str) -> None:
    """Publish one dead letter as it came in. Raises what kombu raises."""
    producer = Producer(connection)
    producer.publish(
        body,
        routing_key=dead_queue.name,
        declare=[dead_queue],
        content_type=content_type,
        content_encoding="utf-8",
        headers={REASON_HEADER: reason},
        delivery_mode=2,
        retry=False,
    )


def bury(settings: Settings, event: Any, reason: str) -> None:
    """Put aside an event that came as a Celery task; when the broker is away, only log it."""
    try:
        with connect(settings, confirm=True) as connection:
            producer = Producer(connection)
            producer.publish(
                event,
                routing_key=dead_queue.name,
                declare=[dead_queue],
                serializer="json",
                headers={REASON_HEADER: reason},
                retry=False,
            )
    except PUBLISH_ERRORS as error:
        log.warning("dead_letter.lost", reason=reason, why=type(error).__name__)
