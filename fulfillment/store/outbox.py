"""Messages to the store, written in the transaction that they tell of and published later.

Within one order they are published in the order of their ids; an order's ids are in the order of
its events, because an event is written under the lock of the order's row.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import text
from sqlmodel import Session

from fulfillment.store.models import Order
from schemas.messages import OrderMessage
from schemas.orders import OrderView

_ADD = text(
    "INSERT INTO outbox_messages (order_id, routing_key, body, created_at) "
    "SELECT m.order_id, m.routing_key, m.body, :now FROM jsonb_to_recordset("
    "CAST(:messages AS jsonb)) AS m(order_id bigint, routing_key text, body jsonb)"
)


def add(session: Session, messages: Sequence[tuple[Order, str, OrderView]], now: datetime) -> None:
    """Add messages about orders as they are now."""
    if not messages:
        return
    rows = []
    for order, key, view in messages:
        body = OrderMessage(
            eventId=f"{order.external_id}:{order.sequence}:{key}",
            externalId=order.external_id,
            sequence=order.sequence,
            type=key,
            occurredAt=now.isoformat(),
            order=view.as_json(),
        )
        rows.append({"order_id": order.id, "routing_key": key, "body": body})
    session.execute(_ADD, {"messages": msgspec.json.encode(rows).decode(), "now": now})


def unpublished(session: Session, limit: int) -> list[tuple[int, str, str]]:
    """Give the oldest messages that wait: id, routing key, body as JSON."""
    rows = session.execute(
        text(
            "SELECT id, routing_key, CAST(body AS text) FROM outbox_messages "
            "WHERE published_at IS NULL ORDER BY id LIMIT :limit"
        ),
        {"limit": limit},
    )
    return [tuple(row) for row in rows]


def mark_published(session: Session, message_ids: Sequence[int], now: datetime) -> None:
    """Note that the broker has confirmed these messages."""
    session.execute(
        text("UPDATE outbox_messages SET published_at = :now WHERE id = ANY(:ids)"),
        {"now": now, "ids": list(message_ids)},
    )


def lag(session: Session, now: datetime) -> tuple[int, timedelta]:
    """Count the messages that wait and give the age of the oldest."""
    row = session.execute(
        text("SELECT count(*), min(created_at) FROM outbox_messages WHERE published_at IS NULL")
    ).one()
    return row[0], now - row[1] if row[1] else timedelta()
