"""What becomes of messages that a queue of the store refuses: they wait, and nothing else does."""

from typing import Any

import pytest

from fulfillment.messaging import confirming, refusals
from fulfillment.messaging.outgoing import RefusedByQueue
from fulfillment.messaging.refusals import Refusals
from tests.unit.rabbitmq import (
    REMINDER,
    REVIEW,
    UPDATED,
    Full,
    Routing,
    bindings,
    message,
    of,
    publisher_to,
)


@pytest.fixture
def by_its_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    def go_by(broker: Routing) -> None:
        monkeypatch.setattr(confirming, "time", broker)
        monkeypatch.setattr(refusals, "time", broker)

    return go_by


def test_what_a_queue_took_beside_what_it_refused_is_done(by_its_clock: Any) -> None:
    broker = Full({UPDATED: 3})
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED)

    with pytest.raises(RefusedByQueue, match="refused") as told:
        publisher.publish(of("a", "b", "c", "d", "e"), 7)

    assert publisher.confirmed == [0, 1, 2]
    assert told.value.keys == [UPDATED]


def test_all_other_keys_go_on_and_no_order_overtakes_what_was_refused_of_it(
    by_its_clock: Any,
) -> None:
    broker = Full({UPDATED: 1})
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED, REMINDER)
    group = [
        *of("a", "b"),
        message(REMINDER, "a"),
        message(REMINDER, "b"),
        message(REMINDER, "c"),
        *of("c"),
        message(REVIEW, "c"),
    ]

    with pytest.raises(RefusedByQueue):
        publisher.publish(group, 7)
    assert publisher.confirmed == [0, 2, 4]
    left = [each for place, each in enumerate(group) if place not in publisher.confirmed]

    publisher.publish(left, 7)  # too early to try again
    assert publisher.confirmed == []

    broker.room.clear()
    broker.now_s += 10
    publisher.publish(left, 7)
    assert publisher.confirmed == [0, 1, 2, 3]


def test_a_full_queue_is_tried_by_one_message_and_more_and_more_rarely(by_its_clock: Any) -> None:
    """Whatever else is bound for its key gets that message once more each time."""
    broker = Full({UPDATED: 0})
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED)
    group = of(*(str(n) for n in range(100)))
    with pytest.raises(RefusedByQueue):
        publisher.publish(group, 7)
    sent, tried_at = len(broker.tried), []

    while broker.now_s < 60:
        try:
            publisher.publish(group, 7)
        except RefusedByQueue:
            tried_at.append(broker.now_s)
        broker.now_s += 0.5

    assert sent == 100
    assert len(broker.tried) - sent == len(tried_at) == 8
    assert tried_at[:5] == [1.0, 3.0, 7.0, 15.0, 25.0]


def test_a_queue_that_was_full_is_filled_a_few_messages_at_a_time(by_its_clock: Any) -> None:
    broker = Full({UPDATED: 0})
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED)
    group = of(*(str(n) for n in range(200)))
    with pytest.raises(RefusedByQueue):
        publisher.publish(group, 7)
    broker.room[UPDATED] = 30
    broker.now_s += 10

    with pytest.raises(RefusedByQueue):
        publisher.publish(group, 7)

    assert publisher.confirmed == list(range(30))
    assert len(broker.tried) == 200 + 1 + 20 + 20


def test_a_key_that_was_only_ever_refused_is_known_and_its_messages_are_not_dropped(
    by_its_clock: Any,
) -> None:
    broker = Full({UPDATED: 0})
    by_its_clock(broker)
    publisher = publisher_to(broker)
    publisher.is_unheard = True

    with pytest.raises(RefusedByQueue):
        publisher.publish(of("a", "a"), 7)
    assert publisher.confirmed == []
    publisher.known = frozenset()  # forgotten by an operator
    publisher.publish(of("a", "a"), 7)

    assert publisher.confirmed == []
    assert publisher.known == bindings(UPDATED)
    assert not publisher.is_unheard


def test_what_is_refused_is_no_witness_of_what_the_store_wants(by_its_clock: Any) -> None:
    """It would get the same message again with each question."""
    broker = Full({UPDATED: 0})
    broker.keys = {UPDATED}
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED, REMINDER)
    publisher.told_before = {UPDATED: message(UPDATED, "earlier")}
    with pytest.raises(RefusedByQueue):
        publisher.publish([*of("a"), message(REMINDER, "b")], 7)
    tried = len(broker.tried)
    broker.now_s += 12

    assert publisher.is_in_doubt
    publisher.settle(7)

    assert len(broker.tried) == tried
    assert publisher.known == bindings(UPDATED, REMINDER)


def test_who_is_heard_of_now_and_then_is_tried_soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Routing()
    monkeypatch.setattr(refusals, "time", broker)
    kept = Refusals()
    for heard in ((), (), (UPDATED,)):
        kept.note([UPDATED], heard, ())

    broker.now_s = 1.0
    assert kept.keys == {UPDATED}
    assert not kept.resting
    kept.note((), (), [UPDATED])
    assert not kept.keys
