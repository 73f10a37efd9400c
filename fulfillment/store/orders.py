"""Orders and their event log. The one way to change a status is `apply`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlmodel import Session, col, select

from fulfillment import states
from fulfillment.log import get_logger
from fulfillment.store import outbox
from fulfillment.store.models import ORDER_COLUMNS, Move, Order, columns
from fulfillment.store.views import Entry, order_fields, timeline_entry
from schemas.enums import OrderStatus, Source
from schemas.messages import ORDER_UPDATED
from schemas.orders import OrderView
from schemas.tables import AccountRow, OrderEventRow, OrderRow

log = get_logger(__name__)

# Columns that a move may set; `jsonb_populate_record` keeps the row's own value for the others.
_SETTABLE = (
    "account",
    "fallbacks",
    "between_attempts",
    "market_hash_name",
    "provider_status",
    "provider_reference",
    "reported_at",
    "quoted_mills",
    "quoted_item_id",
    "charged_mills",
    "steam_offer_id",
    "failure_code",
    "failure_message",
    "failed_by",
    "funds_deadline_at",
    "sent_at",
    "trade_deadline_at",
    "overdue",
    "completed_at",
    "reversible_until",
    "next_attempt_at",
    "next_poll_at",
    "polled_at",
    "polls",
    "next_watch_at",
    "claim",
    "claimed_until",
)

# What the store sees of an order beside its status: it hears of a change of these too.
_VISIBLE = frozenset(
    {
        "account",
        "provider_status",
        "charged_mills",
        "steam_offer_id",
        "overdue",
        "trade_deadline_at",
        "reversible_until",
    }
)

# One statement for a whole batch. Rows are locked in the order of their ids, so that two batches
# that share orders cannot deadlock; the guard on `status` and `claim` lets one writer win.
_APPLY = text(
    f"""
    WITH moves AS (
        SELECT * FROM jsonb_to_recordset(CAST(:moves AS jsonb)) AS m(
            id bigint, source text, target text, by text, note text, claim text,
            changes jsonb, due jsonb)
    ), locked AS (
        SELECT o.id FROM orders o JOIN moves m ON m.id = o.id
         WHERE o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)
         ORDER BY o.id FOR UPDATE OF o
    ), moved AS (
        UPDATE orders o
           SET status = m.target, sequence = o.sequence + 1, updated_at = :now,
               ({", ".join(_SETTABLE)}) = (
                   SELECT {", ".join(f"r.{name}" for name in _SETTABLE)}
                     FROM jsonb_populate_record(o, m.changes || m.due) r)
          FROM moves m
         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)
           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)
        RETURNING {columns(ORDER_COLUMNS, "o")}, m.by, m.note, m.source, m.changes
    ), logged AS (
        INSERT INTO order_events
               (order_id, sequence, at, source, from_status, to_status, note, changes)
        SELECT id, sequence, :now, by, source, status, note, changes FROM moved
    )
    SELECT {columns(ORDER_COLUMNS)} FROM moved ORDER BY id
    """  # noqa: S608 - the names are the constants above
)

_READ = f"SELECT {columns(ORDER_COLUMNS)} FROM orders WHERE id = ANY(:ids) ORDER BY id"  # noqa: S608
_GET, _LOCK = text(_READ), text(_READ + " FOR UPDATE")
_ORDER = tuple(getattr(OrderRow, name) for name in ORDER_COLUMNS)


@dataclass(frozen=True, slots=True)
class NewOrder:
    """What intake stores of one accepted checkout."""

    external_id: str
    account: str
    route: str | None
    fallbacks: Sequence[str]
    fingerprint: str
    catalog_item_id: str
    market_hash_name: str | None
    expected_price_cents: int
    trade_url_sealed: bytes
    submit_by: datetime


# Numbered in the order of arrival, but inserted in the order of the store's ids: two calls that
# share checkouts in another order would each wait for the other's row.
_INSERT = text(
    f"""
    WITH new AS (
        SELECT * FROM unnest(
            CAST(:external_ids AS text[]), CAST(:accounts AS text[]), CAST(:routes AS text[]),
            CAST(:fallbacks AS jsonb[]), CAST(:fingerprints AS text[]),
            CAST(:items AS text[]), CAST(:names AS text[]), CAST(:prices AS bigint[]),
            CAST(:trade_urls AS bytea[]), CAST(:submit_bys AS timestamptz[])
        ) WITH ORDINALITY AS n(
            external_id, account, route, fallbacks, fingerprint, catalog_item_id,
            market_hash_name, expected_price_cents, trade_url_sealed, submit_by, place)
    ), numbered AS (
        SELECT nextval(pg_get_serial_sequence('orders', 'id')) AS id, n.*
          FROM (SELECT * FROM new ORDER BY place) AS n
    ), inserted AS (
        INSERT INTO orders (
            id, external_id, account, route, fallbacks, fingerprint, catalog_item_id,
            market_hash_name, expected_price_cents, trade_url_sealed, submit_by, status,
            overdue, polls, sequence, next_attempt_at, created_at, updated_at)
        SELECT id, external_id, account, route, fallbacks, fingerprint, catalog_item_id,
               market_hash_name, expected_price_cents, trade_url_sealed, submit_by, 'received',
               false, 0, 1, :now, :now, :now
          FROM numbered ORDER BY external_id, place
        ON CONFLICT (external_id) DO NOTHING
        RETURNING {columns(ORDER_COLUMNS)}
    ), logged AS (
        INSERT INTO order_events
               (order_id, sequence, at, source, from_status, to_status, note, changes)
        SELECT id, 1, :now, 'intake', NULL, 'received', 'checkout received',
               jsonb_build_object(
                   'external_id', external_id, 'account', account,
                   'route', route, 'fallbacks', fallbacks, 'between_attempts', false,
                   'catalog_item_id', catalog_item_id, 'market_hash_name', market_hash_name,
                   'expected_price_cents', expected_price_cents, 'submit_by', submit_by)
          FROM inserted
    )
    SELECT {columns(ORDER_COLUMNS)} FROM inserted ORDER BY id
    """  # noqa: S608 - the names are constants
)


def insert(session: Session, new: Sequence[NewOrder], now: datetime) -> list[Order]:
    """Store checkouts whose id is free and give those; an id that exists is left as it is."""
    rows = session.execute(
        _INSERT,
        {
            "external_ids": [n.external_id for n in new],
            "accounts": [n.account for n in new],
            "routes": [n.route for n in new],
            "fallbacks": [msgspec.json.encode(n.fallbacks).decode() for n in new],
            "fingerprints": [n.fingerprint for n in new],
            "items": [n.catalog_item_id for n in new],
            "names": [n.market_hash_name for n in new],
            "prices": [n.expected_price_cents for n in new],
            "trade_urls": [n.trade_url_sealed for n in new],
            "submit_bys": [n.submit_by for n in new],
            "now": now,
        },
    )
    orders = [Order.of(row) for row in rows]
    first = timeline_entry(now, Source.INTAKE, None, OrderStatus.RECEIVED, "checkout received")
    outbox.add(
        session, [(order, ORDER_UPDATED, order_fields(order, [first])) for order in orders], now
    )
    return orders


def apply(session: Session, moves: Sequence[Move], now: datetime) -> dict[int, Order]:
    """Carry out moves; give the orders moved, as they are now, by id.

    A move whose order is no longer in its source status, or no longer under its claim, is left
    out of the answer: a race lost, not an error. At most one move an order. Raises
    IllegalTransition, before anything is written, for an edge that the table lacks.
    """
    if not moves:
        return {}
    for move in moves:
        if move.source is not move.target:
            states.check(move.source, move.target)
    rows = session.execute(_APPLY, {"moves": _encode(moves), "now": now})
    by_id = {move.order_id: move for move in moves}
    moved = {order.id: order for order in map(Order.of, rows)}
    _log([(by_id[order.id], order) for order in moved.values()])
    messages = []
    for order in moved.values():
        move = by_id[order.id]
        entry = timeline_entry(now, move.by, move.source, move.target, move.note)
        is_news = move.source is not move.target or not _VISIBLE.isdisjoint(move.changes)
        keys = (ORDER_UPDATED, *move.tell) if is_news else move.tell
        messages += [(order, key, order_fields(order, [entry])) for key in keys]
    outbox.add(session, messages, now)
    return moved


def _log(carried_out: Iterable[tuple[Move, Order]]) -> None:
    """Write a line for all orders that went the same way: what is particular is in their logs."""
    groups: dict[tuple[OrderStatus, OrderStatus, Source], list[tuple[Move, Order]]] = {}
    for move, order in carried_out:
        groups.setdefault((move.source, move.target, move.by), []).append((move, order))
    for (source, target, by), members in groups.items():
        event = "order.transition" if source is not target else "order.event"
        told: dict[str, object] = {"from": source, "to": target, "by": by}
        if len(members) == 1:
            ((move, order),) = members
            log.info(event, order_id=order.external_id, **told, note=move.note)
        else:
            log.info(event, order_ids=[order.external_id for _, order in members], **told)


def _encode(moves: Iterable[Move]) -> str:
    return msgspec.json.encode(
        [
            {
                "id": move.order_id,
                "source": move.source,
                "target": move.target,
                "by": move.by,
                "note": move.note,
                "claim": move.claim,
                "changes": move.changes,
                "due": move.due,
            }
            for move in moves
        ]
    ).decode()


def set_due(session: Session, order_ids: Sequence[int], **due: Any) -> None:
    """Set due times of orders; these are no events."""
    names = ", ".join(f"{name} = :{name}" for name in due if name in _SETTABLE)
    session.execute(
        text(
            f"UPDATE orders SET {names} WHERE id IN ("  # noqa: S608 - checked names
            "SELECT id FROM orders WHERE id = ANY(:ids) ORDER BY id FOR UPDATE)"
        ),
        {**due, "ids": list(order_ids)},
    )


def get(session: Session, order_ids: Sequence[int]) -> list[Order]:
    """Read orders by our own ids, oldest first."""
    return [Order.of(row) for row in session.execute(_GET, {"ids": list(order_ids)})]


def lock(session: Session, order_ids: Sequence[int]) -> list[Order]:
    """Read orders and keep others from changing them until the transaction ends."""
    return [Order.of(row) for row in session.execute(_LOCK, {"ids": list(order_ids)})]


def lock_overdue(session: Session, now: datetime, limit: int) -> list[Order]:
    """Lock unclaimed orders whose time to be submitted or paid for is over, oldest first."""
    statement = (
        select(*_ORDER)
        .where(
            col(OrderRow.next_attempt_at).is_not(None),
            col(OrderRow.status).in_(states.WAITING | {OrderStatus.RESERVED})
            | ((col(OrderRow.status) == OrderStatus.SUBMITTING) & col(OrderRow.between_attempts)),
            (col(OrderRow.submit_by) <= now) | (col(OrderRow.funds_deadline_at) <= now),
            col(OrderRow.claimed_until).is_(None) | (col(OrderRow.claimed_until) <= now),
        )
        .order_by(col(OrderRow.id))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [Order.of(row) for row in session.execute(statement)]


def lock_routed_at_paused(session: Session, now: datetime, limit: int) -> list[Order]:
    """Lock unclaimed orders at paused accounts that another account may be tried for."""
    paused = select(AccountRow.name).where(col(AccountRow.paused_until) > now)
    statement = (
        select(*_ORDER)
        .where(
            col(OrderRow.next_attempt_at).is_not(None),
            col(OrderRow.status).in_(states.LOCAL),
            col(OrderRow.submit_by) > now,
            col(OrderRow.fallbacks) != [],
            col(OrderRow.account).in_(paused),
            col(OrderRow.claimed_until).is_(None) | (col(OrderRow.claimed_until) <= now),
        )
        .order_by(col(OrderRow.id))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [Order.of(row) for row in session.execute(statement)]


def find(session: Session, external_ids: Sequence[str]) -> dict[str, Order]:
    """Read orders by the store's ids."""
    statement = select(*_ORDER).where(col(OrderRow.external_id).in_(external_ids))
    return {row.external_id: Order.of(row) for row in session.execute(statement)}


