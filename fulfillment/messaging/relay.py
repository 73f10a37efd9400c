"""Publish the outbox to the store's exchange: at least once, in order within each order.

Any number of relays may run; the one that has the lease publishes, the others wait.
"""

import hmac
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from kombu import Connection

from fulfillment.broker import PUBLISH_ERRORS, connect, reason_of
from fulfillment.crash import crash_point
from fulfillment.errors import RightMissing, SchemaOutdated, ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.messaging.confirming import Doubt
from fulfillment.messaging.outgoing import Outgoing, Publisher, RefusedByQueue
from fulfillment.messaging.publishing import make_publisher
from fulfillment.messaging.refusals import Refusals
from fulfillment.services import clock_guard, updates
from fulfillment.services.context import Context
from fulfillment.services.pulse import RELAY, Pulse
from fulfillment.store import bindings, leases, outbox, replays, rights
from fulfillment.store.bindings import Audience
from fulfillment.store.engine import Session
from fulfillment.store.replays import Replay, Slice

log = get_logger(__name__)

SIGNATURE_HEADER = "x-fulfillment-signature"
_LEASE = "outbox.relay"
_LEASE_TIME = timedelta(seconds=10)
#: What of the lease must be left for a group; one that is not through by then is given up.
_PUBLISH_TIME = timedelta(seconds=7)
_GROUP = 500
_GATHER_S = 0.05
_IDLE_S = 0.2
_RETRY_S = 1.0
#: So long it waits at the most where what it publishes would be published again.
_MOST_RETRY_S = 60.0
_LOOK_S = 1.0
#: What is told again must not fill the broker where the store does not take it, nor alarm anybody.
_MOST_WAITING = updates.MOST_UNREAD // 2
#: So often it is seen how much the store has not read.
_COUNT_S = 60.0
#: A queue that was not there is asked for after so long: RabbitMQ logs each question as an error.
_ABSENT_S = 600.0
#: Who waits for a queue of the store to come back tries so often.
_UNHEARD_S = 2.0


def signature(secret: str, body: bytes) -> str:
    """Sign a message's body: lower-case hex HMAC-SHA256 under the API token."""
    return hmac.digest(secret.encode(), body, "sha256").hex()


