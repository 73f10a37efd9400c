"""Messages to the store, written in the transaction that they tell of and published later.

Within one order they are published in the order of their ids; an order's ids are in the order of
its events, because an event is written under the lock of the order's row.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from fulfillment.store.engine import Session
from fulfillment.store.models import Order
from schemas.messages import OrderMessage

# Bodies come as the lines of one text: JSON has no line break of its own, and to escape the quotes
# of each for an array would cost more than all else here.
_ADD = """
    INSERT INTO outbox_messages (order_id, routing_key, body, created_at)
    SELECT m.order_id, m.routing_key, m.body, %(now)s
      FROM ROWS FROM (unnest(CAST(%(order_ids)s AS bigint[])), unnest(CAST(%(keys)s AS text[])),
                      string_to_table(CAST(%(bodies)s AS text), chr(10)))
           AS m(order_id, routing_key, body)
    """


def add(
    session: Session, messages: Sequence[tuple[Order, str, dict[str, Any]]], now: datetime
) -> None:
    """Add messages about orders as they are now: a routing key and what is shown of the order."""
    if not messages:
        return
    bodies = [
        OrderMessage(
            eventId=f"{order.external_id}:{order.sequence}:{key}",
            externalId=order.external_id,
            sequence=order.sequence,
            type=key,
            occurredAt=now.isoformat(),
            order=fields,
        )
        for order, key, fields in messages
    ]
    session.execute(
        _ADD,
        {
            "order_ids": [order.id for order, _, _ in messages],
            "keys": [key for _, key, _ in messages],
            "bodies": b"\n".join(map(msgspec.json.encode, bodies)).decode(),
            "now": now,
        },
    )


def unpublished(session: Session, limit: int) -> list[tuple[int, str, str]]:
    """Give the oldest messages that wait: id, routing key, body as JSON."""
    rows = session.execute(
        "SELECT id, routing_key, body FROM outbox_messages ORDER BY id LIMIT %(limit)s",
        {"limit": limit},
    )
    return [tuple(row) for row in rows]


def remove_published(session: Session, message_ids: Sequence[int]) -> None:
    """Take out what the broker has confirmed; what it told of stays in the order's log."""
    session.execute(
        "DELETE FROM outbox_messages WHERE id = ANY(%(ids)s)", {"ids": list(message_ids)}
    )


def lag(session: Session, now: datetime) -> tuple[int, timedelta]:
    """Count the messages that wait and give the age of the oldest."""
    row = session.one("SELECT count(*), min(created_at) FROM outbox_messages")
    return row[0], now - row[1] if row[1] else timedelta()