def find_by_reference(session: Session, account: str, reference: str) -> Order | None:
    """Read the account's order that the provider calls so; the newest, should it be two."""
    statement = (
        select(*_ORDER)
        .where(OrderRow.account == account, OrderRow.provider_reference == reference)
        .order_by(col(OrderRow.id).desc())
        .limit(1)
    )
    row = session.execute(statement).first()
    return Order.of(row) if row else None


def view(session: Session, external_id: str) -> OrderView | None:
    """Read one order with its whole timeline."""
    found = find(session, [external_id])
    return next(iter(views(session, list(found.values()))), None)


def views(session: Session, found: Sequence[Order]) -> list[OrderView]:
    """Show orders with their whole timelines, in the order given."""
    events = session.exec(
        select(OrderEventRow)
        .where(col(OrderEventRow.order_id).in_([order.id for order in found]))
        .order_by(col(OrderEventRow.order_id), col(OrderEventRow.sequence))
    )
    timelines: dict[int, list[Entry]] = {order.id: [] for order in found}
    for event in events:
        before = OrderStatus(event.from_status) if event.from_status else None
        after = OrderStatus(event.to_status)
        entry = timeline_entry(event.at, event.source, before, after, event.note)
        timelines[event.order_id].append(entry)
    return [OrderView.model_validate(order_fields(o, timelines[o.id])) for o in found]


def page(
    session: Session,
    *,
    status: OrderStatus | None = None,
    account: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[Order]:
    """Read a page of orders, newest first, older than `before_id`."""
    statement = select(*_ORDER).order_by(col(OrderRow.id).desc()).limit(limit)
    if status is not None:
        statement = statement.where(col(OrderRow.status) == status)
    if account is not None:
        statement = statement.where(col(OrderRow.account) == account)
    if before_id is not None:
        statement = statement.where(col(OrderRow.id) < before_id)
    return [Order.of(row) for row in session.execute(statement)]
