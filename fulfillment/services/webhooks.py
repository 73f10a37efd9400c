"""Webhooks: verified on the raw bytes, stored once, answered at once, applied later."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec

from fulfillment.crash import crash_point
from fulfillment.errors import ConfigurationError, ProviderError
from fulfillment.log import get_logger
from fulfillment.providers.base import is_fresh
from fulfillment.services import backstop, clock_guard, pulse, schedule
from fulfillment.services.context import Context
from fulfillment.services.merchants import is_strange
from fulfillment.services.news import heard, is_anybodys
from fulfillment.services.reconciliation import webhook_heartbeat
from fulfillment.services.reports import apply_reports, strays
from fulfillment.store import due, inbox, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.inbox import Delivery
from fulfillment.store.models import Move, Order
from schemas.enums import Source
from schemas.messages import NEEDS_REVIEW
from schemas.provider import OrderReport, WebhookNotice

log = get_logger(__name__)

MAX_WEBHOOK_BYTES = 64 * 1024
_CLAIM_LIMIT = 200
#: So many questions may one account leave without an answer, of those that are claimed together.
_MOST_FAILED = 3


class Verdict(StrEnum):
    """What became of a delivery with a good signature; all of them are answered 2xx."""

    STORED = "stored"
    KNOWN = "known"  # exactly these signed bytes came before
    UNKNOWN_ORDER = "unknown_order"


@dataclass(frozen=True, slots=True)
class Taken:
    """The verdict, and the inbox row to apply where one was stored."""

    verdict: Verdict
    delivery_id: int | None = None
    external_id: str = ""


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A claimed row of the inbox; `report` None: its order is only to be asked about."""

    id: int
    account: str
    order_id: int
    report: OrderReport | None
    #: The account was asked for it just now, and knew nothing.
    is_denied: bool = False


_EARLY = "not applied; the order is looked for before it is bought"
_STRAY = "not applied; the order is at another account"
_GONE = "not applied; the account is not configured any more"
_STRANGE = "not applied; the account is another merchant's than when the order was begun"


def take(context: Context, account: str, headers: Mapping[str, str], body: bytes) -> Taken:
    """Verify and store one delivery.

    Raises WebhookRejected (nothing is stored), ConfigurationError for an account that is not set,
    ServerUnreachable, WrongClock.
    """
    notice = context.provider(account).read_webhook(headers, body)
    clock_guard.check(context)  # when it is applied goes by it
    return _keep(context, account, notice, _digest(notice, body))


@repeated
def _keep(context: Context, account: str, notice: WebhookNotice, digest: str) -> Taken:
    now = context.now()
    fresh = is_fresh(notice.signed_at, now, context.settings.webhook_tolerance_s)
    # Without a fresh signed time the bytes may be a replay: then the order is asked about instead.
    report = _encode(notice) if fresh else None
    delivery = Delivery(account, digest, notice.signed_at, report, now)
    heartbeat = webhook_heartbeat(account)
    # An old one, or one that is known, may be repeated by who holds back the others.
    beats = fresh or notice.signed_at is None
    external_id, delivery_id = notice.external_id, None
    if notice.provider_reference is None and not (beats and pulse.is_due(context, heartbeat)):
        with context.database.statement() as session:
            delivery_id = inbox.add_by_name(session, external_id, delivery)
    if delivery_id is None:
        with context.database.transaction() as session:
            order = _find(session, account, notice)
            if order is None:
                return Taken(Verdict.UNKNOWN_ORDER)
            external_id = order.external_id
            delivery_id = inbox.add(session, order.id, delivery)
            if delivery_id is not None and beats:
                pulse.beat_seldom(context, session, heartbeat)
            if delivery_id is None and notice.identity is not None and order.account == account:
                # What it says is not signed: somebody may have said it before it was true.
                delivery_id = inbox.add_again(session, account, digest, now)
            crash_point("webhook.before_commit")
    crash_point("webhook.after_commit")
    verdict = Verdict.STORED if delivery_id else Verdict.KNOWN
    return Taken(verdict, delivery_id, external_id)


