"""Orders and their log: one writer wins, and the log explains every column."""

import itertools
import json
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from fulfillment.errors import IllegalTransition
from fulfillment.services import catalog, dispatch
from fulfillment.services.context import Context
from fulfillment.states import FINAL, is_legal
from fulfillment.store import doubts, orders
from fulfillment.store.models import Move, Order
from fulfillment.store.views import order_fields
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.messages import NEEDS_REVIEW, ORDER_UPDATED, TRADE_REMINDER
from schemas.provider import ReportState as R
from tests.support import (
    NAME,
    TOKEN,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    in_threads,
    messages_of,
    read,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_ticks,
    shuffled,
    view,
)

#: Columns that say when and by whom something is to be done next; the log keeps none of them.
DUE = {
    "next_attempt_at",
    "next_poll_at",
    "polled_at",
    "polls",
    "failed_polls",
    "next_watch_at",
    "claim",
    "claimed_until",
}
#: Columns that the log's own columns tell of, and what no log may hold.
BESIDE = {"id", "fingerprint", "trade_url_sealed", "sequence", "created_at", "updated_at", "status"}


def apply(context: Context, *moves: Move) -> dict[int, Order]:
    with context.database.transaction() as session:
        return orders.apply(session, moves, context.now())


def move(order: Order, source: S, target: S, **more: Any) -> Move:
    return Move(order.id, source, target, Source.POLL, **more)


def put(context: Context, order: Order, status: S) -> None:
    """Put an order into a status past the table, as only a test may."""
    rows(
        context,
        "UPDATE orders SET status = %(s)s WHERE id = %(id)s RETURNING id",
        s=status,
        id=order.id,
    )


def test_of_many_writers_exactly_one_moves_the_order(context: Context) -> None:
    order = receive_one(context)
    targets = [S.QUOTED, S.FAILED] * 10

    moved = in_threads(20, lambda i: apply(context, move(order, S.RECEIVED, targets[i])))

    winners = [found[order.id].status for found in moved if found]
    assert len(winners) == 1
    assert again(context, order).status is winners[0]
    assert again(context, order).sequence == 2


def test_batches_that_share_orders_in_any_order_do_not_block_each_other(context: Context) -> None:
    placed = receive(context, *(checkout() for _ in range(30)))

    def move_all(seed: int) -> int:
        moves = [move(order, S.RECEIVED, S.QUOTED) for order in shuffled(placed, seed)]
        return len(apply(context, *moves))

    assert sum(in_threads(12, move_all)) == len(placed)


def test_a_move_from_a_status_that_is_over_is_a_race_and_no_error(context: Context) -> None:
    order = receive_one(context)
    apply(context, move(order, S.RECEIVED, S.QUOTED))

    moved = apply(context, move(order, S.RECEIVED, S.FAILED))

    assert moved == {}
    assert again(context, order).status is S.QUOTED


def test_a_move_under_a_lost_claim_changes_nothing(context: Context) -> None:
    order = receive_one(context)

    moved = apply(context, move(order, S.RECEIVED, S.QUOTED, claim="somebody/catalog"))

    assert moved == {}
    assert len(view(context, order).timeline) == 1


def test_an_edge_that_the_table_lacks_writes_nothing_of_the_whole_batch(context: Context) -> None:
    first, second = receive(context, checkout(), checkout())

    with pytest.raises(IllegalTransition):
        apply(context, move(first, S.RECEIVED, S.QUOTED), move(second, S.RECEIVED, S.SENT))

    assert again(context, first).status is S.RECEIVED


def test_one_lost_race_does_not_fail_the_rest_of_its_batch(context: Context) -> None:
    first, second = receive(context, checkout(), checkout())
    apply(context, move(first, S.RECEIVED, S.FAILED))

    moved = apply(context, move(first, S.RECEIVED, S.QUOTED), move(second, S.RECEIVED, S.QUOTED))

    assert list(moved) == [second.id]


@pytest.mark.parametrize("status", sorted(FINAL))
def test_the_database_itself_refuses_to_leave_a_final_status(context: Context, status: S) -> None:
    order = receive_one(context)
    put(context, order, status)

    for target in set(S) - {status}:
        if not is_legal(status, target):
            with pytest.raises(psycopg.Error, match="is final"):
                put(context, order, target)

    assert again(context, order).status is status


def test_the_database_lets_a_delivery_be_reversed(context: Context) -> None:
    order = receive_one(context)
    put(context, order, S.COMPLETED)

    put(context, order, S.REVERSED)

    assert again(context, order).status is S.REVERSED


