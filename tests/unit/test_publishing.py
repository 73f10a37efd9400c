"""How a group of messages is sent to RabbitMQ: of one order one at a time."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from fulfillment.messaging import publishing
from fulfillment.messaging.publishing import Outgoing, _rounds


def of(*orders: str) -> list[Outgoing]:
    """Write a message about each of these orders."""
    return [message("order.updated", each) for each in orders]


def message(key: str, order: str) -> Outgoing:
    return (key, json.dumps({"externalId": order}).encode(), {})


@pytest.mark.parametrize(
    ("orders", "rounds"),
    [
        ("", []),
        ("abc", [0, 0, 0]),
        ("aaa", [0, 1, 2]),
        ("abacba", [0, 0, 1, 0, 1, 2]),
    ],
)
def test_a_message_comes_after_those_of_its_order_that_come_before_it(
    orders: str, rounds: list[int]
) -> None:
    assert _rounds(of(*orders)) == rounds


@pytest.mark.parametrize("key", ["order.needs_review", "trade.reminder"])
def test_messages_of_one_order_follow_each_other_whatever_their_keys(key: str) -> None:
    first, second = of("a", "a")

    assert _rounds([first, (key, *second[1:])]) == [0, 1]


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"{}", b'{"externalId": 5}', b"\xff"])
def test_messages_that_name_no_order_keep_their_order_among_themselves(body: bytes) -> None:
    odd: Outgoing = ("order.updated", body, {})

    assert _rounds([odd, *of("a"), odd, odd]) == [0, 0, 1, 2]


class Slow:
    """A RabbitMQ whose confirms take a while, by a clock of its own."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s, self.now_s = takes_s, 0.0
        names = ("basic_return", "basic_ack", "basic_nack")
        self.events: dict[str, set[Any]] = {name: set() for name in names}
        self.sent: list[bytes] = []
        self.waiting: list[tuple[float, int]] = []

    def confirm_select(self) -> None:
        pass

    def prepare_message(self, body: bytes, *_: Any) -> bytes:
        return body

    def basic_publish(self, body: bytes, *_: Any, **__: Any) -> None:
        self.sent.append(body)
        self.waiting.append((self.now_s + self.takes_s, len(self.sent)))

    def drain_events(self, timeout: float) -> None:
        if not self.waiting or self.waiting[0][0] > self.now_s + timeout:
            self.now_s += timeout
            raise TimeoutError
        self.now_s, tag = self.waiting.pop(0)
        for act in self.events["basic_ack"]:
            act(tag, False)

    def monotonic(self) -> float:
        return self.now_s


@pytest.mark.parametrize("takes_s", [0.1, 2, 4, 6])
def test_a_slow_broker_is_sent_little_twice_and_each_group_comes_on(
    monkeypatch: pytest.MonkeyPatch, takes_s: float
) -> None:
    left = of(*(str(n % 20) for n in range(100)))
    known, sent = frozenset({("order.updated", "", "")}), 0
    for _ in range(8):
        slow = Slow(takes_s)
        monkeypatch.setattr(publishing, "time", slow)
        publisher = publishing._Confirming(slow, slow)  # type: ignore[arg-type]
        publisher.known = known
        publisher.publish(left, 7)
        sent += len(slow.sent)
        left = [each for place, each in enumerate(left) if place not in publisher.confirmed]

    assert left == []
    assert sent <= 200


def test_a_broker_that_confirms_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(8)
    monkeypatch.setattr(publishing, "time", slow)

    with pytest.raises(TimeoutError):
        publishing._Confirming(slow, slow).publish(of("a"), 7)  # type: ignore[arg-type]


class Routing(Slow):
    """A RabbitMQ with a queue that is bound for some keys; it is there for some messages only."""

    def __init__(self, *keys: str, misses: int = 0, holds: int = 1_000) -> None:
        super().__init__(0.0)
        self.keys, self.misses, self.holds = keys, misses, holds
        self.heard: list[Outgoing] = []
        #: What all was sent, and under which keys.
        self.tried: list[Outgoing] = []

    def basic_publish(self, body: bytes, *args: Any, **more: Any) -> None:
        super().basic_publish(body, *args, **more)
        exchange, key = args
        self.tried.append((key, body, {}))
        if key in self.keys and self.misses < len(self.sent) <= self.holds:
            self.heard.append((key, body, {}))
            return
        for act in self.events["basic_return"]:
            act(None, exchange, key, SimpleNamespace(body=body))


