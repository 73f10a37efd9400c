"""SkinsNode's JSON (contracts/skinsnode.md) as typed values: amounts exact or refused.

An unknown status word is never taken for success, and no trade URL gets out of here.
"""

import re
from collections.abc import Collection
from contextlib import suppress
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fulfillment.providers import reading
from fulfillment.providers.http import BOM, Unusable, read_json
from fulfillment.providers.reading import (
    LISTED_TWICE,
    MESSAGE_LENGTH,
    WORD_LENGTH,
    clean,
    decode_listed,
    instant,
    item_told,
    not_exact,
    number,
    partner_of_link,
)
from schemas.money import MAX_MILLS, MILLS_PER_CENT, InexactMoney, mills_from_cents
from schemas.provider import OrderReport, PurchaseCommand, ReportState

T = TypeVar("T")

CURRENCY = "USD"
STATES = {
    # SkinsNode's word -> ours
    "accepted": ReportState.ACCEPTED,
    "queued": ReportState.QUEUED,
    "processing": ReportState.PROCESSING,
    "pending": ReportState.PENDING,
    "sent": ReportState.SENT,
    "completed": ReportState.COMPLETED,
    "failed": ReportState.FAILED,
    "cancelled": ReportState.CANCELLED,
    "expired": ReportState.EXPIRED,
    "reversed": ReportState.REVERSED,
}
# Narrower than Decimal: no underscores, foreign digits or exponents that overflow, and few
# enough digits that Decimal arithmetic cannot round.
AMOUNT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,6})?([eE]\+?[0-9]{1,2})?")


