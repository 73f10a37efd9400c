"""Take checkouts in, once each: the one service behind HTTP, queue, Celery task and CLI."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from pydantic import ValidationError

from fulfillment.crash import crash_point
from fulfillment.errors import (
    CheckoutConflict,
    FulfillmentError,
    InvalidBody,
    InvalidInput,
    KeyMissing,
)
from fulfillment.log import get_logger
from fulfillment.services import backstop, clock_guard, pulse
from fulfillment.services.context import Context
from fulfillment.store import orders
from fulfillment.store.engine import is_about_data, repeated
from fulfillment.store.models import NewOrder, Order
from schemas.checkout import CheckoutEvent
from schemas.enums import OrderStatus

log = get_logger(__name__)

MAX_BATCH = 1000
#: No event of ours comes near; whatever is larger is refused before it is parsed.
MAX_EVENT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """What became of one checkout of a call: `status` or `error` is set."""

    external_id: str | None
    account: str | None = None
    status: OrderStatus | None = None
    is_new: bool = False
    error: FulfillmentError | None = None


def parse_json(body: bytes | str) -> Any:
    """Decode JSON strictly: UTF-8, no NaN, no duplicate keys. Raises InvalidBody."""
    try:
        text = body.decode() if isinstance(body, bytes) else body
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, InvalidJSON) else "the body is not valid JSON"
        raise InvalidBody(f"expected a JSON object; {reason}") from None


class InvalidJSON(ValueError):
    """JSON that parsers read differently."""


def _refuse_constant(name: str) -> Any:
    raise InvalidJSON(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidJSON("a key stands twice")
    return fields


class TooLarge(dict[str, Any]):
    """A checkout of a batch that is larger than `MAX_EVENT_BYTES`."""


def parse_event(raw: Any) -> CheckoutEvent:
    """Validate one checkout event. Raises InvalidInput that names the first wrong field."""
    if not isinstance(raw, dict):
        raise InvalidInput(None, f"expected a JSON object, found {_json_word(raw)}")
    if isinstance(raw, TooLarge):
        raise InvalidInput(None, f"expected at most {MAX_EVENT_BYTES} bytes")
    try:
        return CheckoutEvent.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    raise InvalidInput(field, first["msg"].removeprefix("Value error, "))


def _json_word(value: Any) -> str:
    words = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return words.get(type(value), "a number")


def receive(context: Context, events: Sequence[CheckoutEvent]) -> list[Received]:
    """Store new checkouts in one transaction; answer repetitions and conflicts for what they are.

    Raises ServerUnreachable; nothing of the call is stored then, unless the commit itself was cut
    off, in which case sending the same again is safe.
    """
    results: dict[int, Received] = {}
    new: dict[int, NewOrder] = {}
    latest = context.now() + timedelta(seconds=context.settings.submit_within_s)
    for place, event in enumerate(events):
        try:
            new[place] = _new_order(context, event, latest)
        except InvalidInput as error:
            results[place] = Received(event.external_id, error=error)
    if new:
        clock_guard.check(context)  # the orders' time to be submitted goes by it
    fresh, known_before = _store(context, list(new.values())) if new else (set(), {})
    if results:
        results |= _known(context, events, list(results))
    if new:
        crash_point("intake.after_commit")
    for place, order in new.items():
        if order.external_id in fresh:
            fresh.discard(order.external_id)  # the second of two in one call is a repetition
            status = OrderStatus.RECEIVED
            results[place] = Received(order.external_id, order.account, status, is_new=True)
        else:
            results[place] = _answer(context, events[place], known_before[order.external_id])
    return [results[place] for place in range(len(events))]


def _known(
    context: Context, events: Sequence[CheckoutEvent], places: Sequence[int]
) -> dict[int, Received]:
    """Answer repetitions of what was taken in while their account or route was configured."""
    with context.database.transaction() as session:
        found = orders.find(session, [events[place].external_id for place in places])
    results = {}
    for place in places:
        order = found.get(events[place].external_id)
        if order is not None:
            answer = _answer(context, events[place], order)
            if answer.error is None:
                results[place] = answer
    return results


@repeated
def _store(context: Context, new: Sequence[NewOrder]) -> tuple[set[str], Mapping[str, Order]]:
    """Insert what is new; give its external ids, and by them the orders that the others repeat."""
    now = context.now()
    crash_point("intake.before_commit")
    while True:
        assumed = context.told_from
        with context.database.statement() as session:
            inserted, told_from = orders.insert(session, new, now, assumed)
        if told_from == assumed:
            break
        context.told_from = told_from  # there was a restore: nothing was inserted
    if len(inserted) == len(new):
        return inserted, {}
    with context.database.statement() as session:
        return inserted, orders.find(session, [order.external_id for order in new])


def _content(event: CheckoutEvent) -> bytes:
    return msgspec.json.encode(event.content(), order="sorted")


def _accounts(context: Context, event: CheckoutEvent) -> tuple[str, ...]:
    """Give the accounts that may buy, in the order in which they are tried. Raises InvalidInput."""
    settings = context.settings
    if event.account in settings.accounts:
        return (event.account,)
    if event.account not in settings.routes:
        known = ", ".join(sorted(settings.accounts) + sorted(settings.routes))
        raise InvalidInput("account", f"expected one of {known}")
    if event.market_hash_name is None:
        raise InvalidInput("marketHashName", "expected the item's name, by which a route buys")
    return settings.routes[event.account]


def _new_order(context: Context, event: CheckoutEvent, latest: datetime) -> NewOrder:
    """Write the order of a checkout. Raises InvalidInput."""
    account, *fallbacks = _accounts(context, event)
    return NewOrder(
        external_id=event.external_id,
        account=account,
        route=None if event.account in context.settings.accounts else event.account,
        fallbacks=fallbacks,
        fingerprint=context.seal.fingerprint(_content(event)),
        catalog_item_id=event.catalog_item_id,
        market_hash_name=event.market_hash_name,
        expected_price_cents=event.expected_price,
        trade_url_sealed=context.seal.seal(event.trade_url.encode()),
        submit_by=event.submit_by or latest,
    )


def _answer(context: Context, event: CheckoutEvent, order: Order) -> Received:
    try:
        is_same = _is_same(context, event, order)
    except KeyMissing as error:  # of this one nothing can be told
        log.error("intake.key_missing", order_id=event.external_id, reason=str(error))
        return Received(event.external_id, error=error)
    if not is_same:
        return Received(event.external_id, error=CheckoutConflict(event.external_id))
    return Received(event.external_id, order.account, order.status)


def _is_same(context: Context, event: CheckoutEvent, order: Order) -> bool:
    if order.trade_url_sealed is None and not context.seal.knows_key_of(order.fingerprint):
        return False  # long over and erased, its key dropped: it cannot be told, nor bought again
    return context.seal.matches(order.fingerprint, _content(event))


def receive_raw(context: Context, raws: Sequence[Any]) -> list[Received]:
    """Validate and store checkouts of which each stands for itself: a bad one fails alone."""
    events: dict[int, CheckoutEvent] = {}
    results: dict[int, Received] = {}
    for place, raw in enumerate(raws):
        try:
            events[place] = parse_event(raw)
        except InvalidInput as error:
            results[place] = Received(_id_of(raw), error=error)
    results.update(zip(events, _receive_apart(context, list(events.values())), strict=True))
    return [results[place] for place in range(len(raws))]


#: What a checkout may break by what it says; all else says nothing of it.
_OF_ONE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def _receive_apart(context: Context, events: Sequence[CheckoutEvent]) -> list[Received]:
    """Take checkouts in; one that we fail at, by a bug, is refused and stops no other.

    Where it is the database that says no, or memory that lacks, all of them are kept for later.
    """
    try:
        return receive(context, events)
    except Exception as error:
        is_of_one = isinstance(error, _OF_ONE) and not isinstance(error, FulfillmentError)
        if not is_of_one and not is_about_data(error):
            raise
        if len(events) > 1:
            middle = len(events) // 2
            halves = (events[:middle], events[middle:])
            return [each for half in halves for each in _receive_apart(context, half)]
        (event,) = events
        backstop.set_aside(event.external_id, error)
        reason = f"we fail at this checkout ({type(error).__name__}); it is not taken in"
        return [Received(event.external_id, error=InvalidInput(None, reason))]


def receive_bodies(context: Context, bodies: Sequence[bytes]) -> list[Received]:
    """Read and store checkouts, one a body, of which each stands for itself."""
    raws: dict[int, Any] = {}
    results: dict[int, Received] = {}
    for place, body in enumerate(bodies):
        try:
            raws[place] = parse_json(body)
        except InvalidInput as error:
            results[place] = Received(None, error=error)
    results.update(zip(raws, receive_raw(context, list(raws.values())), strict=True))
    return [results[place] for place in range(len(bodies))]


def _id_of(raw: Any) -> str | None:
    found = raw.get("externalId") if isinstance(raw, Mapping) else None
    return found[:64] if isinstance(found, str) else None


def note_not_put_aside(context: Context) -> None:
    """Keep that what could not be taken in was put back just now. Raises ServerUnreachable."""
    if pulse.is_due(context, pulse.NOT_PUT_ASIDE):
        with context.database.statement() as session:
            pulse.beat_seldom(context, session, pulse.NOT_PUT_ASIDE)


def new_accounts(results: Sequence[Received]) -> list[str]:
    """Name the accounts that have something new to dispatch."""
    return sorted({r.account for r in results if r.is_new and r.account})