def _find(session: Session, account: str, notice: WebhookNotice) -> Order | None:
    """Find the account's order: by the provider's own id of it, which is what some sign alone.

    An order that went on to another account is found at each that it was tried at; and where our
    rows lack that it did, at each that it may go on to.
    """
    if notice.provider_reference is not None:
        order = orders.find_by_reference(session, account, notice.provider_reference)
        if order is not None:
            return order
    order = orders.find(session, [notice.external_id]).get(notice.external_id)
    if order is None or order.account == account:
        return order
    is_its = account in order.fallbacks or ledger.is_tried(session, account, order.external_id)
    return order if is_its else None


def _encode(notice: WebhookNotice) -> str | None:
    return msgspec.json.encode(notice.report).decode() if notice.report else None


def _decode(raw: Mapping[str, Any]) -> OrderReport | None:
    """Read a stored report; None, to ask instead, where another version wrote it."""
    try:
        return msgspec.convert(raw, OrderReport)
    except msgspec.ValidationError:
        return None


def _digest(notice: WebhookNotice, body: bytes) -> str:
    """Identify the signed bytes; the delivery id is outside the signature (K1)."""
    if notice.identity is not None:
        return hashlib.sha256(notice.identity.encode()).hexdigest()
    signed_at = notice.signed_at.isoformat() if notice.signed_at else ""
    return hashlib.sha256(signed_at.encode() + b"." + body).hexdigest()


def apply_deliveries(context: Context) -> list[str]:
    """Apply what is due, in the order of arrival; give the orders that it was about.

    Deliveries of different orders share a transaction; of one order each has its own. What an
    account is to be asked about first holds up no other order.
    """
    now = context.now()
    with context.database.transaction() as session:
        claimed = inbox.claim(session, now, now + context.lease, _CLAIM_LIMIT)
    crash_point("inbox.claimed", claimed)
    in_question = {order_id for _, _, order_id, raw in claimed if raw is None}
    plain = [
        _Delivery(delivery_id, account, order_id, _decode(raw))
        for delivery_id, account, order_id, raw in claimed
        if raw is not None and order_id not in in_question
    ]
    names = _apply_each(context, plain)
    failed: Counter[str] = Counter()
    asked: list[_Delivery] = []
    until_s = context.clock.monotonic() + context.lease.total_seconds() / 2
    for delivery_id, account, order_id, raw in claimed:
        if order_id not in in_question:
            continue
        if raw is not None:
            asked.append(_Delivery(delivery_id, account, order_id, _decode(raw)))
            continue
        is_late = context.clock.monotonic() >= until_s
        may_ask = failed[account] < _MOST_FAILED and not is_late
        hint = _Delivery(delivery_id, account, order_id, None)
        if (found := _looked_into(context, hint, failed, may_ask=may_ask)) is not None:
            asked.append(found)
    return names + _apply_each(context, asked)


def _apply_each(context: Context, deliveries: Sequence[_Delivery]) -> list[str]:
    names: list[str] = []
    while deliveries:
        first_of = {each.order_id: each for each in reversed(deliveries)}
        applied = backstop.apart(
            partial(_apply, context), list(first_of.values()), lambda d: f"#{d.order_id}"
        )
        names += itertools.chain.from_iterable(applied)
        deliveries = [each for each in deliveries if each is not first_of[each.order_id]]
    return names


def _looked_into(
    context: Context, hint: _Delivery, failed: Counter[str], *, may_ask: bool
) -> _Delivery | None:
    """Ask an account that the order is not at: what it only hinted at is polled nowhere else.

    Give the delivery with what it says; count in `failed` who gives no answer. Where it may not be
    asked, the hint stays due for a lease (None), unless something could be bought meanwhile: that
    is known at once, asked or not.
    """
    account = hint.account
    with context.database.transaction() as session:
        (order,) = orders.get(session, [hint.order_id])
        attempts = {} if may_ask else ledger.attempts_of(session, [hint.order_id])
    if order.account == account or account not in context.settings.accounts:
        return hint
    if not may_ask:
        return hint if order.is_surely_unsent(attempts.get(order.id)) else None
    try:
        with context.budget(account).take(Purpose.POLL):
            ask = partial(context.provider(account).reports, [order.external_id])
            report = backstop.read(ask, order.external_id).get(order.external_id)
            return replace(hint, report=report, is_denied=report is None)
    except (ProviderError, ConfigurationError) as error:
        failed[account] += 1
        log.warning("webhook.not_asked", order_id=order.external_id, reason=str(error))
        return hint


