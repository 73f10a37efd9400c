"""What the store is told again is what it was told, byte for byte, from the log alone."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from fulfillment.errors import NotAllowedNow, OrderNotFound, ProviderOutcomeUnknown
from fulfillment.messaging import confirming
from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services import diagnosis, updates
from fulfillment.services.context import Context
from fulfillment.services.operations import Check
from fulfillment.store import bindings, outbox, replays
from fulfillment.store.bindings import Binding
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW, ORDER_UPDATED, TRADE_REMINDER
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_ticks,
)
from tests.unit.rabbitmq import Routing, publisher_to

Told = dict[int, list[tuple[str, str]]]
QUEUE: Binding = ("order.#", r"^order\..*?$", "store.updates")


def told_before(context: Context) -> Told:
    """Give what waits for the store: routing keys and bodies by order, oldest first."""
    found: Told = {}
    for row in rows(context, "SELECT * FROM outbox_messages ORDER BY id"):
        found.setdefault(row["order_id"], []).append((row["routing_key"], row["body"]))
    return found


def tell_again(context: Context) -> list[tuple[str, str]]:
    """Do with the oldest wish what the relay does; give routing keys and bodies."""
    told: list[tuple[str, str]] = []
    with context.database.transaction() as session:
        wish = replays.unfinished(session)[0]
        while wish.finished_at is None:
            written = replays.read_slice(session, wish)
            told += [(key, body.decode()) for key, body in written.messages]
            replays.move_on(
                session, wish, written.after(range(len(written.messages))), context.now()
            )
            (wish,) = [each for each in replays.newest(session, 100) if each.id == wish.id]
    return told


@pytest.fixture
def history(context: Context, provider: FakeProvider, clock: FakeClock) -> list[Order]:
    """Let happen to orders all that the store hears of, by the ordinary ways."""
    names = ("delivered", "failed", "reviewed", "slow", "reversed")
    placed = dict(zip(names, receive(context, *(checkout() for _ in names)), strict=True))
    run_chain(context)
    provider.says(placed["delivered"].external_id, R.COMPLETED, charged_mills=6125)
    provider.says(
        placed["failed"].external_id, R.FAILED, failure_code="no_stock", failure_message="\u2605"
    )
    provider.says(placed["reviewed"].external_id, R.UNKNOWN, raw_status="odd", alarm="look")
    provider.says(placed["slow"].external_id, R.SENT, steam_offer_id="77", charged_mills=6120)
    provider.says(placed["reversed"].external_id, R.REVERSED, charged_mills=6120)
    placed["unknown"] = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    for _ in range(40):
        clock.advance(40)
        run_ticks(context)
    provider.balance_mills = 0
    placed["waiting"] = receive_one(context)
    run_chain(context)
    provider.prices.clear()
    placed["refused"] = receive_one(context)
    run_chain(context)
    return list(placed.values())


def test_the_log_tells_every_message_again_as_it_was(
    context: Context, history: list[Order]
) -> None:
    before = told_before(context)
    keys = {key for messages in before.values() for key, _ in messages}
    assert keys == {ORDER_UPDATED, TRADE_REMINDER, NEEDS_REVIEW}

    assert updates.replay(context, history[0].created_at) == len(history)
    told = tell_again(context)

    newest_first = sorted(before, reverse=True)
    assert told == [message for order_id in newest_first for message in before[order_id]]
    (row,) = rows(context, "SELECT messages, finished_at FROM replays")
    assert row["messages"] == len(told)
    assert row["finished_at"] is not None


def test_only_what_happened_since_is_told_again_with_all_that_was_known_by_then(
    context: Context, history: list[Order], clock: FakeClock
) -> None:
    clock.advance(1)
    since = clock.now()
    slow = history[3]
    before = len(told_before(context)[slow.id])
    provider = context.provider("main")
    assert isinstance(provider, FakeProvider)
    provider.says(slow.external_id, R.COMPLETED, charged_mills=6120)
    clock.advance(40)
    run_polls(context)

    assert updates.replay(context, since) == 1

    assert tell_again(context) == told_before(context)[slow.id][before:]


def test_one_order_can_be_told_of_again_from_its_beginning(
    context: Context, history: list[Order]
) -> None:
    order = history[2]

    assert updates.replay(context, None, order.external_id) == 1

    assert tell_again(context) == told_before(context)[order.id]
    with pytest.raises(OrderNotFound):
        updates.replay(context, None, "nobody")


def test_slices_are_bounded_and_tell_everything_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "_SCAN", 3)
    monkeypatch.setattr(replays, "_EVENTS", 2)
    receive(context, *(checkout() for _ in range(10)))
    run_chain(context)
    before = told_before(context)

    updates.replay(context, rows(context, "SELECT min(at) AS at FROM order_events")[0]["at"])

    newest_first = sorted(before, reverse=True)
    assert tell_again(context) == [m for order_id in newest_first for m in before[order_id]]


def test_news_of_an_order_waits_behind_what_is_told_of_it_again_and_of_no_other(
    context: Context,
) -> None:
    old, told = receive(context, checkout(), checkout())
    fresh = receive_one(context)

    with context.database.transaction() as session:
        waiting = outbox.unpublished(session, 10, [(told.id + 1, told.id), (old.id, None)])
        all_held = outbox.unpublished(session, 10, [(fresh.id, None)])

    bodies = [body for _, _, body in waiting]
    assert [fresh.external_id in body for body in bodies] == [False, True]
    assert old.external_id in bodies[0]
    assert [fresh.external_id in body for _, _, body in all_held] == [True]


def test_a_log_that_cannot_be_read_keeps_no_other_from_being_told(context: Context) -> None:
    good, bad = receive(context, checkout(), checkout())
    with context.database.transaction() as session:
        session.execute("SET LOCAL session_replication_role = replica")
        session.execute(
            "UPDATE order_events SET to_status = 'odd' WHERE order_id = %(id)s", {"id": bad.id}
        )

    updates.replay(context, good.created_at)

    assert tell_again(context) == told_before(context)[good.id]


def test_a_wipe_is_told_again_once_and_begins_all_others_anew(
    context: Context, clock: FakeClock
) -> None:
    placed = receive(context, checkout(), checkout())
    updates.replay(context, placed[0].created_at)
    with context.database.transaction() as session:
        asked = replays.unfinished(session)[0]
        written = replays.read_slice(session, asked)
        half = replays.Slice([], placed[1].id, len(written.messages))
        replays.move_on(session, asked, half, clock.now())

        clock.advance(60)
        for _ in range(2):
            updates.tell_again_after_wipe(context, session)
        wishes = replays.unfinished(session)
        replays.move_on(session, asked, written, clock.now())  # of before the wipe: void

        assert replays.unfinished(session) == wishes
    assert [wish.before_id for wish in wishes] == [placed[1].id + 1] * 2
    oldest = min(order.created_at for order in placed)
    hours = context.settings.replay_hours
    assert (oldest - wishes[1].since).total_seconds() == hours * 3600


def test_telling_again_after_a_wipe_can_be_turned_off(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, replay_hours=0)

    with context.database.transaction() as session:
        updates.tell_again_after_wipe(context, session)

        assert replays.unfinished(session) == []


def test_bindings_are_kept_as_they_are_and_doctor_tells_when_they_are_missing(
    context: Context, clock: FakeClock
) -> None:
    other: Binding = ("trade.reminder", r"^trade\.reminder$", "reminders")
    broker, began = context.settings.broker_name, clock.now()
    with context.database.transaction() as session:
        bindings.keep(session, broker, {QUEUE, other}, None)
        bindings.keep(session, broker, {QUEUE}, None)
        assert bindings.read(session, broker).known == {QUEUE}
        bindings.keep(session, broker, {QUEUE}, began)
        clock.advance(5)
        bindings.keep(session, broker, {QUEUE}, clock.now())
        assert bindings.read(session, broker).missing_since == began

    (check,) = [c for c in diagnosis.examine(context.settings) if c.name == "updates"]
    assert not check.is_ok
    assert "store.updates" in check.detail

    assert updates.forget(context) == ["store.updates"]
    assert updates.audience(context) == bindings.Audience()
    with pytest.raises(NotAllowedNow):
        updates.forget(context)


@pytest.mark.parametrize("was_missing", [False, True])
@pytest.mark.parametrize(("before", "after"), [("redis", "rabbitmq"), ("rabbitmq", "redis")])
def test_a_broker_that_is_new_waits_for_the_queues_that_were_bound_at_the_former_one(
    context: Context, clock: FakeClock, before: str, after: str, was_missing: bool
) -> None:
    with context.database.transaction() as session:
        bindings.keep(session, before, {QUEUE}, clock.now() if was_missing else None)
        clock.advance(5)
        first = bindings.read(session, after)
        waited_for = first.known
        bindings.keep(session, after, waited_for, clock.now())
        missing_since = bindings.read(session, after).missing_since
        forgotten = bindings.forget_missing(session, after)
        left = bindings.read(session, after)

    assert waited_for == {QUEUE}
    assert first.missing_since is None  # so that the relay notes that it is missing here
    assert missing_since == clock.now()
    assert (forgotten, left.known) == (["store.updates"], frozenset())


def test_a_key_that_the_store_wants_no_more_is_no_queue_that_is_missing(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context(provider, broker_url="amqp://guest:guest@127.0.0.1:9//")
    relay, broker = OutboxRelay(context, threading.Event()), Routing(ORDER_UPDATED, NEEDS_REVIEW)
    monkeypatch.setattr(confirming, "time", broker)
    publisher = publisher_to(broker, ORDER_UPDATED, NEEDS_REVIEW)
    with context.database.transaction() as session:
        keys = {(ORDER_UPDATED, "", ""), (NEEDS_REVIEW, "", "")}
        bindings.keep(session, publisher.broker, keys, None)
    order = receive_one(context)
    run_chain(context)
    relay._turn(publisher)
    assert told_before(context) == {}

    broker.keys = {ORDER_UPDATED}
    provider.says(order.external_id, R.ACCEPTED, item_name="Another | Item", item_id="x")
    clock.advance(60)
    run_polls(context)
    assert again(context, order).status is S.NEEDS_REVIEW
    receive_one(context)  # of another order: the store is there
    while broker.now_s <= confirming.PATIENCE_S:
        relay._turn(publisher)
        broker.now_s += 2
        clock.advance(2)
    for _ in range(2):
        relay._turn(publisher)

    assert told_before(context) == {}
    assert updates.audience(context).missing_since is None
    assert updates.audience(context).known == {(ORDER_UPDATED, "", "")}


def told_of(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    return [(each["event"], each["queue"], each["messages"]) for each in log if "queue" in each]


def test_a_store_that_stops_reading_is_told_of_once_and_so_is_its_return(
    context: Context,
) -> None:
    with capture_logs() as log:
        for count in (10_000, 10_001, 200_000, 200_000, 3, 3):
            updates.note_unread(context, {"store.updates": count, "other": 1})

    assert told_of(log) == [
        ("relay.unread", "store.updates", 10_001),
        ("relay.read_again", "store.updates", 3),
    ]


def test_doctor_tells_how_much_is_unread_and_when_it_is_too_much(context: Context) -> None:
    def check() -> Check:
        (found,) = [c for c in diagnosis.examine(context.settings) if c.name == "updates read"]
        return found

    before = check()
    updates.note_unread(context, {"store.updates": 10_000, "gone": 10_001})
    updates.note_unread(context, {"store.updates": 10_000, "other": 0})
    few = check()
    updates.note_unread(context, {"store.updates": 10_001, "other": 0})
    many = check()

    assert (before.is_ok, before.detail) == (True, "not known: no queue")
    assert (few.is_ok, few.detail) == (True, "10000 wait in store.updates, 0 wait in other")
    assert not many.is_ok
    assert many.detail.startswith("10001 wait in store.updates, 0 wait in other; the store does")


def test_the_relay_that_publishes_looks_every_minute_how_much_is_unread(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = "store.updates, missing"
    context = make_context(
        provider, broker_url="amqp://guest:guest@127.0.0.1:9//", updates_queues=names
    )
    broker = Routing(ORDER_UPDATED)
    monkeypatch.setattr(confirming, "time", broker)
    publisher = publisher_to(broker, ORDER_UPDATED)
    first, second = (OutboxRelay(context, threading.Event()) for _ in range(2))
    seen = []

    for seconds, count in ((0, 5), (30, 20_000), (31, 20_001), (61, 7)):
        clock.advance(seconds)
        broker.unread = {"store.updates": count, "not named": 1}
        first._turn(publisher)
        broker.unread = {"store.updates": 1}  # which only who may not publish would see
        second._turn(publisher)
        seen.append([(each.queue, each.messages) for each in updates.unread(context)])

    assert seen == [[("store.updates", count)] for count in (5, 5, 20_001, 7)]
    assert broker.asked_in_vain == {"missing": 1}  # which RabbitMQ logs as an error
    clock.advance(600)
    broker.unread = {"store.updates": 0, "missing": 2}
    first._turn(publisher)
    assert {each.queue: each.messages for each in updates.unread(context)} == broker.unread
