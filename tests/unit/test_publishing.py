"""How a group of messages is sent to RabbitMQ: of one order one at a time."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from fulfillment.messaging import confirming
from fulfillment.messaging.confirming import PATIENCE_S, Confirming, _name_in, _rounds
from fulfillment.messaging.outgoing import Outgoing
from tests.unit.rabbitmq import (
    KEYS,
    REMINDER,
    REVIEW,
    UPDATED,
    Failing,
    Outbox,
    Routing,
    Slow,
    assert_in_order,
    bindings,
    message,
    numbered,
    of,
    publisher_to,
)


@pytest.mark.parametrize(
    ("orders", "rounds"),
    [
        ("", []),
        ("abc", [[0, 1, 2]]),
        ("aaa", [[0], [1], [2]]),
        ("abacba", [[0, 1, 3], [2, 4], [5]]),
    ],
)
def test_a_message_comes_after_those_of_its_order_that_come_before_it(
    orders: str, rounds: list[list[int]]
) -> None:
    assert _rounds(orders) == rounds


@pytest.mark.parametrize("key", ["order.needs_review", "trade.reminder"])
def test_messages_of_one_order_follow_each_other_whatever_their_keys(key: str) -> None:
    first, second = of("a", "a")

    assert _rounds(map(_name_in, [first, (key, *second[1:])])) == [[0], [1]]


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"{}", b'{"externalId": 5}', b"\xff"])
def test_messages_that_name_no_order_keep_their_order_among_themselves(body: bytes) -> None:
    odd: Outgoing = ("order.updated", body, {})

    assert _rounds(map(_name_in, [odd, *of("a"), odd, odd])) == [[0, 1], [2], [3]]


@pytest.mark.parametrize("takes_s", [0.1, 2, 4, 6])
def test_a_slow_broker_is_sent_little_twice_and_each_group_comes_on(
    monkeypatch: pytest.MonkeyPatch, takes_s: float
) -> None:
    left = of(*(str(n % 20) for n in range(100)))
    known, sent = frozenset({("order.updated", "", "")}), 0
    for _ in range(8):
        slow = Slow(takes_s)
        monkeypatch.setattr(confirming, "time", slow)
        publisher = Confirming(slow, slow, {})  # type: ignore[arg-type]
        publisher.known = known
        publisher.publish(left, 7)
        sent += len(slow.sent)
        left = [each for place, each in enumerate(left) if place not in publisher.confirmed]

    assert left == []
    assert sent <= 200


def test_a_broker_that_confirms_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(8)
    monkeypatch.setattr(confirming, "time", slow)

    with pytest.raises(TimeoutError):
        Confirming(slow, slow, {}).publish(of("a"), 7)  # type: ignore[arg-type]


@pytest.fixture
def by_its_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda broker: monkeypatch.setattr(confirming, "time", broker)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_queues_come_and_go_the_store_hears_everything_in_order(
    by_its_clock: Any, seed: int
) -> None:
    """One queue for all keys, or one for each, that come back one after the other."""
    rnd = random.Random(seed)
    is_one = rnd.random() < 0.5

    def plan() -> Iterator[set[str]]:
        here = set(KEYS)
        for _ in range(rnd.randrange(200)):
            if rnd.random() < 0.15:
                if is_one:
                    here = set() if here else set(KEYS)
                else:
                    here ^= {rnd.choice(KEYS)}
            yield here
        yield set(KEYS)

    broker = Routing(plan=plan())
    by_its_clock(broker)
    outbox = Outbox(broker, *KEYS)
    outbox.waiting = written = numbered(rnd, orders=rnd.choice([1, 3, 20]), count=40)

    while outbox.waiting:
        outbox.turn()
        broker.now_s = min(broker.now_s, PATIENCE_S - 1)  # not so long that one would be given up

    assert all(each in broker.heard for each in written)
    assert_in_order(broker.first_heard, written)


@pytest.mark.parametrize("seed", range(40))
def test_what_a_store_listens_to_no_more_holds_nothing_up_for_long(
    by_its_clock: Any, seed: int
) -> None:
    rnd = random.Random(seed)
    wanted = rnd.sample(KEYS, rnd.choice([1, 2]))
    broker = Routing(*wanted)
    by_its_clock(broker)
    outbox = Outbox(broker, *KEYS)
    outbox.waiting = written = numbered(rnd, orders=rnd.choice([1, 3, 20]), count=40)

    turns = outbox.turns_until_empty()

    assert all(each in broker.heard for each in written if each[0] in wanted)
    assert_in_order(broker.first_heard, written)
    assert broker.now_s <= 4 * PATIENCE_S + 20  # of two keys one after the other
    assert len(broker.tried) <= len(written) + 6 * turns  # what comes back is not all sent again
    assert outbox.publisher.known <= bindings(*KEYS)


def test_a_key_is_given_up_only_after_a_while_and_while_another_is_heard(by_its_clock: Any) -> None:
    broker = Routing(UPDATED)
    by_its_clock(broker)
    outbox = Outbox(broker, UPDATED, REMINDER)
    outbox.waiting = [message(REMINDER, "a"), message(UPDATED, "a"), message(UPDATED, "b")]

    outbox.turn()
    assert outbox.waiting == [message(REMINDER, "a"), message(UPDATED, "a")]
    while broker.now_s < PATIENCE_S - 2:
        outbox.turn()
        assert outbox.publisher.known == bindings(UPDATED, REMINDER)

    outbox.turns_until_empty()
    assert not outbox.publisher.is_unheard
    assert outbox.publisher.known == bindings(UPDATED)
    # What was told is told again now and then, and what was held is heard.
    assert broker.first_heard == [message(UPDATED, each) for each in ("b", "a")]
    assert len(broker.heard) <= 3 + PATIENCE_S / 10


@pytest.mark.parametrize(
    "plan",
    [
        [set()],  # nobody is there
        [{UPDATED, REMINDER}],  # it is back with the first
        [set(), {UPDATED, REMINDER}],  # ... with the witness
        [set(), {UPDATED}, {UPDATED, REMINDER}],  # ... just behind it
        [set(), {UPDATED}, set()],
    ],
)
def test_a_queue_that_comes_while_it_is_asked_for_is_not_given_up(
    by_its_clock: Any, plan: list[set[str]]
) -> None:
    broker = Routing(UPDATED)
    by_its_clock(broker)
    outbox = Outbox(broker, UPDATED, REMINDER)
    outbox.waiting = [message(REMINDER, "a"), message(UPDATED, "b")]
    outbox.until_one_is_overdue()
    publisher = outbox.publisher

    broker.plan = iter(plan)
    publisher.settle(7)

    is_away = plan[-1] == set() and len(plan) == 3
    assert publisher.known == (bindings(UPDATED) if is_away else bindings(UPDATED, REMINDER))


@pytest.mark.parametrize("gap_s", [5, 20, 25])
def test_the_third_queue_is_waited_for_as_long_as_the_second(
    by_its_clock: Any, gap_s: float
) -> None:
    """All go for a minute; then one comes, and the others after it, one by one."""
    broker = Routing()
    by_its_clock(broker)
    outbox = Outbox(broker, *KEYS)
    outbox.waiting = written = [message(REMINDER, "a"), message(UPDATED, "b")]

    for keys, seconds in (((), PATIENCE_S - 3), ((REVIEW,), gap_s), ((REVIEW, REMINDER), gap_s)):
        broker.keys = set(keys)
        until_s = broker.now_s + seconds
        while broker.now_s < until_s and outbox.waiting:
            outbox.turn()
    broker.keys = set(KEYS)
    outbox.turns_until_empty()

    assert all(each in broker.heard for each in written)


def test_who_is_heard_now_and_a_minute_later_need_not_have_been_there_between(
    by_its_clock: Any,
) -> None:
    broker = Routing(UPDATED, REVIEW)
    by_its_clock(broker)
    outbox = Outbox(broker, *KEYS)
    outbox.waiting = written = [message(REMINDER, "a"), message(UPDATED, "b")]

    outbox.turn()
    broker.keys = set()
    while broker.now_s < PATIENCE_S - 4:
        outbox.turn()
    broker.keys = {UPDATED}  # the store is coming back
    outbox.waiting.append(message(UPDATED, "c"))
    while broker.now_s < PATIENCE_S + 20:
        outbox.turn()
    broker.keys = set(KEYS)
    outbox.turns_until_empty()

    assert all(each in broker.heard for each in written)
    assert outbox.publisher.known == bindings(*KEYS)


@pytest.mark.parametrize("away_s", [0, 50, 70, 1000])
@pytest.mark.parametrize("is_tried", [True, False])
def test_queues_that_come_back_one_after_the_other_lose_nothing(
    by_its_clock: Any, away_s: int, is_tried: bool
) -> None:
    """However long the store was away: its second queue is there some seconds after the first."""
    broker = Routing()
    by_its_clock(broker)
    outbox = Outbox(broker, *KEYS)
    written = [message(UPDATED, f"{n}") for n in range(5)]
    written += [message(REMINDER, "r")] * is_tried
    outbox.waiting = list(written)

    def go_on(seconds: float) -> None:
        until_s = broker.now_s + seconds
        while broker.now_s < until_s:
            outbox.turn()

    go_on(away_s)
    broker.keys = {REMINDER}
    go_on(PATIENCE_S - 4)
    broker.keys = set(KEYS)
    outbox.turns_until_empty()

    assert all(each in broker.heard for each in written)
    assert outbox.publisher.known == bindings(*KEYS)


def test_what_nobody_ever_listened_to_is_dropped_but_not_while_the_store_is_away() -> None:
    broker = Routing()
    publisher = publisher_to(broker)
    first, update = message(REMINDER, "a"), message(UPDATED, "b")

    publisher.publish([first, message(REMINDER, "c")], 7)  # it never bound a queue
    assert publisher.confirmed == [0, 1]
    assert broker.tried == [first]

    publisher.known = bindings(UPDATED)
    for group, confirmed in (
        ([first], [0]),
        ([first, update], []),
        ([first], []),
        ([update, first], []),
    ):
        publisher.publish(group, 7)
        assert publisher.confirmed == confirmed
    assert publisher.is_unheard

    broker.keys = {UPDATED}
    publisher.publish([update, first], 7)
    assert publisher.confirmed == [0]  # it may have been here for the second only
    publisher.publish([first], 7)
    assert publisher.confirmed == [0]


def test_an_order_whose_first_message_nobody_wants_goes_on_when_the_store_is_back(
    by_its_clock: Any,
) -> None:
    broker = Routing(UPDATED)
    by_its_clock(broker)
    outbox = Outbox(broker, UPDATED)
    outbox.publisher.is_unheard = True
    outbox.waiting = [message(REMINDER, "a"), message(UPDATED, "a")]

    outbox.turns_until_empty()

    assert broker.heard[-1] == message(UPDATED, "a")
    assert not outbox.publisher.is_unheard


def test_of_a_key_that_is_missing_one_message_a_group_is_sent(by_its_clock: Any) -> None:
    broker = Routing()
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED)
    group = of(*(str(n) for n in range(100)))
    publisher.publish(group, 7)
    tried = len(broker.tried)

    for _ in range(5):
        publisher.publish(group, 7)
    assert len(broker.tried) == tried + 5

    broker.keys = {UPDATED}
    publisher.publish(group, 7)
    assert publisher.confirmed == list(range(100))


@pytest.mark.parametrize("says_so", [True, False])
def test_what_is_not_confirmed_waits_with_all_behind_it_and_the_rest_is_done(
    by_its_clock: Any, says_so: bool
) -> None:
    broker = Failing(UPDATED, nth=2, says_so=says_so)
    by_its_clock(broker)
    publisher = publisher_to(broker, UPDATED)
    group = of("a", "b", "a")

    if says_so:
        with pytest.raises(OperationalError, match="refused"):
            publisher.publish(group, 7)
    else:
        publisher.publish(group, 7)

    assert publisher.confirmed == [0]
    assert len(broker.tried) == 2


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("says_so", [True, False])
def test_a_broker_that_fails_while_it_is_asked_what_is_wanted_has_nothing_given_up(
    by_its_clock: Any, nth: int, says_so: bool
) -> None:
    broker = Failing(UPDATED, nth=0, says_so=says_so)
    by_its_clock(broker)
    outbox = Outbox(broker, UPDATED, REMINDER)
    outbox.waiting = [message(REMINDER, "a")]
    outbox.until_one_is_overdue()
    publisher = outbox.publisher
    broker.nth = len(broker.sent) + nth

    with pytest.raises(OperationalError if says_so else TimeoutError):
        publisher.settle(7)

    assert publisher.known == bindings(UPDATED, REMINDER)


@pytest.mark.parametrize("takes_s", [0.5, 1.5, 3])
def test_a_slow_broker_that_is_asked_for_what_nobody_wants_goes_on_with_the_rest(
    by_its_clock: Any, takes_s: float
) -> None:
    broker = Routing(UPDATED)
    broker.takes_s = takes_s
    by_its_clock(broker)
    outbox = Outbox(broker, UPDATED, REMINDER)
    outbox.waiting = [message(REMINDER, "r"), *of(*(f"{n % 6}" for n in range(60)))]

    turns = outbox.turns_until_empty()

    assert turns < 60
    assert broker.now_s < 60 * takes_s + 2 * PATIENCE_S
