"""Webhooks: verified on the raw bytes, stored once, answered at once, applied later."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from sqlmodel import Session

from fulfillment.errors import ConfigurationError, ProviderError
from fulfillment.log import get_logger
from fulfillment.providers.base import is_fresh
from fulfillment.services.context import Context
from fulfillment.services.reconciliation import webhook_heartbeat
from fulfillment.services.reports import apply_reports, stray
from fulfillment.store import due, inbox, leases, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.models import Order
from schemas.enums import Source
from schemas.provider import OrderReport, WebhookNotice

log = get_logger(__name__)

MAX_WEBHOOK_BYTES = 64 * 1024
_CLAIM_LIMIT = 200


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


def take(context: Context, account: str, headers: Mapping[str, str], body: bytes) -> Taken:
    """Verify and store one delivery.

    Raises WebhookRejected (nothing is stored), ConfigurationError for an account that is not set,
    ServerUnreachable.
    """
    notice = context.provider(account).read_webhook(headers, body)
    now = context.now()
    fresh = is_fresh(notice.signed_at, now, context.settings.webhook_tolerance_s)
    # Without a fresh signed time the bytes may be a replay: then the order is asked about instead.
    report = _encode(notice) if fresh else None
    with context.database.transaction() as session:
        order = _find(session, account, notice)
        if order is None:
            return Taken(Verdict.UNKNOWN_ORDER)
        digest = _digest(notice, body)
        delivery_id = inbox.add(session, account, order.id, digest, notice.signed_at, report, now)
        leases.beat(session, webhook_heartbeat(account), now)
    verdict = Verdict.STORED if delivery_id else Verdict.KNOWN
    return Taken(verdict, delivery_id, order.external_id)


def _find(session: Session, account: str, notice: WebhookNotice) -> Order | None:
    """Find the account's order: by the provider's own id of it, which is what some sign alone.

    An order that went on to another account is found at each that it was tried at.
    """
    if notice.provider_reference is not None:
        order = orders.find_by_reference(session, account, notice.provider_reference)
        if order is not None:
            return order
    order = orders.find(session, [notice.external_id]).get(notice.external_id)
    if order is None or order.account == account:
        return order
    return order if ledger.is_tried(session, account, order.external_id) else None


def _encode(notice: WebhookNotice) -> str | None:
    return msgspec.json.encode(notice.report).decode() if notice.report else None


def _digest(notice: WebhookNotice, body: bytes) -> str:
    """Identify the signed bytes; the delivery id is outside the signature (K1)."""
    if notice.identity is not None:
        return hashlib.sha256(notice.identity.encode()).hexdigest()
    signed_at = notice.signed_at.isoformat() if notice.signed_at else ""
    return hashlib.sha256(signed_at.encode() + b"." + body).hexdigest()


def apply_deliveries(context: Context, delivery_id: int | None = None) -> list[str]:
    """Apply the named delivery, or all that are due; give the orders that they were about."""
    now = context.now()
    with context.database.transaction() as session:
        claimed = inbox.claim(session, delivery_id, now, now + context.lease, _CLAIM_LIMIT)
    names = []
    for claimed_id, account, order_id, raw in claimed:
        report = (
            msgspec.convert(raw, OrderReport) if raw else _ask_if_left(context, account, order_id)
        )
        names.append(_apply(context, claimed_id, account, order_id, report))
    return names


def _ask_if_left(context: Context, account: str, order_id: int) -> OrderReport | None:
    """Ask an account that the order went on from: what it only hinted at is polled nowhere else."""
    with context.database.transaction() as session:
        (order,) = orders.get(session, [order_id])
    if order.account == account or account not in context.settings.accounts:
        return None
    try:
        with context.budget(account).take(Purpose.POLL):
            return context.provider(account).reports([order.external_id]).get(order.external_id)
    except ProviderError as error:
        log.warning("webhook.not_asked", order_id=order.external_id, reason=str(error))
        return None


def _apply(
    context: Context, delivery_id: int, account: str, order_id: int, report: OrderReport | None
) -> str:
    now = context.now()
    with context.database.transaction() as session:
        locked = orders.lock(session, [order_id])
        if locked[0].account != account:
            move = stray(locked[0], account, report, Source.WEBHOOK)
            orders.apply(session, [move], now)
            outcome = "not applied; the order went on to another account"
        elif report is None:
            due.poll_at(session, [order_id], now, context.settings.poll_min_interval_s)
            outcome = "not applied; the order is polled"
        else:
            moved = apply_reports(
                context, session, account, {order_id: report}, Source.WEBHOOK, locked=locked
            )
            outcome = "applied" if moved else "nothing new"
        inbox.mark_applied(session, {delivery_id: outcome}, now)
    return locked[0].external_id


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
