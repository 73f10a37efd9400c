"""Publish a group of messages to the store's exchange in one go, and know what the broker has.

kombu's producer makes each message a round trip of its own on RabbitMQ, and costs 0.1 ms of CPU a
message on Redis. What leaves here is what it would have written.

As with every topic exchange, what no queue is bound for is dropped; but not where a queue of the
store was bound before and none is any more: then nothing is confirmed (docs/decisions/0018).
"""

import base64
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from kombu import Connection
from kombu.exceptions import OperationalError

from fulfillment.broker import checkout_queue, store_exchange
from fulfillment.store.bindings import Binding
from schemas.messages import CHECKOUT_QUEUE, NEEDS_REVIEW, ORDER_UPDATED, TRADE_REMINDER

_TYPE, _ENCODING = "application/json", "utf-8"
_PERSISTENT = 2
#: The place of what is sent again: in no group.
_AGAIN = -1
_KEYS = (ORDER_UPDATED, TRADE_REMINDER, NEEDS_REVIEW)
#: Stands among the bindings in Redis as long as nobody wipes them; nothing is sent to it.
_MARK = ("fulfillment.relay", r"^fulfillment\.relay$", "fulfillment.relay")

#: A routing key, a body in JSON, headers.
Outgoing = tuple[str, bytes, dict[str, str]]


class Publisher(Protocol):
    """Publishes for the one relay that has the lease.

    `confirmed` says what the broker surely has of the group last published, by place; of each
    order only what has nothing unconfirmed before it.
    `known` is where queues of the store are bound, or were when one was; who has the lease sets it
    to what was known before. `is_unheard` says that none of them was there for the last group.
    """

    broker: str
    confirmed: Sequence[int]
    known: frozenset[Binding]
    is_unheard: bool

    def publish(self, group: Sequence[Outgoing], within_s: float) -> None:
        """Publish in order. Raises what `broker.PUBLISH_ERRORS` names."""

    def look(self) -> bool:
        """See where queues are bound; say whether the broker has forgotten it. Raises the same."""

    def bind_again(self) -> None:
        """Tell a broker that has forgotten it where queues were bound. Raises the same."""

    def backlog(self) -> int:
        """Count what waits in the store's shortest queue; 0 where nobody tells. Raises the same."""


def make_publisher(connection: Connection) -> Publisher:
    """Declare the exchange and give the publisher for this broker."""
    channel = connection.channel()  # its own: on RabbitMQ what is published on it is counted
    store_exchange(channel).declare()
    if connection.transport.driver_type == "amqp":
        # An exchange that is declared anew without it would drop the store's checkouts in silence.
        checkout_queue(channel).declare()
        return _Confirming(connection, channel)
    return _Pushing(channel)


class _Late(TimeoutError):
    """The time for a group is over; what was written is whole."""


