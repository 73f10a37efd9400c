"""Orders and their event log. The one way to change a status is `apply`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from fulfillment import states
from fulfillment.log import get_logger
from fulfillment.store import outbox
from fulfillment.store.doubts import LOOKED_FOR, TOLD_FROM, UNSEARCHED, UNSEARCHED_YET
from fulfillment.store.engine import Session, dense
from fulfillment.store.models import ORDER_COLUMNS, Move, NewOrder, Order, columns
from fulfillment.store.views import Entry, order_fields, received_fields, timeline_entry
from schemas.enums import OrderStatus, Source
from schemas.messages import ORDER_UPDATED
from schemas.orders import OrderView

log = get_logger(__name__)

# Columns that a move may set; `jsonb_populate_record` keeps the row's own value for the others.
_SETTABLE = (
    "account",
    "told_early_at",
    "late_words",
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
    "told_status",
    "contradictions",
    "next_attempt_at",
    "next_poll_at",
    "polled_at",
    "poll_wanted_at",
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

# An end that comes while there is news of the order is not the last that is asked of it.
_ENDS = ", ".join(f"'{status.value}'" for status in sorted(states.FINAL))
_NEXT_POLL = f"""
    CASE WHEN o.poll_wanted_at IS NOT NULL AND m.target IN ({_ENDS})
         THEN coalesce(r.next_poll_at, %(now)s + interval '35 s') ELSE r.next_poll_at END"""
_SET = [_NEXT_POLL if name == "next_poll_at" else f"r.{name}" for name in _SETTABLE]

# One statement for a whole batch. Rows are locked in the order of their ids, so that two batches
# that share orders cannot deadlock; the guard on `status` and `claim` lets one writer win. The ids
# are given by themselves too: of JSON PostgreSQL expects a hundred rows, and reads a table of some
# thousand orders from end to end for three of them.
_APPLY = dense(f"""
    WITH moves AS (
        SELECT * FROM jsonb_to_recordset(CAST(%(moves)s AS jsonb)) AS m(
            id bigint, source text, target text, by text, note text, claim text,
            changes jsonb, due jsonb, tell jsonb, untold boolean)
    ), locked AS (
        SELECT o.id FROM orders o JOIN moves m ON m.id = o.id
         WHERE o.id = ANY(%(ids)s)
           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)
           AND (NOT m.untold OR {LOOKED_FOR})
         ORDER BY o.id FOR NO KEY UPDATE OF o
    ), restart AS (
        SELECT {TOLD_FROM} AS told_from
    ), moved AS (
        UPDATE orders o
           SET status = m.target, sequence = o.sequence + 1, updated_at = %(now)s,
               ({", ".join(_SETTABLE)}) = (
                   SELECT {", ".join(_SET)}
                     FROM jsonb_populate_record(o, m.changes || m.due) r)
          FROM moves m
         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)
           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)
        RETURNING {columns(ORDER_COLUMNS, "o")}, m.by, m.note, m.source, m.changes, m.tell
    ), logged AS (
        INSERT INTO order_events
               (order_id, sequence, at, source, from_status, to_status, note, changes, told,
                told_from)
        SELECT id, sequence, %(now)s, by, source, status, note, changes, tell, told_from
          FROM moved, restart
    )
    SELECT told_from, {columns(ORDER_COLUMNS)} FROM moved, restart ORDER BY id
    """)  # noqa: S608 - the names are the constants above

_READ = f"SELECT {columns(ORDER_COLUMNS)} FROM orders WHERE id = ANY(%(ids)s) ORDER BY id"  # noqa: S608
_GET, _LOCK = _READ, _READ + " FOR NO KEY UPDATE"
_FIND = f"SELECT {columns(ORDER_COLUMNS)} FROM orders WHERE external_id = ANY(%(ids)s)"  # noqa: S608


# One statement that is a transaction by itself, since a checkout alone would wait for each trip.
# Numbered in the order of arrival, but inserted in the order of the store's ids: two calls that
# share checkouts in another order would each wait for the other's row. The messages to the store
# are written beforehand, by the number that was last seen: where it is another by now, nothing is
# inserted, and the number is given. Texts are sent in binary form (`b`): to quote those of a large
# batch takes a tenth of what all of it does.
_INSERT = dense(f"""
    WITH restart AS (
        SELECT {TOLD_FROM} AS told_from
    ), numbered AS (
        SELECT nextval(pg_get_serial_sequence('orders', 'id')) AS id, n.* FROM (
            SELECT n.* FROM restart, ROWS FROM (
                unnest(CAST(%(external_ids)b AS text[])), unnest(CAST(%(accounts)b AS text[])),
                unnest(CAST(%(routes)b AS text[])), unnest(CAST(%(fallbacks)b AS jsonb[])),
                unnest(CAST(%(fingerprints)b AS text[])), unnest(CAST(%(items)b AS text[])),
                unnest(CAST(%(names)b AS text[])), unnest(CAST(%(prices)s AS bigint[])),
                unnest(CAST(%(trade_urls)b AS bytea[])),
                unnest(CAST(%(submit_bys)s AS timestamptz[])),
                string_to_table(CAST(%(bodies)s AS text), chr(10))
            ) WITH ORDINALITY AS n(
                external_id, account, route, fallbacks, fingerprint, catalog_item_id,
                market_hash_name, expected_price_cents, trade_url_sealed, submit_by, body, place)
             WHERE told_from IS NOT DISTINCT FROM CAST(%(told_from)s AS bigint)
             ORDER BY place) AS n
    ), inserted AS (
        INSERT INTO orders (
            id, external_id, account, route, fallbacks, fingerprint, catalog_item_id,
            market_hash_name, expected_price_cents, trade_url_sealed, submit_by, status,
            overdue, polls, sequence, next_attempt_at, created_at, updated_at)
        SELECT id, external_id, account, route, fallbacks, fingerprint, catalog_item_id,
               market_hash_name, expected_price_cents, trade_url_sealed, submit_by, 'received',
               false, 0, 1, %(now)s, %(now)s, %(now)s
          FROM numbered ORDER BY external_id, place
        ON CONFLICT (external_id) DO NOTHING
        RETURNING id, external_id
    ), logged AS (
        INSERT INTO order_events
               (order_id, sequence, at, source, from_status, to_status, note, told_from,
                changes)
        SELECT id, 1, %(now)s, 'intake', NULL, 'received', 'checkout received', told_from,
               jsonb_build_object(
                   'external_id', external_id, 'account', account,
                   'route', route, 'fallbacks', fallbacks, 'between_attempts', false,
                   'catalog_item_id', catalog_item_id, 'market_hash_name', market_hash_name,
                   'expected_price_cents', expected_price_cents, 'submit_by', submit_by)
          FROM inserted JOIN numbered USING (id, external_id), restart
    ), told AS (
        INSERT INTO outbox_messages (order_id, routing_key, body, created_at)
        SELECT id, '{ORDER_UPDATED}', body, %(now)s
          FROM inserted JOIN numbered USING (id) ORDER BY id
    )
    SELECT told_from, ARRAY(SELECT external_id FROM inserted) FROM restart
    """)  # noqa: S608 - the names are constants


def insert(
    session: Session, new: Sequence[NewOrder], now: datetime, told_from: int | None
) -> tuple[set[str], int | None]:
    """Store checkouts whose id is free and give these ids; one that exists is left as it is.

    The store's messages are numbered from `told_from` on. What they must be numbered from is given
    as well: where it is another, nothing was stored.
    """
    first = timeline_entry(now, Source.INTAKE, None, OrderStatus.RECEIVED, "checkout received")
    bodies = [
        outbox.message(
            n.external_id, 1, ORDER_UPDATED, received_fields(n, now, [first]), now, told_from
        )
        for n in new
    ]
    ((found, inserted),) = session.rows(
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
            "bodies": outbox.lines(bodies),
            "now": now,
            "told_from": told_from,
        },
    )
    return set(inserted), found


def apply(session: Session, moves: Sequence[Move], now: datetime) -> dict[int, Order]:
    """Carry out moves; give the orders moved, as they are now, by id.

    A move whose order is no longer in its source status, or no longer under its claim, or was told
    of where it must not be, is left out of the answer: a race lost, not an error. At most one move
    an order. Raises IllegalTransition, before anything is written, for an edge that the table
    lacks.
    """
    if not moves:
        return {}
    for move in moves:
        if move.source is not move.target:
            states.check(move.source, move.target)
    by_id = {move.order_id: move for move in moves}
    values = {"ids": list(by_id), "moves": _encode(moves), "now": now}
    rows = session.rows(_APPLY, values)
    moved = {order.id: order for order in (Order.of(row) for _, *row in rows)}
    _log([(by_id[order.id], order) for order in moved.values()])
    messages = []
    for order in moved.values():
        move = by_id[order.id]
        entry = timeline_entry(now, move.by, move.source, move.target, move.note)
        keys = heard_on(move.source, move.target, move.changes, move.tell)
        messages += [(order, key, order_fields(order, [entry])) for key in keys]
    outbox.add(session, messages, now, _told_from(rows))
    return moved


def _told_from(rows: Sequence[tuple[Any, ...]]) -> int | None:
    """Give what a statement's events are numbered from: the same for all of them."""
    return rows[0][0] if rows else None


