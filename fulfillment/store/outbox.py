"""Messages to the store, written in the transaction that they tell of and published later.

Within one order they are published in the order of their ids; an order's ids are in the order of
its events, because an event is written under the lock of the order's row.
"""

from collections.abc import Collection, Iterable, Sequence
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
_UNPUBLISHED = "SELECT id, routing_key, body FROM outbox_messages ORDER BY id LIMIT %(limit)s"
_UNPUBLISHED_BUT = """
    SELECT id, routing_key, body FROM outbox_messages m
     WHERE NOT EXISTS (
           SELECT 1 FROM unnest(CAST(%(before_ids)s AS bigint[]), CAST(%(order_ids)s AS bigint[]))
                         AS r(before_id, order_id)
            WHERE m.order_id < r.before_id AND m.order_id = coalesce(r.order_id, m.order_id))
       AND NOT EXISTS (
           SELECT 1 FROM outbox_messages e
            WHERE e.order_id = m.order_id AND e.id <= m.id
              AND e.routing_key = ANY(CAST(%(resting)s AS text[])))
     ORDER BY id LIMIT %(limit)s
    """


def add(
    session: Session,
    messages: Sequence[tuple[Order, str, dict[str, Any]]],
    now: datetime,
    told_from: int | None,
) -> None:
    """Add messages about orders as they are now: a routing key and what is shown of the order.

    They are numbered as the order's log is, from `told_from` on.
    """
    if not messages:
        return
    bodies = [
        message(order.external_id, order.sequence, key, fields, now, told_from)
        for order, key, fields in messages
    ]
    session.execute(
        _ADD,
        {
            "order_ids": [order.id for order, _, _ in messages],
            "keys": [key for _, key, _ in messages],
            "bodies": lines(bodies),
            "now": now,
        },
    )


def lines(bodies: Iterable[OrderMessage]) -> str:
    """Write bodies as one text, from which `string_to_table` makes rows."""
    return b"\n".join(map(msgspec.json.encode, bodies)).decode()


def message(
    external_id: str,
    sequence: int,
    key: str,
    fields: dict[str, Any],
    at: datetime,
    told_from: int | None,
) -> OrderMessage:
    """Write a message's body: what is shown of an order as it is, or was at that time."""
    told_as = (told_from or 0) + sequence
    return OrderMessage(
        eventId=f"{external_id}:{told_as}:{key}",
        externalId=external_id,
        sequence=told_as,
        type=key,
        occurredAt=at.isoformat(),
        order=fields,
    )


def unpublished(
    session: Session,
    limit: int,
    behind: Sequence[tuple[int, int | None]] = (),
    resting: Collection[str] = (),
) -> list[tuple[int, str, str]]:
    """Give the oldest messages that wait: id, routing key, body as JSON.

    Not those of orders that are to be told of again first: `behind` names them as an id that is
    above all of them, and the only one where it is one. Nor those of these `resting` routing keys,
    and what comes after one of its order.
    """
    rows = session.execute(
        _UNPUBLISHED_BUT if behind or resting else _UNPUBLISHED,
        {
            "limit": limit,
            "before_ids": [before_id for before_id, _ in behind],
            "order_ids": [order_id for _, order_id in behind],
            "resting": list(resting),
        },
    )
    return [tuple(row) for row in rows]


def oldest_at(session: Session) -> datetime | None:
    """Say since when messages wait."""
    at: datetime | None = session.scalar("SELECT min(created_at) FROM outbox_messages")
    return at


def remove_published(session: Session, message_ids: Sequence[int]) -> None:
    """Take out what the broker has confirmed; what it told of stays in the order's log."""
    session.execute(
        "DELETE FROM outbox_messages WHERE id = ANY(%(ids)s)", {"ids": list(message_ids)}
    )


def lag(session: Session, now: datetime) -> tuple[int, timedelta]:
    """Count the messages that wait and give the age of the oldest."""
    row = session.one("SELECT count(*), min(created_at) FROM outbox_messages")
    return row[0], now - row[1] if row[1] else timedelta()
