"""What the store is told again: written anew from the log, byte for byte as it was told before.

The newest orders come first, because they are the ones that something may happen to meanwhile; the
messages of one order come in the order of its log.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from fulfillment.log import get_logger
from fulfillment.store import orders, outbox
from fulfillment.store.engine import Session
from fulfillment.store.models import Order
from fulfillment.store.views import order_fields, timeline_entry
from schemas.enums import OrderStatus

log = get_logger(__name__)

#: A routing key and a body in JSON.
Written = tuple[str, bytes]
#: Orders a slice that are looked at, and about how many events it tells of.
_SCAN = 5000
_EVENTS = 500

# What a message shows of an order that may change, in the form in which `changes` keep it.
_SHOWN = (
    *("account", "market_hash_name", "provider_status", "charged_mills", "steam_offer_id"),
    *("overdue", "failure_code", "failure_message", "failed_by"),
)
_SHOWN_TIMES = ("trade_deadline_at", "reversible_until")

_COLUMNS = "id, reason, since, order_id, before_id, rounds, messages, requested_at, finished_at"
# A slice has a bounded effort, also where nobody heard of most orders for a long time.
_NEXT = """
    WITH scanned AS MATERIALIZED (
        SELECT id, sequence, updated_at FROM orders WHERE id < %(before_id)s
         ORDER BY id DESC LIMIT %(scan)s
    ), counted AS (
        SELECT id, sum(sequence) OVER (ORDER BY id DESC) - sequence AS ahead
          FROM scanned WHERE updated_at >= %(since)s
    )
    SELECT coalesce(array_agg(id) FILTER (WHERE ahead < %(events)s), '{}') AS ids,
           coalesce(max(id) FILTER (WHERE ahead >= %(events)s) + 1,
                    (SELECT min(id) FROM scanned), 0) AS before_id
      FROM counted
    """
_LOG = """
    SELECT order_id, sequence, at, source, from_status, to_status, note, changes, told, told_from
      FROM order_events WHERE order_id = ANY(%(ids)s) ORDER BY order_id DESC, sequence
    """
_REQUEST = """
    INSERT INTO replays (reason, since, order_id, before_id, requested_at)
    SELECT %(reason)s, %(since)s, CAST(%(order_id)s AS bigint),
           coalesce(CAST(%(order_id)s AS bigint), (SELECT max(id) FROM orders), 0) + 1, %(now)s
    RETURNING id
    """


@dataclass(frozen=True, slots=True)
class Replay:
    """A wish that the store be told again of what happened since; of one order or of all.

    Orders below `before_id` are still to be told of.
    """

    id: int
    reason: str
    since: datetime
    order_id: int | None
    before_id: int
    rounds: int
    messages: int
    requested_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some messages to be told again, by routing key and body, and where to go on after them."""

    messages: list[Written]
    before_id: int
    #: How many of the slice were told before these.
    told: int = 0

    def after(self, confirmed: Collection[int]) -> "Slice":
        """Give what is left once those at these places are told."""
        left = [m for place, m in enumerate(self.messages) if place not in confirmed]
        return Slice(left, self.before_id, self.told + len(confirmed))


def request(
    session: Session, reason: str, since: datetime, now: datetime, order_id: int | None = None
) -> None:
    """Have the relay tell again what happened since then."""
    parameters = {"reason": reason, "since": since, "order_id": order_id, "now": now}
    session.execute(_REQUEST, parameters)


def begin_anew(session: Session) -> None:
    """Take what was told again so far for not told."""
    session.execute(
        "UPDATE replays SET rounds = rounds + 1, "
        "before_id = coalesce(order_id, (SELECT max(id) FROM orders), 0) + 1 "
        "WHERE finished_at IS NULL"
    )


def unfinished(session: Session) -> list[Replay]:
    """Give what is still to be told again, the oldest wish first."""
    statement = f"SELECT {_COLUMNS} FROM replays WHERE finished_at IS NULL ORDER BY id"  # noqa: S608
    return [Replay(*row) for row in session.rows(statement)]


def newest(session: Session, limit: int) -> list[Replay]:
    """Give the last wishes, the newest first."""
    statement = f"SELECT {_COLUMNS} FROM replays ORDER BY id DESC LIMIT %(limit)s"  # noqa: S608
    return [Replay(*row) for row in session.rows(statement, {"limit": limit})]


def count_orders(session: Session, since: datetime) -> int:
    """Count the orders to which something happened since then."""
    count = "SELECT count(*) FROM orders WHERE updated_at >= %(since)s"
    return int(session.scalar(count, {"since": since}))


def read_slice(session: Session, wish: Replay) -> Slice:
    """Write the next messages anew; at `before_id` 0 nothing is left after them."""
    if wish.order_id is not None:
        return Slice(_messages(session, [wish.order_id], wish.since), 0)
    parameters = {
        "before_id": wish.before_id,
        "since": wish.since,
        "scan": _SCAN,
        "events": _EVENTS,
    }
    row = session.one(_NEXT, parameters)
    return Slice(_messages(session, row.ids, wish.since), row.before_id)


def move_on(session: Session, wish: Replay, told: Slice, now: datetime) -> None:
    """Note that a slice is told, unless the wish was begun anew meanwhile."""
    session.execute(
        "UPDATE replays SET before_id = %(before_id)s, messages = messages + %(messages)s, "
        "finished_at = CASE WHEN %(before_id)s = 0 THEN CAST(%(now)s AS timestamptz) END "
        "WHERE id = %(id)s AND before_id = %(was)s AND rounds = %(rounds)s",
        {
            "id": wish.id,
            "was": wish.before_id,
            "rounds": wish.rounds,
            "before_id": told.before_id,
            "messages": told.told,
            "now": now,
        },
    )


def _messages(session: Session, order_ids: Sequence[int], since: datetime) -> list[Written]:
    logs: dict[int, list[Any]] = {}
    for event in session.execute(_LOG, {"ids": list(order_ids)}):
        logs.setdefault(event.order_id, []).append(event)
    found = {order.id: order for order in orders.get(session, order_ids)}
    messages: list[Written] = []
    for order_id, events in logs.items():
        try:
            messages += [*_messages_of(found[order_id], events, since)]
        except (ValueError, TypeError, LookupError) as error:
            # One log that cannot be read must not keep all others from being told.
            name, reason = found[order_id].external_id, type(error).__name__
            log.error("replay.left_out", order_id=name, reason=reason)
    return messages


def _messages_of(order: Order, events: Iterable[Any], since: datetime) -> Iterator[Written]:
    shown: dict[str, Any] = {}
    for event in events:
        shown |= event.changes
        if event.at < since:
            continue
        before = OrderStatus(event.from_status) if event.from_status else None
        after = OrderStatus(event.to_status)
        then = _as_it_was(order, shown, after, event.sequence, event.at)
        entry = timeline_entry(event.at, event.source, before, after, event.note)
        for key in orders.heard_on(before, after, event.changes, event.told or ()):
            fields = order_fields(then, [entry])
            name, number = then.external_id, then.sequence
            message = outbox.message(name, number, key, fields, event.at, event.told_from)
            yield key, msgspec.json.encode(message)


def _as_it_was(
    order: Order, shown: dict[str, Any], status: OrderStatus, sequence: int, at: datetime
) -> Order:
    values: dict[str, Any] = {name: shown.get(name) for name in _SHOWN}
    values |= {name: _time(shown.get(name)) for name in _SHOWN_TIMES}
    values["overdue"] = bool(values["overdue"])
    return replace(order, status=status, sequence=sequence, updated_at=at, **values)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