def heard_on(
    source: OrderStatus | None, target: OrderStatus, changes: Iterable[str], tell: Sequence[str]
) -> Sequence[str]:
    """Say on which routing keys the store hears of an event, of which `tell` are its own."""
    is_news = source is not target or not _VISIBLE.isdisjoint(changes)
    return (ORDER_UPDATED, *tell) if is_news else tell


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
                "tell": move.tell or None,
                "untold": move.unless_told,
            }
            for move in moves
        ]
    ).decode()


def set_due(session: Session, order_ids: Sequence[int], **due: Any) -> None:
    """Set due times of orders; these are no events. What has ended meanwhile has none."""
    names = [name for name in due if name in _SETTABLE]
    is_due = " AND ".join(f"{name} IS NOT NULL" for name in names if name.startswith("next_"))
    session.execute(
        f"UPDATE orders SET {', '.join(f'{name} = %({name})s' for name in names)} "  # noqa: S608
        f"WHERE id IN (SELECT id FROM orders WHERE id = ANY(%(ids)s) AND {is_due} "
        "ORDER BY id FOR NO KEY UPDATE)",
        {**due, "ids": list(order_ids)},
    )


def get(session: Session, order_ids: Sequence[int]) -> list[Order]:
    """Read orders by our own ids, oldest first."""
    if not order_ids:
        return []
    return [Order.of(row) for row in session.rows(_GET, {"ids": list(order_ids)})]