UPDATED, REMINDER, REVIEW = "order.updated", "trade.reminder", "order.needs_review"
BOTH_KNOWN = frozenset({(UPDATED, "", ""), (REMINDER, "", "")})
ALL_KNOWN = BOTH_KNOWN | {(REVIEW, "", "")}


def publisher_of(broker: Routing) -> publishing._Confirming:
    """Give a publisher that has seen both keys reach a queue before."""
    publisher = publishing._Confirming(broker, broker)  # type: ignore[arg-type]
    publisher.known = BOTH_KNOWN
    return publisher


@pytest.mark.parametrize(
    ("orders", "holds", "group", "confirmed"),
    [
        ("aa", 1, (UPDATED, REMINDER), [0]),
        ("ab", 1, (UPDATED, REMINDER), [0]),
        # What is sent as the last lies between the others: its order's first goes before it.
        ("aab", 2, (UPDATED, REMINDER, UPDATED), [0]),
        ("aa", 2, (UPDATED, REMINDER), [0, 1]),
    ],
)
def test_what_comes_back_after_another_key_was_heard_is_kept_since_the_queue_may_have_gone(
    orders: str, holds: int, group: tuple[str, ...], confirmed: list[int]
) -> None:
    publisher = publisher_of(Routing(UPDATED, REMINDER, holds=holds))

    publisher.publish([message(*each) for each in zip(group, orders, strict=True)], 7)

    assert publisher.confirmed == confirmed
    assert publisher.known == BOTH_KNOWN


@pytest.mark.parametrize("orders", ["aaa", "abc"])
@pytest.mark.parametrize("group", [(REMINDER, UPDATED), (UPDATED, REMINDER, UPDATED)])
def test_a_key_that_comes_back_before_another_is_heard_is_not_wanted_any_more(
    orders: str, group: tuple[str, ...]
) -> None:
    broker = Routing(UPDATED)
    publisher = publisher_of(broker)
    left = [message(*each) for each in zip(group, orders, strict=False)]
    wanted = [each for each in left if each[0] == UPDATED]

    for _ in range(2):  # what lies behind it in its order comes with the next group
        publisher.publish(left, 7)
        left = [each for place, each in enumerate(left) if place not in publisher.confirmed]

    assert left == []
    assert publisher.known == {(UPDATED, "", "")}
    bodies = [body for _, body, _ in broker.heard]
    assert list(dict.fromkeys(bodies)) == list(dict.fromkeys(body for _, body, _ in wanted))


def test_what_was_kept_for_a_queue_that_went_comes_on_once_another_queue_is_there() -> None:
    """The queue that is there again may not be bound for it."""
    broker = Routing(UPDATED, REMINDER, holds=1)
    publisher = publisher_of(broker)
    update, reminder, later = message(UPDATED, "a"), message(REMINDER, "a"), message(UPDATED, "b")
    confirmed = []

    publisher.publish([update, reminder], 7)
    confirmed.append(publisher.confirmed)
    broker.keys, broker.holds = (UPDATED,), 1_000
    for group in ([reminder], [later]):
        publisher.publish(group, 7)
        confirmed.append(publisher.confirmed)

    assert confirmed == [[0], [0], [0]]
    assert publisher.known == {(UPDATED, "", "")}


@pytest.mark.parametrize(
    ("misses", "group"),
    [
        (1, [(REVIEW, "a"), (UPDATED, "b")]),
        (1, [(REMINDER, "a"), (UPDATED, "b")]),
        (1, [(REVIEW, "a"), (UPDATED, "b"), (UPDATED, "c")]),
        (2, [(REVIEW, "a"), (UPDATED, "b"), (UPDATED, "c")]),
    ],
)
def test_what_a_queue_missed_that_comes_back_while_a_group_is_under_way_reaches_it(
    misses: int, group: list[tuple[str, str]]
) -> None:
    broker = Routing(UPDATED, REMINDER, REVIEW, misses=misses)
    publisher = publisher_of(broker)
    publisher.known, publisher.is_unheard = ALL_KNOWN, True
    outbox = [message(*each) for each in group]
    left = outbox

    for _ in range(3):
        publisher.publish(left, 7)
        left = [each for place, each in enumerate(left) if place not in publisher.confirmed]

    assert left == []
    assert all(each in broker.heard for each in outbox)
    assert publisher.known == ALL_KNOWN
    assert not publisher.is_unheard