@pytest.mark.parametrize("word", ["", "done", "COMPLETED", "Completed"])
def test_the_database_refuses_a_status_of_no_table(context: Context, word: str) -> None:
    order = receive_one(context)
    query = "UPDATE orders SET status = %(word)s WHERE id = %(id)s RETURNING id"

    with pytest.raises(psycopg.Error, match="order_status"):
        rows(context, query, word=word, id=order.id)


def test_the_log_cannot_be_rewritten(context: Context) -> None:
    order = receive_one(context)
    query = "UPDATE order_events SET note = 'x' WHERE order_id = %(id)s RETURNING 1"

    with pytest.raises(psycopg.Error, match="append-only"):
        rows(context, query, id=order.id)


def test_an_order_cannot_be_deleted(context: Context) -> None:
    order = receive_one(context)

    with pytest.raises(psycopg.Error, match="DELETE on orders"):
        rows(context, "DELETE FROM orders WHERE id = %(id)s RETURNING 1", id=order.id)


def test_the_log_cannot_have_two_events_of_one_number(context: Context) -> None:
    order = receive_one(context)

    with pytest.raises(psycopg.Error, match="order_events_pkey"):
        rows(
            context,
            "INSERT INTO order_events SELECT * FROM order_events "
            "WHERE order_id = %(i)s RETURNING 1",
            i=order.id,
        )


def test_every_change_has_its_event_and_its_message_in_sequence(context: Context) -> None:
    order = receive_one(context)
    path = [S.RECEIVED, S.QUOTED, S.RESERVED, S.SUBMITTING, S.ACCEPTED, S.SENT, S.COMPLETED]

    for source, target in itertools.pairwise(path):
        apply(context, move(order, source, target, note=f"to {target}"))

    timeline = view(context, order).timeline
    messages = messages_of(context, order)
    assert [entry.to for entry in timeline] == path
    assert [entry.from_ for entry in timeline] == [None, *path[:-1]]
    assert [m["sequence"] for m in messages] == list(range(1, len(path) + 1))
    assert [m["order"]["status"] for m in messages] == path
    assert {m["type"] for m in messages} == {ORDER_UPDATED}


def test_messages_have_the_documented_shape_and_no_trade_url(context: Context) -> None:
    order = receive_one(context)

    (message,) = messages_of(context, order)

    assert set(message) == {
        "eventId",
        "externalId",
        "sequence",
        "type",
        "occurredAt",
        "order",
    }
    assert message["externalId"] == order.external_id
    assert datetime.fromisoformat(message["occurredAt"]) == context.now()
    assert TOKEN not in str(message)


def test_an_event_without_a_change_tells_the_store_only_what_it_names(context: Context) -> None:
    order = receive_one(context)

    apply(context, move(order, S.RECEIVED, S.RECEIVED, tell=(TRADE_REMINDER,)))
    apply(context, move(order, S.RECEIVED, S.RECEIVED, note="only noted"))
    apply(context, move(order, S.RECEIVED, S.FAILED, tell=(NEEDS_REVIEW,)))

    types = [(m["sequence"], m["type"]) for m in messages_of(context, order)]
    assert types == [
        (1, ORDER_UPDATED),
        (2, TRADE_REMINDER),
        (4, ORDER_UPDATED),
        (4, NEEDS_REVIEW),
    ]
    assert [entry.note for entry in view(context, order).timeline][2] == "only noted"


def test_every_message_has_an_id_of_its_own(context: Context) -> None:
    order = receive_one(context)
    apply(context, move(order, S.RECEIVED, S.FAILED, tell=(NEEDS_REVIEW,)))

    ids = [message["eventId"] for message in messages_of(context, order)]

    assert len(set(ids)) == len(ids) == 3


def test_a_transaction_that_fails_leaves_neither_change_nor_event_nor_message(
    context: Context,
) -> None:
    order = receive_one(context)

    def fail_after_the_move() -> None:
        with context.database.transaction() as session:
            orders.apply(session, [move(order, S.RECEIVED, S.QUOTED)], context.now())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_the_move()

    assert again(context, order) == order
    assert len(view(context, order).timeline) == len(messages_of(context, order)) == 1


def rebuilt(context: Context, order: Order) -> dict[str, Any]:
    """Replay an order's log alone."""
    row: dict[str, Any] = {}
    query = "SELECT * FROM order_events WHERE order_id = %(id)s ORDER BY sequence"
    for number, event in enumerate(rows(context, query, id=order.id), start=1):
        assert event["sequence"] == number
        assert event["from_status"] == row.get("status")
        row |= event["changes"] | {"status": event["to_status"]}
    return row