def lock(session: Session, order_ids: Sequence[int]) -> list[Order]:
    """Read orders and keep others from changing them until the transaction ends."""
    if not order_ids:
        return []
    return [Order.of(row) for row in session.rows(_LOCK, {"ids": list(order_ids)})]


def lock_overdue(session: Session, now: datetime, limit: int, patience: timedelta) -> list[Order]:
    """Lock unclaimed orders whose time to be submitted is over, oldest first.

    One that may be bought, which its row does not tell, does not end before it was looked for, or
    could not be until `patience` after its time; nor while all rows are in doubt.
    """
    statement = f"""
        SELECT {columns(ORDER_COLUMNS)} FROM orders
         WHERE next_attempt_at IS NOT NULL
           AND (status = ANY(%(unsent)s) OR status = 'submitting'
                AND (between_attempts OR (told_early_at IS NOT NULL OR {UNSEARCHED})
                     AND NOT EXISTS (
                         SELECT FROM attempts a
                          WHERE a.account = orders.account AND a.external_id = orders.external_id
                            AND (a.unknown_since IS NOT NULL
                                 OR a.state NOT IN ('reserved', 'sending')))))
           AND submit_by <= %(now)s
           AND (claimed_until IS NULL OR claimed_until <= %(now)s) AND NOT {UNSEARCHED_YET}
           AND ({LOOKED_FOR} AND NOT {UNSEARCHED} OR submit_by <= %(impatient)s)
         ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """  # noqa: S608 - the names are constants
    unsent = [*states.WAITING, OrderStatus.RESERVED]
    parameters = {"unsent": unsent, "now": now, "limit": limit, "impatient": now - patience}
    return [Order.of(row) for row in session.rows(statement, parameters)]


#: Of a row: accounts have told of it, and its own is none of them (services/hearsay.py).
_ONLY_OTHERS_TOLD = """(late_words ~ '(^|\n)(had|hinted at|once unknown|ended) by '
    AND NOT EXISTS (SELECT FROM regexp_split_to_table(late_words, '\n') AS word
                     WHERE word !~ '^denied by '
                       AND strpos(word || ' ', ' by ' || account || ' ') > 0))"""


def lock_routed_at_unusable(
    session: Session, configured: Sequence[str], gone: Sequence[str], now: datetime, limit: int
) -> list[Order]:
    """Lock unclaimed orders at paused accounts, and at those that are gone, of which a configured
    one may be tried. What the account itself told of stays until it was looked for."""
    statement = f"""
        SELECT {columns(ORDER_COLUMNS)} FROM orders
         WHERE next_attempt_at IS NOT NULL AND status = ANY(%(local)s)
           AND submit_by > %(now)s AND ({LOOKED_FOR} OR {_ONLY_OTHERS_TOLD})
           AND jsonb_exists_any(fallbacks, CAST(%(configured)s AS text[]))
           AND account IN (SELECT name FROM accounts
                            WHERE greatest(paused_until, purchases_paused_until) > %(now)s
                               OR name = ANY(%(gone)s))
           AND (claimed_until IS NULL OR claimed_until <= %(now)s) AND NOT {UNSEARCHED}
         ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """  # noqa: S608 - the names are constants
    parameters = {
        "local": list(states.LOCAL),
        "configured": list(configured),
        "gone": list(gone),
        "now": now,
        "limit": limit,
    }
    return [Order.of(row) for row in session.rows(statement, parameters)]


