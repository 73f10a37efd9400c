"""A pretended RabbitMQ with a clock of its own, and an outbox that is published to it."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from amqp.exceptions import NotFound

from fulfillment.messaging.confirming import Confirming, Doubt, _name_in
from fulfillment.messaging.outgoing import Outgoing


def of(*orders: str) -> list[Outgoing]:
    """Write a message about each of these orders."""
    return [message("order.updated", each) for each in orders]


def message(key: str, order: str) -> Outgoing:
    return (key, json.dumps({"externalId": order}).encode(), {})


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


UPDATED, REMINDER, REVIEW = "order.updated", "trade.reminder", "order.needs_review"
KEYS = (UPDATED, REMINDER, REVIEW)


def bindings(*keys: str) -> frozenset[tuple[str, str, str]]:
    return frozenset((key, "", "") for key in keys)


class Routing(Slow):
    """A RabbitMQ that has queues for some keys; `plan` says for which, from message to message."""

    def __init__(self, *keys: str, plan: Iterable[set[str]] = ()) -> None:
        super().__init__(0.0)
        self.keys = set(keys)
        self.plan = iter(plan)
        self.heard: list[Outgoing] = []
        self.tried: list[Outgoing] = []
        self.unread: dict[str, int] = {}
        self.asked_in_vain: Counter[str] = Counter()

    def channel(self) -> "Routing":
        return self

    def close(self) -> None:
        pass

    def queue_declare(self, name: str, *, passive: bool) -> SimpleNamespace:
        assert passive
        if name not in self.unread:
            self.asked_in_vain[name] += 1
            raise NotFound
        return SimpleNamespace(message_count=self.unread[name])

    def basic_publish(self, body: bytes, *args: Any, **more: Any) -> None:
        super().basic_publish(body, *args, **more)
        exchange, key = args
        self.keys = next(self.plan, self.keys)
        self.tried.append((key, body, {}))
        if key in self.keys:
            self.heard.append((key, body, {}))
            return
        for act in self.events["basic_return"]:
            act(None, exchange, key, SimpleNamespace(body=body))

    @property
    def first_heard(self) -> list[Outgoing]:
        return [each for place, each in enumerate(self.heard) if each not in self.heard[:place]]


EARLIER = [message(key, "earlier") for key in KEYS]


class Outbox:
    """Has a publisher publish what waits, as the relay does."""

    def __init__(
        self, broker: Routing, *known: str, told_before: Sequence[Outgoing] = EARLIER
    ) -> None:
        self.broker = broker
        self.doubts: dict[str, Doubt] = {}
        self.publisher = publisher_to(broker, *known, doubts=self.doubts)
        self.waiting: list[Outgoing] = []
        self.publisher.told_before = {each[0]: each for each in told_before}

    def turn(self) -> None:
        self._publish()
        if self.publisher.is_in_doubt:
            self.publisher.settle(7)

    def until_one_is_overdue(self) -> None:
        """Go on until a key that reaches nobody would be given up next."""
        self._publish()
        while not (self.publisher.is_in_doubt and self._is_any_overdue()):
            if self.publisher.is_in_doubt:
                self.publisher.settle(7)
            self._publish()

    def _is_any_overdue(self) -> bool:
        return any(doubt.is_overdue for doubt in self.doubts.values())

    def _publish(self) -> None:
        self.publisher.publish(self.waiting, 7)
        told = set(self.publisher.confirmed)
        self.waiting = [each for n, each in enumerate(self.waiting) if n not in told]
        if not told:
            self.broker.now_s += 2

    def turns_until_empty(self) -> int:
        for turn in range(1, 400):
            if not self.waiting:
                return turn
            self.turn()
        raise AssertionError(f"{len(self.waiting)} wait for ever")


def publisher_to(
    broker: Routing, *known: str, doubts: dict[str, Doubt] | None = None
) -> Confirming:
    kept: dict[str, Doubt] = {} if doubts is None else doubts
    publisher = Confirming(broker, broker, kept)  # type: ignore[arg-type]
    publisher.known = bindings(*known)
    return publisher


def numbered(rnd: random.Random, orders: int, count: int) -> list[Outgoing]:
    """Write messages of some orders, each different from all others."""
    names = [f"o{rnd.randrange(orders)}" for _ in range(count)]
    return [
        (rnd.choice(KEYS), json.dumps({"externalId": name, "n": n}).encode(), {})
        for n, name in enumerate(names)
    ]


def assert_in_order(heard: list[Outgoing], written: list[Outgoing]) -> None:
    for name in set(map(_name_in, written)):
        expected = [each for each in written if _name_in(each) == name and each in heard]
        assert [each for each in heard if _name_in(each) == name] == expected


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


class Full(Routing):
    """Has so much room for messages of some keys, and refuses the others; answers many at once."""

    def __init__(self, room: dict[str, int]) -> None:
        super().__init__(*KEYS)
        self.room = room

    def drain_events(self, timeout: float) -> None:
        if not self.waiting:
            super().drain_events(timeout)
        answers = [(tag, self._takes(self.tried[tag - 1])) for _, tag in self.waiting]
        self.waiting.clear()
        for (tag, is_taken), after in zip_longest(answers, answers[1:]):
            if after is None or after[1] is not is_taken:
                for act in self.events["basic_ack" if is_taken else "basic_nack"]:
                    act(tag, True)

    def _takes(self, message: Outgoing) -> bool:
        left = self.room.get(message[0])
        if left == 0:
            self.heard.remove(message)
            return False
        if left is not None:
            self.room[message[0]] = left - 1
        return True
