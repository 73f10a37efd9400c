"""How a group of messages is sent to RabbitMQ: of one order one at a time."""

import json
from typing import Any

import pytest

from fulfillment.messaging import publishing
from fulfillment.messaging.publishing import Outgoing, _rounds


def of(*orders: str) -> list[Outgoing]:
    """Write a message about each of these orders."""
    return [("order.updated", json.dumps({"externalId": each}).encode(), {}) for each in orders]


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
