"""Publish to RabbitMQ: know what it has, and what of it has reached a queue of the store."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from amqp.exceptions import ChannelError
from kombu import Connection

from fulfillment.broker import store_exchange
from fulfillment.log import get_logger
from fulfillment.messaging.outgoing import (
    ENCODING,
    PERSISTENT,
    TYPE,
    Outgoing,
    RefusedByQueue,
)
from fulfillment.messaging.refusals import Refusals
from fulfillment.store.bindings import Binding
from schemas.messages import NEEDS_REVIEW, ORDER_UPDATED, TRADE_REMINDER

log = get_logger(__name__)

_KEYS = (ORDER_UPDATED, TRADE_REMINDER, NEEDS_REVIEW)
#: So long a key that reached a queue before is waited for though others reach one: a store declares
#: its queues, and deploys its consumers, one after the other.
PATIENCE_S = 60.0
#: So often others are asked for meanwhile where nothing else shows whether they are heard.
_LOOK_S = 10.0
#: What other queues of its key may get once more with each attempt to fill one that was full.
_FEW = 20
#: What was seen longer ago says nothing of now; and a message that came back longer ago may have
#: been told by another relay since.
_RECENT_S = 15.0


class _Late(TimeoutError):
    """The time for a group is over; what was written is whole."""


@dataclass(slots=True)
class Doubt:
    """A key reaches no queue: what came back last, and when, in seconds."""

    message: Outgoing
    since_s: float
    seen_s: float
    #: Since when other keys have been heard all the while, and when last.
    others_since_s: float | None = None
    others_seen_s: float = -math.inf
    looked_s: float = -math.inf

    @property
    def is_recent(self) -> bool:
        return time.monotonic() - self.seen_s <= _RECENT_S

    @property
    def is_overdue(self) -> bool:
        """Say whether others have been heard all the while that it was waited for."""
        since_s, now_s = self.others_since_s, time.monotonic()
        is_over = since_s is not None and now_s - since_s >= PATIENCE_S
        return is_over and self.is_recent and now_s - self.others_seen_s <= _RECENT_S

    @property
    def wants_a_look(self) -> bool:
        now_s = time.monotonic()
        is_blind = now_s - max(self.since_s, self.others_seen_s) >= _LOOK_S
        is_soon = now_s - self.looked_s < _LOOK_S
        return self.is_recent and not is_soon and (is_blind or self.is_overdue)

    def note_others(self) -> None:
        """Note that another key is heard."""
        now_s = time.monotonic()
        if self.others_since_s is None or now_s - self.others_seen_s > _RECENT_S:
            self.others_since_s = now_s
        self.others_seen_s = now_s


class _Group:
    """What becomes of a group of messages."""

    def __init__(
        self,
        messages: Sequence[Outgoing],
        known: set[str],
        doubted: set[str],
        resting: set[str],
    ) -> None:
        self.messages = messages
        self.known = known
        self._doubted = doubted
        #: Keys that were refused lately and are not tried.
        self._resting = resting
        self.names = list(map(_name_in, messages))
        #: Places of what the store has, or does not want.
        self.done: set[int] = set()
        #: Orders of which something has to wait: nothing that comes after it is sent.
        self.held: set[str] = set()
        #: Keys of which something has reached a queue, came back, and was refused.
        self.heard: set[str] = set()
        self.back: set[str] = set()
        self.refused: set[str] = set()
        self.is_any_answered = False

    @property
    def is_store_away(self) -> bool:
        """Say whether something came back of a key that the store listened to before."""
        return bool(self.back & self.known)

    @property
    def stuck(self) -> set[str]:
        """Name the keys of which nothing more is sent in this group."""
        return self.back | self.refused | self._resting

    def key(self, place: int) -> str:
        return self.messages[place][0]

    def parted(self, places: Iterable[int]) -> tuple[list[int], list[int]]:
        """Part what is sent at once from what waits for the first of its key; see `Confirming`."""
        first: list[int] = []
        rest: list[int] = []
        sure = (self.known - self._doubted) | self.heard
        tried = self.stuck
        for place in places:
            key = self.key(place)
            (rest if key in tried else first).append(place)
            if key not in sure:
                tried.add(key)
        return first, rest


class Confirming:
    """Publishes all orders at once, but of one order one message at a time.

    A queue that is full may refuse one message and take the next, and one that was away may be back
    for it: the second message of an order is sent when the first has reached a queue. What is
    refused waits with all of its key that was not sent yet, and is tried again after a pause, by
    one message at first.

    What RabbitMQ can bring to no queue it gives back; where queues are bound it does not tell. So
    a routing key is known once it has reached one. What comes back of a known key is sent again
    with the next group, and what comes after it in its order waits. Of a key that is not known, or
    came back last, one message of a group is tried first. Where one that is not known comes back
    all of its key are dropped, as by every topic exchange, unless known keys reach nobody either:
    then the store is away. What is known is given up in `settle` only.
    """

    broker = "rabbitmq"

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        doubts: dict[str, Doubt],
        refusals: Refusals | None = None,
    ) -> None:
        self.confirmed: Sequence[int] = ()
        self.known: frozenset[Binding] = frozenset()
        self.is_unheard = False
        self.told_before: dict[str, Outgoing] = {}
        self._connection = connection
        self._channel = channel
        self._last_tag = 0  # RabbitMQ counts what is published on a channel, from 1
        self._unconfirmed: set[int] = set()
        self._nacked: set[int] = set()
        self._returned: Counter[tuple[str, bytes]] = Counter()
        # Both of the relay, whose connections come and go.
        self._doubts = doubts
        self._refusals = Refusals() if refusals is None else refusals
        channel.confirm_select()
        channel.events["basic_return"].add(self._on_return)
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)

    def publish(self, messages: Sequence[Outgoing], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        resting = self._refusals.resting
        doubted = self._doubts.keys() | self._refusals.keys
        # What a queue refused has one, whatever else is known.
        group = _Group(messages, self._known_keys | self._refusals.keys, doubted, resting)
        self.confirmed = ()
        try:
            for places in _rounds(group.names):
                self._tell([p for p in places if group.names[p] not in group.held], group, deadline)
        except _Late:
            if not group.is_any_answered:
                raise
            # A slow broker: what it has is behind us, and the rest begins the next group.
        finally:
            self.confirmed = sorted(group.done)
            self._learn(group)
        if group.refused:
            raise RefusedByQueue(group.refused)

    def _tell(self, places: Sequence[int], group: _Group, deadline: float) -> None:
        """Send messages of which none comes after another of its order."""
        first, rest = group.parted(places)
        self._send_parts(first, group, deadline)
        self._send_parts(rest, group, deadline)
        is_away = bool(group.known) and (self.is_unheard or group.is_store_away)
        for place in places:
            if place in group.done:
                continue
            if is_away or group.key(place) in group.known | group.heard:
                group.held.add(group.names[place])
            else:
                group.done.add(place)

    def _send_parts(self, places: Sequence[int], group: _Group, deadline: float) -> None:
        """Send what is not stuck; a few at a time where a queue was full lately, and may be yet."""
        size = _FEW if self._refusals.keys else max(len(places), 1)
        for begin in range(0, len(places), size):
            stuck = group.stuck
            part = [p for p in places[begin : begin + size] if group.key(p) not in stuck]
            self._send_all(part, group, deadline)

    def _send_all(self, places: Sequence[int], group: _Group, deadline: float) -> None:
        tags: dict[int, int] = {}
        self._begin()
        try:
            for place in places:
                if time.monotonic() > deadline:
                    raise _Late
                tags[self._send(group.messages[place])] = place
            self._await_confirms(deadline)
        finally:
            for tag, place in tags.items():
                if tag not in self._unconfirmed:
                    group.is_any_answered = True
                    self._note_answer(tag, place, group)

    def _begin(self) -> None:
        """Forget what became of the messages of before."""
        self._returned.clear()
        self._unconfirmed.clear()
        self._nacked.clear()

    def _note_answer(self, tag: int, place: int, group: _Group) -> None:
        key, message = group.key(place), group.messages[place]
        if tag in self._nacked:
            group.refused.add(key)
            group.known.add(key)
        elif message[:2] in self._returned:
            group.back.add(key)
            self._note_doubt(message)
        else:
            group.heard.add(key)
            self.told_before[key] = message
            group.done.add(place)

    def _note_doubt(self, message: Outgoing) -> None:
        now_s, doubt = time.monotonic(), self._doubts.get(message[0])
        if doubt is None or not doubt.is_recent:
            self._doubts[message[0]] = Doubt(message, now_s, now_s)
        else:
            doubt.message, doubt.seen_s = message, now_s

    def _learn(self, group: _Group) -> None:
        self._refusals.note(group.refused, group.heard, group.back)
        for key in group.heard | group.refused:
            self._doubts.pop(key, None)
        if group.heard:
            self._note_presence()
        elif group.refused:
            self.is_unheard = False  # a queue that is full is there
        elif group.is_store_away:
            self.is_unheard = True
            if not self._present():
                for doubt in self._doubts.values():
                    doubt.others_since_s = None
        self._know(group.known | group.heard)

    def _note_presence(self) -> None:
        self.is_unheard = False
        for doubt in self._doubts.values():
            doubt.note_others()

    def _know(self, keys: Iterable[str]) -> None:
        self.known = frozenset((key, "", "") for key in keys)

    def _send(self, message: Outgoing) -> int:
        key, body, headers = message
        prepared = self._channel.prepare_message(
            body, None, TYPE, ENCODING, headers, {"delivery_mode": PERSISTENT}
        )
        self._last_tag += 1
        self._unconfirmed.add(self._last_tag)
        self._channel.basic_publish(prepared, store_exchange.name, key, mandatory=True)
        return self._last_tag

    def _await_confirms(self, deadline: float) -> None:
        while self._unconfirmed:
            try:
                self._connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))
            except TimeoutError:  # a broker that is blocked confirms nothing
                raise _Late from None

    @property
    def is_in_doubt(self) -> bool:
        return bool(self._to_look_at()) and bool(self._present())

    def _to_look_at(self) -> dict[str, Doubt]:
        # Of a key that is not known something waits only while the store is away.
        return {
            key: doubt
            for key, doubt in self._doubts.items()
            if doubt.wants_a_look and (self.is_unheard or key in self._known_keys)
        }

    def _present(self) -> set[str]:
        """Name the known keys that may well reach a queue."""
        recent = {key for key, doubt in self._doubts.items() if doubt.is_recent}
        return self._known_keys - recent

    def settle(self, within_s: float) -> None:
        """Give up known keys that reach no queue any more while another one does.

        Whether another one does is seen by what was told before. After `PATIENCE_S` of that, what
        came back is sent again, before and after it.
        """
        deadline = time.monotonic() + within_s
        present = self._present() - self._refusals.keys
        witnesses = [message for key, message in self.told_before.items() if key in present]
        looked_at = self._to_look_at()
        overdue = {key: doubt.message for key, doubt in looked_at.items() if doubt.is_overdue}
        for doubt in looked_at.values():
            doubt.looked_s = time.monotonic()
        if not witnesses:
            return
        self._begin()
        asked = (*overdue.values(), *witnesses, *overdue.values())
        keys = {self._send(each): each[0] for each in asked}
        self._await_confirms(deadline)
        if refused := {keys[tag] for tag in self._nacked}:
            self._refusals.note(refused, (), ())
            raise RefusedByQueue(refused)
        if all(witness[:2] in self._returned for witness in witnesses):
            for doubt in self._doubts.values():
                doubt.others_since_s = None
            return
        self._note_presence()
        for key, message in overdue.items():
            if self._returned[message[:2]] == 2:
                del self._doubts[key]
                self._know(self._known_keys - {key})
                log.warning("relay.key_given_up", key=key)

    @property
    def _known_keys(self) -> set[str]:
        # What was bound at a Redis before is known by its pattern.
        patterns = [pattern for _, pattern, _ in self.known if pattern]
        matched = {key for key in _KEYS if any(re.fullmatch(each, key) for each in patterns)}
        return matched | {key for key, pattern, _ in self.known if not pattern}

    def look(self) -> bool:
        return False  # RabbitMQ tells its consumers what it has lost

    def bind_again(self) -> None:
        """Do nothing: its queues are the store's to declare."""

    def unread(self, names: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in names:
            channel: Any = self._connection.channel()  # its own: each no closes it
            try:
                found[name] = channel.queue_declare(name, passive=True).message_count
            except ChannelError:
                continue
            finally:
                channel.close()
        return found

    def backlog(self) -> int:
        return 0  # what lies on RabbitMQ's disk is in nobody's way

    def _on_return(self, _error: Any, _exchange: str, key: str, message: Any) -> None:
        body = message.body
        self._returned[key, body.encode() if isinstance(body, str) else bytes(body)] += 1

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {each for each in self._unconfirmed if each > tag}
        else:
            self._unconfirmed.discard(tag)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        before = set(self._unconfirmed)
        self._on_ack(tag, multiple)
        self._nacked |= before - self._unconfirmed


class _Named(msgspec.Struct, rename="camel"):
    """What of a message's body tells whose it is."""

    external_id: str = ""


_NAMED = msgspec.json.Decoder(_Named)


def _name_in(message: Outgoing) -> str:
    """Give the id of the order that a message is about; nothing where it names none."""
    try:
        return _NAMED.decode(message[1]).external_id
    except msgspec.DecodeError:
        return ""


def _rounds(names: Iterable[str]) -> list[list[int]]:
    """Give the places of all orders' first messages, of their second ones, and so on."""
    before: Counter[str] = Counter()
    rounds: list[list[int]] = []
    for place, name in enumerate(names):
        if before[name] == len(rounds):
            rounds.append([])
        rounds[before[name]].append(place)
        before[name] += 1
    return rounds
