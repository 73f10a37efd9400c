"""Publish a group of messages to the store's exchange in one go, and know what the broker has.

kombu's producer makes each message a round trip of its own on RabbitMQ, and costs 0.1 ms of CPU a
message on Redis. What leaves here is what it would have written.

As with every topic exchange, what no queue is bound for is dropped; but not where a queue of the
store was bound before and none is any more: then nothing is confirmed (docs/decisions/0018).
"""

import base64
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from kombu import Connection
from redis.exceptions import ResponseError

from fulfillment.broker import checkout_queue, store_exchange
from fulfillment.messaging.confirming import Confirming, Doubt
from fulfillment.messaging.outgoing import ENCODING, PERSISTENT, TYPE, Outgoing, Publisher
from fulfillment.messaging.refusals import Refusals
from fulfillment.store.bindings import Binding
from schemas.messages import CHECKOUT_QUEUE

#: Stands among the bindings in Redis as long as nobody wipes them; nothing is sent to it.
_MARK = ("fulfillment.relay", r"^fulfillment\.relay$", "fulfillment.relay")


def make_publisher(
    connection: Connection,
    doubts: dict[str, Doubt] | None = None,
    refusals: Refusals | None = None,
) -> Publisher:
    """Declare the exchange and give the publisher for this broker.

    `doubts` is what publishers of before have left to be found out, and `refusals` what was refused
    to them.
    """
    channel = connection.channel()  # its own: on RabbitMQ what is published on it is counted
    store_exchange(channel).declare()
    if connection.transport.driver_type == "amqp":
        # An exchange that is declared anew without it would drop the store's checkouts in silence.
        checkout_queue(channel).declare()
        return Confirming(connection, channel, {} if doubts is None else doubts, refusals)
    return _Pushing(channel)


class _Pushing:
    """Redis: one LPUSH for each queue that is bound, in the form that kombu's consumers read.

    A consumer whose connection lives does not see that Redis was wiped, and binds its queue never
    again: it is bound for it. Among the bindings stands a mark: where it is missing, all of them
    were lost; where it stands, a binding that is missing was taken away by its owner.
    """

    broker = "redis"
    is_in_doubt = False  # it tells where queues are bound

    def __init__(self, channel: Any) -> None:
        self.confirmed: Sequence[int] = ()
        self.known: frozenset[Binding] = frozenset()
        self.is_unheard = False
        self.told_before: dict[str, Outgoing] = {}
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

    def settle(self, within_s: float) -> None:
        """Do nothing: it is never in doubt."""

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

    def unread(self, names: Iterable[str]) -> dict[str, int]:
        del names  # Redis tells which queues are bound
        found: dict[str, int] = {}
        with self._channel.conn_or_acquire() as client:
            for queue in {queue for _, _, queue in self._bound}:
                with suppress(ResponseError):  # somebody keeps something else under its name
                    found[queue] = client.llen(queue)
        return found

    def backlog(self) -> int:
        return min(self.unread(()).values(), default=0)


def _envelope(key: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Write a message as kombu's virtual transports do, for the default priority."""
    properties = {
        "delivery_mode": PERSISTENT,
        "delivery_info": {"exchange": store_exchange.name, "routing_key": key},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    return msgspec.json.encode(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": ENCODING,
            "content-type": TYPE,
            "headers": headers,
            "properties": properties,
        }
    )