class _Confirming:
    """RabbitMQ: all messages first, then the confirms of all; but of one order one at a time.

    A queue that is full may refuse one message and take the next, so the second of an order is sent
    when the first is confirmed: first those of all orders that come first, then the others.

    What it can bring to no queue it gives back. Where queues are bound it does not tell: known is
    which routing keys have reached one. Of the others one of a group is sent, and the rest only
    where that one has reached a queue: as on Redis, nothing is sent to a queue that is not there.

    Of a known key it cannot be told by that alone whether the store wants it no more, or whether
    its queue was away for a moment: one that came back is sent twice again, and a message that was
    heard between; what of its order lies behind it waits.
    """

    broker = "rabbitmq"

    def __init__(self, connection: Connection, channel: Any) -> None:
        self.confirmed: Sequence[int] = ()
        self.known: frozenset[Binding] = frozenset()
        self.is_unheard = False
        self._connection = connection
        self._channel = channel
        self._last_tag = 0  # RabbitMQ counts what is published on a channel, from 1
        self._unconfirmed: dict[int, int] = {}  # tags, and their messages' places in the group
        self._is_refused = False
        self._returned: Counter[tuple[str, bytes]] = Counter()
        self._unwanted: set[str] = set()
        #: What reached a queue last, and may be sent again to see whether that is still there.
        self._witness: Outgoing | None = None
        channel.confirm_select()
        channel.events["basic_return"].add(self._on_return)
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)

    def publish(self, group: Sequence[Outgoing], within_s: float) -> None:
        self.confirmed = ()
        self._returned.clear()
        self._unwanted.clear()
        self._unconfirmed.clear()
        deadline = time.monotonic() + within_s
        known = self._known_keys
        asked_about: dict[str, bytes] = {}
        unwanted: set[str] = set()
        left_out: list[int] = []
        rounds = _rounds(group)
        unsent = set(range(len(group)))
        present = 0
        stuck: set[str] = set()
        try:
            for place in sorted(range(len(group)), key=rounds.__getitem__):
                key, body, _ = group[place]
                if time.monotonic() > deadline:
                    raise _Late
                if rounds[place] > present:
                    present = rounds[place]
                    self._await_confirms(deadline)
                    if self._is_refused:
                        break
                    stuck = self._names_back(group, known)
                if stuck and _name_in(group[place]) in stuck:
                    continue  # its queue may come back just now, and would hear this one first
                if key in asked_about:  # once a key: the rest of it need not wait
                    self._await_confirms(deadline)
                    is_back = (key, asked_about.pop(key)) in self._returned
                    (unwanted if is_back else known).add(key)
                if key in unwanted:
                    left_out.append(place)
                    unsent.discard(place)
                    continue
                if key not in known:
                    asked_about[key] = body
                unsent.discard(place)
                self._send(group[place], place)
            self._await_confirms(deadline)
            if not self._is_refused:
                self._unwanted = self._asked_again(group, known, unsent, deadline)
        except _Late:
            if len({*unsent, *self._unconfirmed.values()} - {_AGAIN}) == len(group):
                raise
            # A slow broker: what it has is behind us, and the rest begins the next group.
        finally:
            before = self._known_keys
            self.confirmed = self._judged(group, {*self._unconfirmed.values(), *unsent})
            if left_out and self._known_keys - before:
                # Whoever has begun to listen meanwhile may want these too.
                self.confirmed = [each for each in self.confirmed if each < min(left_out)]
        if self._is_refused:
            raise OperationalError("the broker refused a message to the store")

    def _send(self, message: Outgoing, place: int) -> None:
        key, body, headers = message
        prepared = self._channel.prepare_message(
            body, None, _TYPE, _ENCODING, headers, {"delivery_mode": _PERSISTENT}
        )
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = place
        self._channel.basic_publish(prepared, store_exchange.name, key, mandatory=True)

    def _names_back(self, group: Sequence[Outgoing], known: set[str]) -> set[str]:
        """Name the orders of which a message with a known key came back."""
        if not self._returned:
            return set()
        return {_name_in(m) for m in group if m[0] in known and m[:2] in self._returned}

    def _asked_again(
        self, group: Sequence[Outgoing], known: set[str], unsent: set[int], deadline: float
    ) -> set[str]:
        """Say which known keys surely reach no queue any more, while another does.

        The store is told a little twice then, as it may be at any time; but nothing of an order
        before what of it came back earlier.
        """
        places = [place for place in range(len(group)) if group[place][0] in known]
        sent = [group[place] for place in places if place not in unsent]
        back = [message for message in sent if message[:2] in self._returned]
        heard = [message for message in sent if message[:2] not in self._returned]
        self._witness = heard[-1] if heard else self._witness
        firsts = {_name_in(message): message for message in reversed(back)}.values()
        keys = {message[0] for message in heard}
        doubtful = {message[0]: message for message in firsts if message[0] not in keys}
        # What was held back for one that came back may follow it, where nothing was heard so far; a
        # queue that comes in just between hears that one first.
        behind = [group[place] for place in places if place in unsent]
        next_ones = {_name_in(message): message for message in reversed(behind)}
        followers = filter(None, (next_ones.get(_name_in(m)) for m in doubtful.values()))
        other = next((m for m in followers if m[0] not in {each[0] for each in back}), None)
        witness = self._witness or other
        if not doubtful or witness is None:
            return set()
        earlier, self._returned = self._returned, Counter()
        try:
            for message in (*doubtful.values(), witness, *doubtful.values()):
                self._send(message, _AGAIN)
            self._await_confirms(deadline)
        finally:
            again, self._returned = self._returned, earlier
        if self._is_refused or witness[:2] in again:
            return set()
        self._witness = witness
        return {key for key, message in doubtful.items() if again[message[:2]] == 2}

    def _await_confirms(self, deadline: float) -> None:
        while self._unconfirmed and not self._is_refused:
            try:
                self._connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))
            except TimeoutError:  # a broker that is blocked confirms nothing
                raise _Late from None

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

    def backlog(self) -> int:
        return 0  # what lies on RabbitMQ's disk is in nobody's way

    def _judged(self, group: Sequence[Outgoing], unconfirmed: set[int]) -> list[int]:
        """Give what is confirmed: not what reached no queue where its routing key did before."""
        reached = [place for place in range(len(group)) if place not in unconfirmed]
        if not reached:
            return []
        known = self._known_keys
        sent = [group[place] for place in reached]
        keys_back = {key for key, body, _ in sent if (key, body) in self._returned} - known
        came_back = [m[0] in keys_back or (m[0], m[1]) in self._returned for m in sent]
        heard = {m[0] for m, is_back in zip(sent, came_back, strict=True) if not is_back}
        unheard = {m[0] for m, is_back in zip(sent, came_back, strict=True) if is_back}
        # A queue came or went meanwhile; or no key has a queue any more.
        lost = heard & unheard | (unheard & known) - self._unwanted
        # A group of a key that nobody ever listened to tells nothing of the others.
        is_heard = bool(heard or self._unwanted)
        self.is_unheard = not is_heard and (bool(lost) or self.is_unheard)
        if lost:
            # What lies behind one that is lost is published again with it: the order is kept.
            places = enumerate(zip(sent, came_back, strict=True))
            reached = reached[: next(i for i, (m, is_back) in places if is_back and m[0] in lost)]
        known -= self._unwanted
        self.known = frozenset((key, "", "") for key in known | heard)
        return reached

    def _on_return(self, _error: Any, _exchange: str, key: str, message: Any) -> None:
        body = message.body
        self._returned[key, body.encode() if isinstance(body, str) else bytes(body)] += 1

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            waiting = self._unconfirmed.items()
            self._unconfirmed = {each: place for each, place in waiting if each > tag}
        else:
            self._unconfirmed.pop(tag, None)

    def _on_nack(self, _tag: int, _multiple: bool) -> None:
        self._is_refused = True


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


