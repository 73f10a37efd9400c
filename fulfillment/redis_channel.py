"""kombu's Redis channel, but no death of a process loses a message, and no message ends a process.

kombu pops a message off its queue and notes it as taken afterwards; whoever dies in between takes
it along. A channel that consumes one queue only, as those of checkouts do, pops and notes at once.
One that consumes several, as a worker does that waits for steps and ticks, notes nothing: these are
hints, which the sweep makes up for, and the notes were a third of what a hint costs.

A Redis that answers and refuses, as a replica or a full one does, is told of as a lost connection:
of any other error a worker would die. It is connected to again only where it can be written to.

Anybody who can write to Redis can push bytes that are no message at all. kombu 5.7 has taken them
off the queue when it finds that out, and raises whatever Python raises then.
"""

import base64
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any

import redis
from kombu import Connection, Queue
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from fulfillment.clock import SystemClock
from fulfillment.kombu_messages import RedisMessage
from fulfillment.log import get_logger

log = get_logger(__name__)

#: Takes up to ARGV[2] messages off the lists from KEYS[3] on, and notes each as kombu does, in
#: KEYS[1] with the time ARGV[1] and in KEYS[2]; gives them with their tags. Noted before they are
#: popped: a full Redis refuses the note, and ends the script there. What is no message has no tag.
_TAKE = """
local function read(item)
    local message = cjson.decode(item)
    local tag, route = message.properties.delivery_tag, message.properties.delivery_info
    if type(tag) ~= 'string' then error('no tag') end
    return tag, cjson.encode(route.exchange) .. ',' .. cjson.encode(route.routing_key)
end
local given, taken = {}, 0
for place = 3, #KEYS do
    while taken < tonumber(ARGV[2]) do
        local item = redis.call('LINDEX', KEYS[place], -1)
        if not item then break end
        local good, tag, route = pcall(read, item)
        if good then
            redis.call('ZADD', KEYS[1], ARGV[1], tag)
            redis.call('HSET', KEYS[2], tag, '[' .. item .. ',' .. route .. ']')
        end
        redis.call('RPOP', KEYS[place])
        given[#given + 1], given[#given + 2] = item, good and tag or ''
        taken = taken + 1
    end
end
return given
"""
#: How many messages are taken at once where nobody set a limit.
_AT_ONCE = 100

#: What kombu raises about an envelope that is none.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Refused(redis.ConnectionError):
    """Redis answers, and says no: it is a replica, or full, or has too few replicas."""


@contextmanager
def _refusals_as_losses() -> Iterator[None]:
    try:
        yield
    except redis.ResponseError as error:
        raise Refused(str(error)) from error


