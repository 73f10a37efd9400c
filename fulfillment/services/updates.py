"""What the store hears of its orders: where it listens, and what it is told again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fulfillment.errors import InvalidInput, NotAllowedNow, OrderNotFound
from fulfillment.log import get_logger
from fulfillment.services import pulse
from fulfillment.services.context import Context
from fulfillment.store import bindings, orders, outbox, replays
from fulfillment.store.bindings import Audience, Unread
from fulfillment.store.engine import Session, repeated
from fulfillment.store.replays import Replay

log = get_logger(__name__)

#: What an operator does where the store does not listen any more.
UNHEARD = (
    "have the store declare its queue again, then `fulfillment updates replay`; "
    "or `fulfillment updates forget`, if it is not to hear of orders any more"
)
#: So much waits in a queue of the store only where the store does not read it.
MOST_UNREAD = 10_000
#: The relay looks every minute; what it saw longer ago says nothing of now.
_SEEN_FOR = timedelta(minutes=5)
UNREAD = "the store does not read it, or not fast enough: see that its consumer runs"
REFUSED = "a queue of the store is full and set to refuse what comes: see that its consumer runs"
#: The relay tries again every ten seconds at the least.
_REFUSED_FOR = timedelta(seconds=30)
_WIPED = "the broker was wiped"
_ASKED = "asked for"
_SHOWN = 10
#: What is told again from here on is all that there is.
EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Updates:
    """How it stands with the messages to the store."""

    audience: Audience
    waiting: int
    age: timedelta
    replays: list[Replay]
    unread: list[Unread]


def show(context: Context) -> Updates:
    """Say where the store listens, what waits, and what was told again of late."""
    with context.database.transaction() as session:
        audience = bindings.read(session, context.settings.broker_name)
        waiting, age = outbox.lag(session, context.now())
        told = replays.newest(session, _SHOWN)
        return Updates(audience, waiting, age, told, _unread(context, session))


def audience(context: Context) -> Audience:
    """Say where the store listens, or last did."""
    with context.database.transaction() as session:
        return bindings.read(session, context.settings.broker_name)


def unread(context: Context) -> list[Unread]:
    """Give how much waits in the store's queues, the longest first; none where nobody can tell."""
    with context.database.transaction() as session:
        return _unread(context, session)


def _unread(context: Context, session: Session) -> list[Unread]:
    return bindings.unread(session, context.settings.broker_name, context.now() - _SEEN_FOR)


@repeated
def note_unread(context: Context, found: Mapping[str, int]) -> None:
    """Keep how much waits in the store's queues, and say so when it has become too much."""
    broker = context.settings.broker_name
    with context.database.transaction() as session:
        before = _unread(context, session)
        bindings.keep_unread(session, broker, found, context.now())
        after = _unread(context, session)
    was_over = {each.queue for each in before if each.messages > MOST_UNREAD}
    for each in after:
        if (each.messages > MOST_UNREAD) is (each.queue in was_over):
            continue
        tell = log.info if each.queue in was_over else log.warning
        event = "relay.read_again" if each.queue in was_over else "relay.unread"
        tell(event, queue=each.queue, messages=each.messages)


def note_refused(context: Context, keys: Iterable[str]) -> None:
    """Keep that a queue of the store has refused messages of these routing keys just now."""
    for key in keys:
        with context.database.statement() as session:
            pulse.beat_seldom(context, session, pulse.REFUSED + key)


def refused(context: Context, beats: Mapping[str, datetime]) -> list[str]:
    """Give the routing keys that are refused, of when each activity last ran."""
    since = context.now() - _REFUSED_FOR
    return sorted(
        name.removeprefix(pulse.REFUSED)
        for name, at in beats.items()
        if name.startswith(pulse.REFUSED) and at >= since
    )


@repeated
def replay(context: Context, since: datetime | None, external_id: str | None = None) -> int:
    """Have the relay tell the store again what happened since then, or ever, to one order or all.

    Gives how many orders that is about. Raises OrderNotFound, and InvalidInput for a time to come.
    """
    since = max(since or EVER, EVER)
    if since > context.now():
        expected = f"expected a time that is over, found {since.isoformat()}"
        raise InvalidInput("--since", f"{expected}; a time without a zone is read as UTC")
    with context.database.transaction() as session:
        if external_id is None:
            replays.request(session, _ASKED, since, context.now())
            return replays.count_orders(session, since)
        order = orders.find(session, [external_id]).get(external_id)
        if order is None:
            raise OrderNotFound(external_id)
        replays.request(session, _ASKED, since, context.now(), order.id)
        return int(order.updated_at >= since)


def tell_again_after_wipe(context: Context, session: Session) -> None:
    """Have the store told again what may have lain in a broker that was wiped, once a wipe."""
    # What was told again before it lay there as well.
    replays.begin_anew(session)
    length = timedelta(hours=context.settings.replay_hours)
    is_wished = any(wish.reason == _WIPED for wish in replays.unfinished(session))
    if is_wished or not length:
        return
    now = context.now()
    # Nothing was published since the oldest message began to wait.
    published_until = min(now, outbox.oldest_at(session) or now)
    replays.request(session, _WIPED, published_until - length, now)


@repeated
def forget(context: Context) -> list[str]:
    """Wait no longer for the store's queues that are missing; give their names.

    What waits for them is dropped. Raises NotAllowedNow where none is missing.
    """
    with context.database.transaction() as session:
        names = bindings.forget_missing(session, context.settings.broker_name)
    if not names:
        raise NotAllowedNow("no queue of the store is missing")
    return names