def lock_held_back(
    session: Session, accounts: Sequence[str], before: datetime, now: datetime, limit: int
) -> list[Order]:
    """Lock unclaimed orders of these accounts of which nothing was sent since their money was held,
    which was before the time given; oldest first. What its account told of too early is left out
    until it was looked for."""
    statement = f"""
        SELECT {columns(ORDER_COLUMNS)} FROM orders
         WHERE next_attempt_at IS NOT NULL AND account = ANY(%(accounts)s)
           AND status IN ('reserved', 'submitting') AND NOT between_attempts
           AND submit_by > %(now)s AND ({LOOKED_FOR} OR {_ONLY_OTHERS_TOLD})
           AND (claimed_until IS NULL OR claimed_until <= %(now)s) AND NOT {UNSEARCHED}
           AND EXISTS (SELECT FROM attempts a
                        WHERE a.account = orders.account AND a.external_id = orders.external_id
                          AND a.state IN ('reserved', 'sending') AND a.posts = 0
                          AND a.created_at <= %(before)s)
         ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """  # noqa: S608 - the names are constants
    parameters = {"accounts": list(accounts), "before": before, "now": now, "limit": limit}
    return [Order.of(row) for row in session.rows(statement, parameters)]


def lock_with_words(session: Session, words: str) -> list[Order]:
    """Lock orders that wait for an attempt and have this among their late words, oldest first."""
    statement = f"""
        SELECT {columns(ORDER_COLUMNS)} FROM orders
         WHERE next_attempt_at IS NOT NULL AND strpos(late_words, %(words)s) > 0
         ORDER BY id FOR NO KEY UPDATE
        """  # noqa: S608 - the names are constants
    return [Order.of(row) for row in session.rows(statement, {"words": words})]


def lock_submitting_at(
    session: Session, accounts: Sequence[str], now: datetime, limit: int
) -> list[Order]:
    """Lock unclaimed orders that these accounts may have been asked to buy, oldest first."""
    statement = f"""
        SELECT {columns(ORDER_COLUMNS)} FROM orders
         WHERE next_attempt_at IS NOT NULL AND account = ANY(%(accounts)s)
           AND status = 'submitting' AND NOT between_attempts
           AND (claimed_until IS NULL OR claimed_until <= %(now)s)
         ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """  # noqa: S608 - the names are constants
    parameters = {"accounts": list(accounts), "now": now, "limit": limit}
    return [Order.of(row) for row in session.rows(statement, parameters)]


def find(session: Session, external_ids: Sequence[str]) -> dict[str, Order]:
    """Read orders by the store's ids."""
    rows = session.rows(_FIND, {"ids": list(external_ids)})
    return {order.external_id: order for order in map(Order.of, rows)}


def find_by_reference(session: Session, account: str, reference: str) -> Order | None:
    """Read the account's order that the provider calls so; the newest, should it be two."""
    row = session.one(
        f"SELECT {columns(ORDER_COLUMNS)} FROM orders WHERE account = %(account)s "  # noqa: S608
        "AND provider_reference = %(reference)s ORDER BY id DESC LIMIT 1",
        {"account": account, "reference": reference},
    )
    return Order.of(row) if row else None


def view(session: Session, external_id: str) -> OrderView | None:
    """Read one order with its whole timeline."""
    found = find(session, [external_id])
    return next(iter(views(session, list(found.values()))), None)


def views(session: Session, found: Sequence[Order]) -> list[OrderView]:
    """Show orders with their whole timelines, in the order given."""
    events = session.execute(
        "SELECT order_id, at, source, from_status, to_status, note FROM order_events "
        "WHERE order_id = ANY(%(ids)s) ORDER BY order_id, sequence",
        {"ids": [order.id for order in found]},
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
    wanted = {
        "status = %(status)s": status,
        "account = %(account)s": account,
        "id < %(before_id)s": before_id,
    }
    which = " AND ".join(name for name, value in wanted.items() if value is not None) or "true"
    rows = session.execute(
        f"SELECT {columns(ORDER_COLUMNS)} FROM orders WHERE {which} "  # noqa: S608 - as above
        "ORDER BY id DESC LIMIT %(limit)s",
        {"status": status, "account": account, "before_id": before_id, "limit": limit},
    )
    return [Order.of(row) for row in rows]