@repeated
def _apply(context: Context, deliveries: Sequence[_Delivery]) -> list[str]:
    """Apply deliveries, each about another order; give the orders' names."""
    now = context.now()
    by_order = {each.order_id: each for each in deliveries}
    with context.database.transaction() as session:
        locked = orders.lock(session, list(by_order))
        left = [order for order in locked if order.account != by_order[order.id].account]
        of_left = [(o, by_order[o.id].account, by_order[o.id].report) for o in left]
        denied = {o.id for o in left if by_order[o.id].is_denied}
        noted = strays(context, session, of_left, Source.WEBHOOK, now, denied)
        orders.apply(session, noted, now)
        gone = [o for o in locked if o.account not in context.settings.accounts and o not in left]
        attempts = ledger.attempts_of(session, [order.id for order in locked])
        strange = [
            order
            for order in locked
            if order not in left
            and order not in gone
            and is_strange(context, order.account, attempts.get(order.id))
        ]
        apart = {order.id for order in (*left, *gone, *strange)}
        present = [order for order in locked if order.id not in apart]
        asked = [order.id for order in present if by_order[order.id].report is None]
        # Of an order that has ended too: what is hinted at then is money that we know nothing of.
        early = [
            order
            for order in present
            if order.id in asked and order.is_surely_unsent(attempts.get(order.id))
        ]
        hints = [_hinted_early(context, order, now) for order in early]
        orders.apply(session, [move for move in hints if move], now)
        hinted = [order_id for order_id in asked if order_id not in {order.id for order in early}]
        gap = schedule.gap_before_news(context).total_seconds()
        due.poll_at(session, hinted, now, gap, is_asked_for=True)
        moved: dict[int, Order] = {}
        for account in {order.account for order in present}:
            told = [o for o in present if o.account == account and o.id not in asked]
            reports = {o.id: report for o in told if (report := by_order[o.id].report)}
            moved |= apply_reports(context, session, account, reports, Source.WEBHOOK, locked=told)
        outcomes = {each.id: _outcome(each, moved) for each in deliveries}
        outcomes |= {by_order[order.id].id: _EARLY for order in early}
        outcomes |= {by_order[order.id].id: _STRAY for order in left}
        outcomes |= {by_order[order.id].id: _GONE for order in gone}
        outcomes |= {by_order[order.id].id: _STRANGE for order in strange}
        inbox.mark_applied(session, outcomes, now)
        if late := [by_order[o.id].id for o in locked if o.trade_url_sealed is None]:
            inbox.erase_reports(session, late)
        crash_point("inbox.before_commit")
    crash_point("inbox.after_commit")
    return [order.external_id for order in locked]


def _hinted_early(context: Context, order: Order, now: datetime) -> Move | None:
    changes = heard(context, order, order.account, now)
    if not changes:
        return None
    note = "the provider has news of an order that was never submitted"
    is_alarm = not is_anybodys(context, order.account)
    if is_alarm:
        log.warning("order.alarm", order_id=order.external_id, note=note)
    tell = (NEEDS_REVIEW,) if is_alarm else ()
    return Move(order.id, order.status, order.status, Source.WEBHOOK, note, changes, tell=tell)


def _outcome(delivery: _Delivery, moved: Mapping[int, Order]) -> str:
    if delivery.report is None:
        return "not applied; the order is polled"
    return "applied" if delivery.order_id in moved else "nothing new"


def is_known_account(context: Context, account: str) -> bool:
    """Say whether the account is configured with what its webhooks need."""
    if account not in context.settings.accounts:
        return False
    try:
        context.provider(account)
    except ConfigurationError as error:
        log.error("webhook.account_not_usable", account=account, reason=str(error))
        return False
    return True