class OutboxRelay:
    """Publishes until `stop` is set; a broker or database may go away and come back."""

    def __init__(self, context: Context, stop: threading.Event) -> None:
        self._context = context
        self._stop = stop
        self._holder = uuid.uuid4().hex
        self._pulse = Pulse(context, RELAY)
        self._leased_until = context.now()
        self._secret = context.settings.api_token.get_secret_value()
        self._look_at = 0.0
        self._count_at = 0.0
        #: When queues that were not there are to be asked for again.
        self._absent_until: dict[str, float] = {}
        self._doubts: dict[str, Doubt] = {}
        self._refusals = Refusals()
        #: Of these it was said that they are refused.
        self._refused: set[str] = set()
        #: Both as the database has them; read anew with each renewal of the lease.
        self._audience = Audience()
        self._replays: list[Replay] = []
        #: What is read of the first of them and not told yet.
        self._slice: Slice | None = None
        self._is_replays_turn = False
        self._waits_for_store = False
        #: Whether what was published is still in the outbox, and how often in turn it was so.
        self._is_left = False
        self._in_vain = 0

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._context.settings) as connection:
                    self._relay(connection)
            except (*PUBLISH_ERRORS, ServerUnreachable, SchemaOutdated) as error:
                log.warning("relay.waiting", reason=reason_of(error))
                self._rest(is_lasting=isinstance(error, RightMissing))
            except Exception as error:
                # Without a heartbeat `/readyz` tells of it.
                log.error("relay.failed", reason=type(error).__name__)
                self._rest()

    def _rest(self, *, is_lasting: bool = False) -> None:
        """Wait a little, and ever longer where the store would hear the same each time."""
        self._in_vain = self._in_vain + 1 if is_lasting or self._is_left else 0
        self._is_left = False
        self._stop.wait(min(_RETRY_S * 2 ** min(self._in_vain, 6), _MOST_RETRY_S))

    def _relay(self, connection: Connection) -> None:
        publisher = make_publisher(connection, self._doubts, self._refusals)
        clock_guard.check(self._context)
        self._leased_until = self._context.now()  # what it must know is read with the lease
        self._look_at = 0.0
        while not self._stop.is_set():
            clock_guard.check(self._context)  # the lease goes by it
            pause_s = self._turn(publisher)
            self._pulse.beat()  # of a whole turn, or a failure that comes again tells nobody
            if not connection.supports_heartbeats:
                self._stop.wait(pause_s)
                continue
            # The broker's heartbeats are to be read, or the connection counts as silent.
            with suppress(TimeoutError):
                connection.drain_events(timeout=pause_s)
            connection.heartbeat_check()
        with self._context.database.transaction() as session:
            leases.give_up(session, _LEASE, self._holder)

    def _turn(self, publisher: Publisher) -> float:
        """Publish something; say how long to wait then, in seconds.

        What is told again and what is new take turns, so that neither waits for all of the other.
        """
        self._is_replays_turn = bool(self._replays) and not self._is_replays_turn
        publish = self._tell_again if self._is_replays_turn else self._publish_some
        sent = 1  # or more, where a part is refused
        with self._noting_refusals():
            sent = publish(publisher)
        self._note_audience(publisher)
        if publisher.is_in_doubt:
            with self._noting_refusals():
                self._settle(publisher)
            self._note_audience(publisher)
        self._count_unread(publisher)
        if publisher.is_unheard or (sent and not publisher.confirmed):
            return _UNHEARD_S
        if sent == _GROUP or (self._replays and not self._waits_for_store):
            return 0
        # A group costs two transactions, whatever its size: let the next one grow a little.
        return _GATHER_S if sent else _IDLE_S

    @contextmanager
    def _noting_refusals(self) -> Iterator[None]:
        """Go on where a queue of the store refuses messages: they stay where they are."""
        try:
            yield
        except RefusedByQueue as error:
            updates.note_refused(self._context, error.keys)
        refused = self._refusals.keys
        if new := refused - self._refused:
            log.warning("relay.refused", keys=sorted(new), why=updates.REFUSED)
        if over := self._refused - refused:
            log.info("relay.refused_no_more", keys=sorted(over))
        self._refused = refused

    def _settle(self, publisher: Publisher) -> None:
        """Have it found out whether the store wants something no more that it listened to."""
        with self._leased(publisher) as session:
            if session is None:
                return
        publisher.settle(_PUBLISH_TIME.total_seconds())

    def _count_unread(self, publisher: Publisher) -> None:
        """Note now and then how much the store has not read, if this is the relay that has to."""
        now_s = self._context.clock.monotonic()
        if now_s < self._count_at:
            return
        self._count_at = now_s + _COUNT_S
        with self._leased(publisher) as session:
            if session is None:
                return
        named = self._context.settings.updates_queue_names
        asked = [name for name in named if self._absent_until.get(name, 0.0) <= now_s]
        unread = publisher.unread(asked)
        self._absent_until |= {name: now_s + _ABSENT_S for name in asked if name not in unread}
        updates.note_unread(self._context, unread)

    @contextmanager
    def _leased(self, publisher: Publisher) -> Iterator[Session | None]:
        """Begin a transaction of who has the lease; give None where another relay has it.

        Where little of the lease is left it is renewed, and what others may change is read.
        """
        now = self._context.now()
        until = self._leased_until
        with self._context.database.transaction() as session:
            has_lease = True
            if until < now + _PUBLISH_TIME:
                until = now + _LEASE_TIME
                has_lease = leases.acquire(session, _LEASE, self._holder, now, until)
                # Seen before it is needed: what cannot be taken out would be told again and again.
                rights.require(session, "DELETE", "outbox_messages")
                self._read(session if has_lease else None, publisher)
            yield session if has_lease else None
        if has_lease:
            self._leased_until = until

    def _read(self, session: Session | None, publisher: Publisher) -> None:
        self._audience = bindings.read(session, publisher.broker) if session else Audience()
        self._take_replays(replays.unfinished(session) if session else [])
        publisher.known = self._audience.known
        publisher.is_unheard = self._audience.missing_since is not None
        told_before = self._signed(self._audience.told.items())
        publisher.told_before = {m[0]: m for m in told_before} | publisher.told_before

    def _take_replays(self, wishes: list[Replay]) -> None:
        if wishes[:1] != self._replays[:1]:  # another one, or begun anew
            self._slice = None
        self._replays = wishes

    def _publish_some(self, publisher: Publisher) -> int:
        """Publish one group; give its size, 0 also where another relay has the lease."""
        with self._leased(publisher) as session:
            if session is None:
                return 0
            behind = [(wish.before_id, wish.order_id) for wish in self._replays]
            waiting = outbox.unpublished(session, _GROUP, behind)
            if len(waiting) == _GROUP and (resting := self._refusals.resting):
                # What is refused now is to be in nobody's way.
                waiting = outbox.unpublished(session, _GROUP, behind, resting)
        crash_point("relay.leased", waiting)
        if self._is_wiped(publisher, bool(waiting)) or not waiting:
            return 0
        group = self._signed((key, body.encode()) for _, key, body in waiting)
        try:
            publisher.publish(group, _PUBLISH_TIME.total_seconds())
            crash_point("relay.published", group)
        finally:
            if confirmed := [waiting[place][0] for place in publisher.confirmed]:
                self._is_left = True
                with self._context.database.statement() as session:
                    outbox.remove_published(session, confirmed)
                self._is_left, self._in_vain = False, 0
        crash_point("relay.marked", group)
        return len(group)

    def _signed(self, messages: Iterable[tuple[str, bytes]]) -> list[Outgoing]:
        return [(k, b, {SIGNATURE_HEADER: signature(self._secret, b)}) for k, b in messages]

    def _tell_again(self, publisher: Publisher) -> int:
        """Publish one group of what the store is to be told again; give its size."""
        with self._leased(publisher) as session:
            if session is None or not self._replays:
                return 0
            wish = self._replays[0]
            told = self._slice or replays.read_slice(session, wish)
        self._slice = told
        group = self._signed(told.messages[:_GROUP])
        if group and self._is_wiped(publisher, is_urgent=True):
            return 0
        self._waits_for_store = bool(group) and publisher.backlog() >= _MOST_WAITING
        if self._waits_for_store:
            return 0
        try:
            if group:
                publisher.publish(group, _PUBLISH_TIME.total_seconds())
        finally:
            confirmed = publisher.confirmed if group else ()
            self._slice = told.after(confirmed)
        if not self._slice.messages:
            with self._context.database.transaction() as session:
                replays.move_on(session, wish, self._slice, self._context.now())
                wishes = replays.unfinished(session)
            self._take_replays(wishes)
        return len(group)

    def _is_wiped(self, publisher: Publisher, is_urgent: bool) -> bool:
        """Look, now and then or at once, whether the broker has lost all; begin anew where so."""
        now_s = self._context.clock.monotonic()
        if not is_urgent and now_s < self._look_at:
            return False
        self._look_at = now_s + _LOOK_S
        if not publisher.look():
            return False
        if publisher.known:
            with self._context.database.transaction() as session:
                updates.tell_again_after_wipe(self._context, session)
                wishes = replays.unfinished(session)
            self._take_replays(wishes)
            self._slice = None
        publisher.bind_again()
        if publisher.known:
            log.warning("relay.bound_again", queues=self._audience.names)
        return True

    def _note_audience(self, publisher: Publisher) -> None:
        """Keep where the store listens, where that has changed, and say so when nobody does."""
        was_unheard = self._audience.missing_since is not None
        told = {key: body for key, body, _ in publisher.told_before.values()}
        keys = {key for key, _, _ in publisher.known}
        is_all_noted = told.keys() & keys <= self._audience.told.keys()
        is_same = publisher.known == self._audience.known and publisher.is_unheard == was_unheard
        if is_same and is_all_noted:
            return
        missing_since = self._context.now() if publisher.is_unheard else None
        with self._context.database.transaction() as session:
            bindings.keep(session, publisher.broker, publisher.known, missing_since, told)
            audience = bindings.read(session, publisher.broker)
        self._audience = audience
        if publisher.is_unheard and not was_unheard:
            log.warning("relay.unheard", queues=audience.names, act=updates.UNHEARD)
        elif was_unheard and not publisher.is_unheard:
            log.info("relay.heard_again", queues=audience.names)