def _rounds(group: Sequence[Outgoing]) -> list[int]:
    """Say of each message how many of its order come before it."""
    before: Counter[str] = Counter()
    rounds = []
    for message in group:
        name = _name_in(message)
        rounds.append(before[name])
        before[name] += 1
    return rounds


class _Pushing:
    """Redis: one LPUSH for each queue that is bound, in the form that kombu's consumers read.

    A consumer whose connection lives does not see that Redis was wiped, and binds its queue never
    again: it is bound for it. Among the bindings stands a mark: where it is missing, all of them
    were lost; where it stands, a binding that is missing was taken away by its owner.
    """

    broker = "redis"

    def __init__(self, channel: Any) -> None:
        self.confirmed: Sequence[int] = ()
        self.known: frozenset[Binding] = frozenset()
        self.is_unheard = False
        self._channel = channel
        self._bound: list[Binding] = []

    def publish(self, group: Sequence[Outgoing], within_s: float) -> None:
        """Publish to the queues that were bound at the last look."""
        del within_s  # the socket's own timeout is shorter
        self.confirmed = ()
        self.is_unheard = bool(self.known) and not self._bound
        if self.is_unheard:
            return
        exchange = store_exchange.name
        # Asked once for the group, where kombu asks for each message.
        matching = self._channel.typeof(exchange).lookup
        queues = {key: matching(self._bound, exchange, key, None) for key in {m[0] for m in group}}
        waiting: dict[str, list[bytes]] = {}
        for message in group:
            if bound := queues[message[0]]:
                envelope = _envelope(*message)
                for queue in bound:
                    waiting.setdefault(queue, []).append(envelope)
        with self._channel.conn_or_acquire() as client:
            for queue, envelopes in waiting.items():
                client.lpush(queue, *envelopes)
        self.confirmed = range(len(group))

    def look(self) -> bool:
        table = [tuple(row) for row in self._channel.get_table(store_exchange.name)]
        if _MARK not in table:
            return True
        # The checkouts' queue is ours, and its consumer binds it.
        self._bound = [row for row in table if row != _MARK and row[2] != CHECKOUT_QUEUE]
        if self._bound:
            self.known, self.is_unheard = frozenset(self._bound), False
        return False

    def bind_again(self) -> None:
        # What was bound at a RabbitMQ before has no queue's name: the store binds it here itself.
        named = [binding for binding in self.known if binding[2]]
        for binding in (*named, _MARK):  # the mark last: who dies before it begins anew
            self._channel._queue_bind(store_exchange.name, *binding)

    def backlog(self) -> int:
        with self._channel.conn_or_acquire() as client:
            return min((client.llen(queue) for _, _, queue in self._bound), default=0)


def _envelope(key: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Write a message as kombu's virtual transports do, for the default priority."""
    properties = {
        "delivery_mode": _PERSISTENT,
        "delivery_info": {"exchange": store_exchange.name, "routing_key": key},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    return msgspec.json.encode(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": _ENCODING,
            "content-type": _TYPE,
            "headers": headers,
            "properties": properties,
        }
    )