def test_of_an_order_nothing_is_sent_again_before_what_came_back_of_it_earlier() -> None:
    """A queue that is there by then would hear of it in the wrong order."""
    broker = Routing(REVIEW)
    publisher = publisher_of(broker)
    publisher.known = ALL_KNOWN
    first, second = message(UPDATED, "a"), message(REMINDER, "a")
    other, witness = message(UPDATED, "b"), message(REVIEW, "c")
    group = [first, other, second, witness]

    publisher.publish(group, 7)

    asked, *others = broker.tried[3:]
    assert asked in (first, other)
    assert others == [witness, asked]
    assert second not in broker.tried
    assert publisher.confirmed == [0, 1, 3]
    assert publisher.known == {(REMINDER, "", ""), (REVIEW, "", "")}


@pytest.mark.parametrize("misses", range(7))
def test_what_is_behind_in_an_order_waits_for_what_came_back_of_it(misses: int) -> None:
    broker = Routing(UPDATED, REMINDER, REVIEW, misses=misses)
    publisher = publisher_of(broker)
    publisher.known = ALL_KNOWN
    publisher._witness = message(UPDATED, "earlier")
    left = [
        message(UPDATED, "a"),
        message(UPDATED, "b"),
        message(REMINDER, "a"),
        message(REVIEW, "b"),
    ]
    wanted = list(left)

    for _ in range(4):
        publisher.publish(left, 7)
        left = [each for place, each in enumerate(left) if place not in publisher.confirmed]

    heard = list(dict.fromkeys(each[:2] for each in broker.heard))
    assert left == []
    for one, later in ((0, 2), (1, 3)):
        assert heard.index(wanted[one][:2]) < heard.index(wanted[later][:2])


@pytest.mark.parametrize("holds", [2, 3])
def test_a_queue_that_goes_while_it_is_asked_what_it_wants_spoils_nothing_that_was_heard(
    holds: int,
) -> None:
    broker = Routing(UPDATED, holds=holds)
    publisher = publisher_of(broker)
    reminder, update = message(REMINDER, "a"), message(UPDATED, "b")

    publisher.publish([reminder, update], 7)

    assert broker.tried == [reminder, update, reminder, update, reminder]
    assert publisher.confirmed == []
    assert publisher.known == BOTH_KNOWN
    assert not publisher.is_unheard


class Failing(Routing):
    """Does not take its nth message: it refuses it, or says nothing of it."""

    def __init__(self, *keys: str, nth: int, says_so: bool) -> None:
        super().__init__(*keys)
        self.nth, self.says_so = nth, says_so

    def drain_events(self, timeout: float) -> None:
        if not self.waiting or self.waiting[0][1] != self.nth:
            super().drain_events(timeout)
            return
        if not self.says_so:
            self.now_s += timeout
            raise TimeoutError
        _, tag = self.waiting.pop(0)
        for act in self.events["basic_nack"]:
            act(tag, False)


@pytest.mark.parametrize("nth", [3, 4, 5])
@pytest.mark.parametrize("says_so", [True, False])
def test_a_broker_that_fails_while_it_is_asked_what_is_wanted_has_nothing_dropped(
    monkeypatch: pytest.MonkeyPatch, nth: int, says_so: bool
) -> None:
    broker = Failing(UPDATED, nth=nth, says_so=says_so)
    monkeypatch.setattr(publishing, "time", broker)
    publisher = publisher_of(broker)
    group = [message(REMINDER, "a"), message(UPDATED, "b")]

    if says_so:
        with pytest.raises(OperationalError, match="refused"):
            publisher.publish(group, 7)
    else:  # what it has of the group is known, and more than nothing
        publisher.publish(group, 7)

    assert len(broker.tried) == 5
    assert publisher.confirmed == []
    assert publisher.known == BOTH_KNOWN
    assert not publisher.is_unheard


def test_what_was_heard_of_an_earlier_group_tells_of_one_in_which_nothing_is() -> None:
    broker = Routing(UPDATED)
    publisher = publisher_of(broker)
    publisher.publish([message(UPDATED, "a")], 7)

    publisher.is_unheard = True  # as others have noted it before
    publisher.publish([message(REMINDER, "a")], 7)

    assert publisher.confirmed == [0]
    assert publisher.known == {(UPDATED, "", "")}
    assert not publisher.is_unheard