def assert_rebuilds(context: Context, order: Order) -> None:
    row = rebuilt(context, order)
    now = again(context, order)
    for name in set(Order.__struct_fields__) - DUE - BESIDE:
        value, told = getattr(now, name), row.get(name)
        if isinstance(value, datetime):
            told = told and datetime.fromisoformat(told)
        if name == "overdue":
            told = bool(told)
        if name in ("fallbacks", "contradictions"):
            told = tuple(told or ())
        assert told == value, name
    assert row["status"] == now.status


@pytest.mark.parametrize("seed", range(6))
def test_replaying_the_log_rebuilds_every_order(
    context: Context, provider: FakeProvider, clock: FakeClock, seed: int
) -> None:
    placed = receive(context, *(checkout() for _ in range(6)))
    provider.balance_mills = 4 * 6120
    run_chain(context)
    words = [R.QUEUED, R.SENT, R.FAILED, R.COMPLETED, R.UNKNOWN, R.REVERSED, R.CANCELLED, R.PENDING]

    for number, word in enumerate(shuffled(words, seed)):
        order = placed[number % len(placed)]
        details = {"charged_mills": 6110, "steam_offer_id": str(number), "raw_status": word.value}
        provider.says(order.external_id, word, reported_at=clock.now(), **details)
        clock.advance(45)
        run_polls(context)
        run_ticks(context)

    for order in placed:
        assert_rebuilds(context, order)


def test_a_price_that_changed_while_the_order_waited_is_in_the_log(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.balance_mills = 0
    run_chain(context)

    provider.prices[order.catalog_item_id] -= 100
    clock.advance(15)
    run_ticks(context)

    assert again(context, order).status is S.AWAITING_FUNDS
    assert again(context, order).quoted_mills == 6020
    assert_rebuilds(context, order)


def test_a_price_that_changed_after_a_crash_between_two_steps_is_in_the_log(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    assert catalog.refresh_catalog(context, batch).goes_on

    provider.prices[order.catalog_item_id] -= 100
    clock.advance(31)
    run_ticks(context)

    assert again(context, order).status is S.ACCEPTED
    assert_rebuilds(context, order)


def test_pages_go_from_new_to_old_without_gap_or_repetition(context: Context) -> None:
    placed = receive(context, *(checkout() for _ in range(7)))
    found: list[Order] = []

    with context.database.transaction() as session:
        while page := orders.page(
            session, before_id=found[-1].id if found else None, limit=3, account="main"
        ):
            found += page

    assert [order.id for order in found] == [order.id for order in reversed(placed)]


def test_an_order_never_shows_its_trade_url(context: Context) -> None:
    order = receive_one(context)

    shown = [repr(order), view(context, order).model_dump_json()]

    assert order.trade_url_sealed is not None
    assert all(TOKEN not in each for each in shown)
    stored = rows(context, "SELECT o::text AS o FROM orders o")[0]["o"]
    assert TOKEN not in stored
    assert TOKEN.encode().hex() not in stored


def test_times_are_kept_to_the_microsecond_and_in_utc(context: Context) -> None:
    by = context.now() + timedelta(hours=1, microseconds=1)

    order = receive_one(context, submitBy=by.isoformat())

    assert order.submit_by == by
    assert order.submit_by.utcoffset() == timedelta(0)


def test_an_id_that_does_not_exist_is_not_found(context: Context) -> None:
    with pytest.raises(KeyError):
        read(context, f"order_{uuid.uuid4().hex}")


def test_a_new_order_is_told_as_its_row_shows_it(context: Context) -> None:
    order = receive_one(context, marketHashName=NAME)

    (message,) = messages_of(context, order)
    told = message["order"]
    (entry,) = told["timeline"]
    shown = order_fields(order, [entry])
    assert json.dumps(told) == json.dumps(json.loads(msgspec.json.encode(shown)))
    assert message["eventId"] == f"{order.external_id}:1:order.updated"
    assert (entry["source"], entry["from"], entry["to"]) == ("intake", None, "received")


def test_after_a_restore_new_orders_are_numbered_from_what_it_left(context: Context) -> None:
    """Also by a process that has taken in before, and one that has not."""
    receive_one(context)
    with context.database.transaction() as session:
        doubts.doubt(session, context.now(), context.now() + timedelta(hours=1))
        told_from = session.scalar("SELECT max(told_from) FROM accounts")
    for process in (context, replace(context, told_from=None)):
        order, again_told = receive(process, *[checkout(externalId=uuid.uuid4().hex)] * 2)

        (message,) = messages_of(context, order)
        assert order.id == again_told.id
        assert message["sequence"] == told_from + 1
        query = "SELECT told_from FROM order_events WHERE order_id = %(id)s"
        assert rows(context, query, id=order.id) == [{"told_from": told_from}]