class CatalogItem(msgspec.Struct, rename="camel", gc=False, frozen=True):
    """The four fields that a purchase needs; gc=False since no cycle can pass through them."""

    id: str
    market_hash_name: str
    price: Annotated[int, msgspec.Meta(gt=0, le=MAX_MILLS // MILLS_PER_CENT)]
    currency: Literal["USD"]


class OddItem(msgspec.Struct, rename="camel"):
    """An entry that has no exact price in dollars."""

    id: str
    market_hash_name: str
    price: msgspec.Raw = msgspec.Raw(b"null")
    currency: msgspec.Raw = msgspec.Raw(b"null")


class Catalog(msgspec.Struct):
    items: list[CatalogItem]


class RawCatalog(msgspec.Struct):
    items: list[msgspec.Raw]


class Wallet(msgspec.Struct, rename="camel"):
    available_balance: Any
    currency: str


class Pricing(msgspec.Struct):
    amount: Any = None
    currency: str | None = None


class Order(msgspec.Struct, rename="camel"):
    """One order as a submit's answer, a poll and a webhook write it: the same words, three sets."""

    external_id: str
    status: str
    accepted_at: Any = None  # submit
    steam_offer_id: Any = None  # poll, webhook
    timestamps: Any = None
    pricing: Pricing | None = None  # poll
    failure: Any = None
    trade_url: Any = None
    item: Any = None
    amount: Any = None  # webhook
    currency: str | None = None
    error: Any = None


def write_purchase(command: PurchaseCommand) -> bytes:
    """Write the five documented fields, compact and always in this order."""
    cents, rest = divmod(command.price_mills, MILLS_PER_CENT)
    if rest or cents <= 0:
        raise ValueError(f"expected a positive whole number of cents, found {rest} mills over")
    fields = {
        "catalogItemId": command.catalog_item_id,
        "expectedPrice": cents,
        "externalId": command.external_id,
        "webhookUrl": command.webhook_url,
        "tradeUrl": command.trade_url,
    }
    return msgspec.json.encode(fields)


def read_catalog(
    body: bytes, wanted: Collection[str], names: Collection[str] = ()
) -> tuple[dict[str, CatalogItem], int, dict[str, str]]:
    """Find the wanted ids, and all items of these names; say how many usable entries the list has.

    Given last are the ids and names of which nobody knows the price, and why: an id that stands
    twice with different content, and an entry without an exact price where no other gives it one.
    Raises Unusable for a list without a usable entry.
    """
    items, odd = _items(body.removeprefix(BOM))
    if not items:
        raise Unusable("expected a catalog with usable entries, found none")
    found: dict[str, CatalogItem] = {}
    ambiguous: set[str] = set()
    chosen = [item for item in items if item.id in wanted]
    if names:
        chosen += [item for item in items if item.market_hash_name in names]
    for item in chosen:
        known = found.setdefault(item.id, item)
        if known != item:
            both = {item.market_hash_name, known.market_hash_name}
            ambiguous |= {item.id, *(both & set(names))}
    clear = {id_: item for id_, item in found.items() if id_ not in ambiguous}
    unclear = dict.fromkeys(ambiguous, LISTED_TWICE)
    priced = {key for item in found.values() for key in (item.id, item.market_hash_name)}
    for entry in odd:
        for key in {entry.id, entry.market_hash_name} & {*wanted, *names} - priced:
            text = b"%b %b" % (bytes(entry.price), bytes(entry.currency))
            told = clean(text.decode(errors="replace"), WORD_LENGTH)
            unclear.setdefault(key, not_exact(told or ""))
    return clear, len(items), unclear


def _items(body: bytes) -> tuple[list[CatalogItem], list[OddItem]]:
    """Read the entries, and of those that cannot be read the ones that can be told apart."""
    try:
        return decode_listed(body, Catalog).items, []
    except msgspec.ValidationError:
        pass  # some entry is odd: read each by itself, which takes many times longer
    except (msgspec.DecodeError, RecursionError):
        raise Unusable("expected a catalog in JSON") from None
    try:
        entries = decode_listed(body, RawCatalog).items
    except (msgspec.DecodeError, RecursionError):
        raise Unusable("expected a catalog with a list of items") from None
    items, odd = [], []
    for raw in entries:
        if item := _item(bytes(raw)):
            items.append(item)
        else:
            with suppress(msgspec.DecodeError, RecursionError):
                odd.append(decode_listed(raw, OddItem))
    return items, odd


def _item(raw: bytes) -> CatalogItem | None:
    try:
        entry = read_json(raw)
        cents = mills(entry["price"], entry["currency"]) // MILLS_PER_CENT
        return _typed(entry | {"price": cents}, CatalogItem)
    except (Unusable, KeyError, TypeError):
        return None


def mills(amount: object, currency: object) -> int:
    """Read an amount of cents, a number or a string, never below zero. Raises Unusable."""
    text = str(amount) if type(amount) in (str, int, Decimal) else ""
    if currency == CURRENCY and AMOUNT.fullmatch(text):
        with suppress(InexactMoney):
            return mills_from_cents(text)
    raise Unusable("expected a whole number of US cents")


def read_wallet(body: bytes) -> int:
    """Read the spendable balance in mills. Raises Unusable."""
    wallet = _typed(read_json(body), Wallet)
    text = str(wallet.available_balance)
    if type(wallet.available_balance) in (str, int, Decimal) and text.startswith("-"):
        return -mills(text[1:], wallet.currency)  # overdrawn
    return mills(wallet.available_balance, wallet.currency)


def read_order(document: Any) -> OrderReport:
    """Read what was said about one order. Raises Unusable, also for an amount that is not exact."""
    order = _typed(document, Order)
    state = STATES.get(order.status, ReportState.UNKNOWN)
    price = order.pricing or Pricing(order.amount, order.currency)
    times = order.timestamps if isinstance(order.timestamps, dict) else {}
    reported_at = instant(times.get("updatedAt"))
    if state is ReportState.ACCEPTED and reported_at is None:
        reported_at = instant(order.accepted_at)  # a replay's later status has another time
    failure = order.failure if order.failure is not None else order.error
    if not isinstance(failure, dict):  # the webhook's shape is not documented
        failure = {"message": failure}
    token = _token_of(order.trade_url)
    return OrderReport(
        external_id=order.external_id,
        state=state,
        raw_status=clean(order.status, WORD_LENGTH, token) or "",
        charged_mills=None if price.amount is None else mills(price.amount, price.currency),
        steam_offer_id=number(order.steam_offer_id),
        failure_code=clean(failure.get("code"), WORD_LENGTH, token),
        failure_message=clean(failure.get("message"), MESSAGE_LENGTH, token),
        reported_at=reported_at,
        refunded_at=instant(times.get("refundedAt")),
        **item_told(order.item, "marketHashName"),
        partner=partner_of_link(order.trade_url),
    )


def unreadable(document: Any, external_id: str, why: str) -> OrderReport | None:
    """Tell of this order that cannot be read; None where it is about another order, or none."""
    if not isinstance(document, dict) or document.get("externalId") != external_id:
        return None
    token = _token_of(document.get("tradeUrl"))
    return reading.unreadable(external_id, clean(document.get("status"), WORD_LENGTH, token), why)


def _token_of(trade_url: object) -> str | None:
    match = re.search(r"[?&]token=([\w-]+)", str(trade_url))
    return match and match.group(1)


def _typed(document: Any, kind: type[T]) -> T:
    with suppress(msgspec.ValidationError, ValueError):
        return msgspec.convert(document, kind)
    raise Unusable(f"expected the fields of {kind.__name__}")