class SafeQoS(kombu_redis.QoS):
    """Tells of a channel that is gone by the error that consumers know how to survive."""

    if TYPE_CHECKING:  # the stubs leave it out
        channel: "SafeChannel"
        _remove_from_indices: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Tags of those that only this process knows of.
        self._hints: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        if delivery_tag in self.channel.noted:
            self.channel.noted.discard(delivery_tag)
        elif self.channel.takes_hints:
            self._hints.add(delivery_tag)
        else:
            super().append(message, delivery_tag)
            return
        virtual.QoS.append(self, message, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        delivered: dict[str, Any] = self._delivered or {}
        for tag in self._hints & delivered.keys():
            self._put_back(delivered.pop(tag))
        self._hints.clear()
        super().restore_unacked(client)

    def _put_back(self, message: Any) -> None:
        route = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(message._raw, *route, client)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        with _refusals_as_losses():
            super().restore_visible(*args, **kwargs)

    def _is_hint(self, delivery_tag: str) -> bool:
        """Say whether it was one, and forget it."""
        if delivery_tag not in self._hints:
            return False
        self._hints.discard(delivery_tag)
        return True

    def ack(self, delivery_tag: str) -> None:
        if self._is_hint(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
            return
        try:
            with _refusals_as_losses():
                super().ack(delivery_tag)
        except AttributeError as error:
            raise redis.ConnectionError("channel gone; the message comes again") from error

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self._is_hint(delivery_tag):
            if requeue:
                self._put_back(self.get(delivery_tag))
            virtual.QoS.ack(self, delivery_tag)
            return
        try:
            with _refusals_as_losses():
                super().reject(delivery_tag, requeue=requeue)
        except AttributeError as error:
            raise redis.ConnectionError("channel gone; the message comes again") from error


class SafeChannel(kombu_redis.Channel):
    """Delivers bytes that are no message as one: whoever consumes it finds that it says nothing."""

    QoS = SafeQoS
    Message = RedisMessage
    if TYPE_CHECKING:  # the stubs leave them out
        _q_for_pri: Any
        _do_restore_message: Any
        conn_or_acquire: Any
        _closing: bool
        _disconnect_pools: Any
        _flush_brpop_reauth: Any
        pool: Any
        connection_errors: tuple[type[Exception], ...]
        qos: SafeQoS

    #: What BRPOP gave last: the queue's key and the item.
    _popped: Any = None
    #: The queue whose next message is awaited, where messages are taken and noted at once.
    _awaited: str | None = None
    #: The client that publishes, and the pool it was made for.
    _publisher: tuple[Any, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Tags of messages that are taken and noted, and not handed on yet.
        self.noted: set[str] = set()
        #: What stood among the bindings and is none, so that it is told of once.
        self._odd_bindings: set[tuple[str, ...]] = set()
        #: Whether what comes now is taken for good.
        self.takes_hints = False
        self._require_writes()

    def _require_writes(self) -> None:
        """Do nothing, by a command that only a Redis that can be written to carries out."""
        try:
            with _refusals_as_losses():
                self.client.zadd(self.unacked_index_key, {"": 0}, xx=True)
        except self.connection_errors:
            cycle: Any = self.connection.cycle
            cycle.discard(self)
            self._disconnect_pools()
            raise

    def bind_again(self, queue: Queue) -> None:
        """Bind a queue to its exchange although this process knows that it is: Redis may forget."""
        exchange = queue.exchange.name
        kind: Any = self.typeof(exchange)
        self._queue_bind(exchange, *kind.prepare_bind(queue.name, exchange, queue.routing_key, {}))

    def _queue_bind(self, *args: Any) -> None:
        with _refusals_as_losses():
            super()._queue_bind(*args)  # type: ignore[misc]  # the stubs lack it

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Give where an exchange's messages go; left out is what could be no binding.

        One that kombu cannot read would keep every message of the exchange from being published.
        """
        table = super().get_table(exchange)
        odd = [row for row in table if not _is_binding(row)]
        for row in odd:
            if row not in self._odd_bindings:
                self._odd_bindings.add(row)
                log.error("broker.no_binding", exchange=exchange, parts=len(row))
        return [row for row in table if row not in odd]

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Give a client; one that publishes serves any number of threads, and is made once."""
        if not asynchronous and self._publisher is not None and self._publisher[0] is self.pool:
            return self._publisher[1]
        client = super()._create_client(asynchronous)  # type: ignore[misc]  # the stubs lack it
        client.set_response_callback("BRPOP", self._note)
        if not asynchronous:
            self._publisher = self.pool, client
        return client

    def _note(self, answer: Any, **_options: Any) -> Any:
        self._popped = tuple(answer) if answer else None
        return self._popped

    def _brpop_start(self, timeout: float | None = None) -> None:
        active = self.active_queues
        if len(active) != 1:
            self._awaited = None
            super()._brpop_start(timeout)  # type: ignore[misc]  # the stubs lack it
            return
        (self._awaited,) = active
        self._in_poll = self.client.connection
        self._brpop_sent_at = SystemClock().monotonic()
        # Moved from the end of its list to the end of its list: it is waited for and stays.
        key = self._q_for_pri(self._awaited, 0)
        wait_s = timeout or self.brpop_timeout
        self._in_poll.send_command("BLMOVE", key, key, "RIGHT", "RIGHT", wait_s)

    def _brpop_read(self, **options: Any) -> Any:
        if self._awaited is not None:
            return self._take()
        self._popped = None
        self.takes_hints = True
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs lack it
        except redis.ResponseError as error:
            self.client.connection.disconnect()
            raise Refused(str(error)) from error
        except _UNREADABLE:
            if self._popped is None or self._message(self._popped[1]) is not None:
                raise  # the consumer's own error
        finally:
            self.takes_hints = False
        queue, item = self._popped
        self._deliver_bytes(queue.decode().rsplit(self.sep, 1)[0], item)
        return True

    def _take(self) -> bool:
        """Take, after the wait, what there is and may be consumed; raises Empty for nothing."""
        queue, self._awaited = self._awaited or "", None
        connection = self.client.connection
        try:
            self._ask(connection, None)
            limit = self.qos.can_consume_max_estimate()
            limit = _AT_ONCE if limit is None else min(limit, _AT_ONCE)
            if self._closing or not limit:
                raise Empty
            keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
            keys = [self.unacked_index_key, self.unacked_key, *keys]
            now = SystemClock().now().timestamp()
            given = self._ask(connection, ["EVAL", _TAKE, len(keys), *keys, now, limit])
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not given:
            raise Empty
        pairs = list(zip(given[::2], given[1::2], strict=True))
        self.noted = {tag.decode(errors="replace") for _, tag in pairs if tag}
        for item, tag in pairs:
            message = self._message(item)
            if message is not None:
                self.connection._deliver(message, queue)
                continue
            if tag:
                self.qos._remove_from_indices(tag).execute()
            self._deliver_bytes(queue, item)
        return True

    def _ask(self, connection: Any, command: list[Any] | None) -> Any:
        """Send a command, if any, and read an answer; only errors of the connection are raised."""
        try:
            if command is not None:
                connection.send_command(*command)
            return self.client.parse_response(connection, "EVAL")
        except redis.ResponseError as error:  # a full Redis: nothing is taken off it meanwhile
            connection.disconnect()
            raise Refused(str(error)) from error
        except self.connection_errors:
            connection.disconnect()
            raise

    def _deliver_bytes(self, queue: str, item: bytes) -> None:
        log.error("broker.no_message", queue=queue, bytes=len(item))
        self.connection._deliver(_envelope(queue, item), queue)

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        # Remote control and events: what is no message there is nobody's loss.
        try:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[misc]
        except _UNREADABLE:
            if self._message(json.dumps(message)) is not None:
                raise
        log.error("broker.no_message", exchange=exchange)
        return True

    def _message(self, item: bytes | str) -> dict[str, Any] | None:
        """Decode what lay in a list; None for what kombu could not make a message of."""
        try:
            decoded: dict[str, Any] = json.loads(item)
            message = self.Message(decoded, channel=self)
            route = message.delivery_info["exchange"], message.delivery_info["routing_key"]
            texts = (message.delivery_tag, *route, decoded.get("body") or "")
            is_whole = all(isinstance(text, str) and text.encode() is not None for text in texts)
        except _UNREADABLE:  # also of text that no UTF-8 can write
            return None
        return decoded if is_whole else None


def _is_binding(row: Sequence[str]) -> bool:
    """Say whether it is a routing key, a pattern and a queue, as kombu writes them."""
    try:
        re.compile(row[1])
    except (IndexError, re.error, RecursionError, OverflowError):
        return False
    return len(row) == 3 and bool(row[2])


def _envelope(queue: str, body: bytes) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": "application/octet-stream",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": uuid.uuid4().hex,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def open_channels(connection: Connection | None) -> Iterator[Any]:
    """Give the Redis channels of a connection, also of one that is lost."""
    # py-amqp leaves None there when RabbitMQ closes a connection.
    for channel in getattr(getattr(connection, "_connection", None), "channels", None) or ():
        if isinstance(channel, SafeChannel):
            yield channel


def install() -> None:
    """Let every Redis connection of this process use it."""
    kombu_redis.Transport.Channel = SafeChannel
