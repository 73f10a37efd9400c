"""Skinslink's JSON (contracts/skinslink.md) as typed values: amounts exact or refused.

Fields without a value are left out. An unknown status word is never taken for success.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from fulfillment.providers import reading
from fulfillment.providers.http import BOM, Unusable, read_json
from fulfillment.providers.reading import (
    WORD_LENGTH,
    Listed,
    balance_in_dollars,
    clean,
    code_word,
    decode_listed,
    dollars,
    instant,
    is_priced,
    item_asked_for,
    item_told,
    number,
    order_id,
    partner_of_steam_id,
    recipient,
)
from schemas.enums import FailureCode
from schemas.money import MILLS_PER_DOLLAR
from schemas.provider import OrderReport, PurchaseCommand, Quote, Quotes, ReportState, Want

GAME = "csgo"  # their word for CS2
NO_PRICE = msgspec.Raw(b"null")
TOKEN = re.compile(r"[A-Za-z0-9_-]{8}")
#: An item's own id, a Steam asset id or lower-case hex; other `catalogItemId`s stand for a name.
ASSET_ID = re.compile(r"[0-9a-f]{1,300}")
STATES = {
    # Skinslink's word -> ours
    "new": ReportState.ACCEPTED,
    "pending": ReportState.PENDING,
    "active": ReportState.SENT,
    # In Steam's hold the recipient has the item already; `completed` is the settled end.
    "hold": ReportState.COMPLETED,
    "completed": ReportState.COMPLETED,
    "failed": ReportState.FAILED,
    "canceled": ReportState.CANCELLED,
    "reverted": ReportState.REVERSED,
}
SETTLED = "completed"
HOLD = "hold"
FAILED = "failed"
DUPLICATE = "duplicate_purchase"
FAILURES = {
    # fail_reason -> our code
    "insufficient_balance": FailureCode.INSUFFICIENT_FUNDS,
    "price_changed": FailureCode.PRICE_CHANGED,
    "item_not_available": FailureCode.ITEM_UNAVAILABLE,
    "item_specified_price_not_found": FailureCode.PRICE_CHANGED,
    "item_sold": FailureCode.ITEM_UNAVAILABLE,
    "provider_unavailable": FailureCode.PROVIDER_UNAVAILABLE,
}
VALIDATION = {
    # code of a `validation error` -> our code
    "trade_link_revoked": FailureCode.INVALID_TRADE_URL,
    "trade_link_invalid": FailureCode.INVALID_TRADE_URL,
    "trade_banned": FailureCode.RECIPIENT_CANNOT_TRADE,
    "profile_private": FailureCode.RECIPIENT_CANNOT_TRADE,
    "limited_account": FailureCode.RECIPIENT_CANNOT_TRADE,
    "hold": FailureCode.RECIPIENT_CANNOT_TRADE,
    "permissions": FailureCode.RECIPIENT_CANNOT_TRADE,
    "hold_and_permissions": FailureCode.RECIPIENT_CANNOT_TRADE,
}
VALIDATION_ERROR = "validation error"
#: The messages of HTTP 400 by which the contract says that nothing was created (section 7).
REFUSALS = {VALIDATION_ERROR, "invalid request body", "invalid game code"}


class Row(msgspec.Struct, gc=False):
    """One listed item; the price is read from its own text, and only where it is wanted."""

    name: str
    price: msgspec.Raw = NO_PRICE
    id: str | int | None = None


class Items(msgspec.Struct):
    items: list[msgspec.Raw] | None = None  # left out of a search that finds nothing


class Listing(msgspec.Struct):
    success: bool
    data: Items


@dataclass(frozen=True, slots=True)
class Problem:
    """An error envelope: its message, and the codes of its details."""

    message: str
    codes: tuple[str, ...] = ()


def write_purchase(command: PurchaseCommand) -> bytes:
    """Write a purchase by the item's id, or by its name. Raises ValueError for no price."""
    if command.price_mills <= 0:
        raise ValueError("expected a price above zero")
    fields: dict[str, Any] = {**recipient(command.trade_url), "game": GAME}
    asset_id = asset_id_of(command.catalog_item_id, command.market_hash_name)
    if asset_id is not None:
        fields["asset_id"] = asset_id
    else:
        fields["name"] = command.market_hash_name or command.catalog_item_id
    fields["max_price"] = msgspec.Raw(price_text(command.price_mills).encode())
    return msgspec.json.encode({**fields, "merchant_tx_id": command.external_id})


def asset_id_of(catalog_item_id: str, market_hash_name: str | None) -> str | None:
    """Give the item's own id; None where the item is meant by its name."""
    is_id = ASSET_ID.fullmatch(catalog_item_id) and catalog_item_id != market_hash_name
    return catalog_item_id if is_id else None


def name_of(want: Want) -> str:
    return want.market_hash_name or want.catalog_item_id


def price_text(mills: int) -> str:
    """Write mills as a decimal number of dollars."""
    whole, rest = divmod(mills, MILLS_PER_DOLLAR)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def read_envelope(body: bytes) -> dict[str, Any] | Problem | None:
    """Read a success's data, or the problem; None for a success without data. Raises Unusable."""
    document = read_json(body)
    if not isinstance(document, dict) or not isinstance(document.get("success"), bool):
        raise Unusable("expected an envelope that says success or not")
    data = document.get("data")
    if document["success"]:
        if not data and not isinstance(data, str):
            return None
        if not isinstance(data, dict):
            raise Unusable("expected data of fields")
        return data
    message = document.get("message")
    if not isinstance(message, str):
        raise Unusable("expected an error with a message")
    details = data if isinstance(data, list) else []
    codes = (each.get("code") for each in details if isinstance(each, dict))
    # Only words, and never the message itself: it may quote what was sent.
    return Problem(message.strip().lower(), tuple(filter(None, map(code_word, codes))))


def read_listing(body: bytes, names: Sequence[str], listed: Listed) -> None:
    """Add the wanted names of one search's answer to `listed`. Raises Unusable."""
    try:
        listing = decode_listed(body.removeprefix(BOM), Listing)
    except (msgspec.DecodeError, RecursionError):
        raise Unusable("expected a list of items") from None
    if not listing.success:
        raise Unusable("expected a successful search")
    items = listing.data.items or []
    wanted, is_any_usable = set(names), False
    for raw in items:
        with suppress(msgspec.DecodeError, RecursionError):
            row = decode_listed(raw, Row)
            listed.size += 1
            if row.name in wanted:
                listed.add(None if row.id is None else str(row.id), row.name, bytes(row.price))
            is_any_usable = is_any_usable or is_priced(bytes(row.price))
    if items and not is_any_usable:
        raise Unusable("expected items with a price, found none")


def quotes(wants: Sequence[Want], listed: Listed) -> Quotes:
    """Price the wants: by id where the id is an item's, else the cheapest of the name."""
    found, dearer, unclear = {}, {}, {}
    count = Counter(map(name_of, wants))
    for want in dict.fromkeys(wants):
        name = name_of(want)
        item_id = item_asked_for(want, listed.by_id)
        asset_id = asset_id_of(item_id, want.market_hash_name)
        # A name's lowest price may have come from a row that another contradicts.
        if why := listed.why_unclear(asset_id or name, name):
            unclear[want] = why
        elif asset_id is None:
            if offers := listed.cheapest(name, name, count[name]):
                found[want], *dearer[want] = offers
        elif asset_id in listed.by_id:
            named, price = listed.by_id[asset_id]
            # An id under another name is another item.
            if price is not None and named == name:
                found[want] = Quote(item_id, name, price)
    return Quotes(found, listed.size, unclear, dearer=dearer)


def read_wallet(data: Mapping[str, Any]) -> int:
    """Read the spendable balance in mills. Raises Unusable."""
    return balance_in_dollars(data.get("available"))


def read_purchase(data: Mapping[str, Any], external_id: str) -> OrderReport:
    """Read what was said about this order. Raises Unusable, also for an inexact amount."""
    if order_id(data.get("merchant_tx_id")) != external_id:
        raise Unusable("expected this order, found another merchant_tx_id or none")
    word = data.get("status")
    if not isinstance(word, str):
        raise Unusable("expected a status")
    amount = data.get("amount")
    report = OrderReport(
        external_id=external_id,
        state=STATES.get(word, ReportState.UNKNOWN),
        raw_status=clean(word, WORD_LENGTH) or "",
        charged_mills=None if amount is None else dollars(amount),
        steam_offer_id=number(data.get("trade_offer_id")),
        reversible_until=instant(data.get("hold_end_date")) if word == HOLD else None,
        provider_reference=number(data.get("id")),
        is_settled=word == SETTLED,
        is_held=True if word == HOLD else None,
        **item_told(data.get("item")),
        partner=partner_of_steam_id(data.get("steam_id")),
    )
    return _with_failure(report, data.get("fail_reason")) if word == FAILED else report


def _with_failure(report: OrderReport, fail_reason: object) -> OrderReport:
    reason = clean(fail_reason, WORD_LENGTH)
    if reason == DUPLICATE:
        # Says that another purchase has this order's id, not that the order failed (section 8).
        raw = f"{report.raw_status}: {DUPLICATE}"
        return replace(report, state=ReportState.UNKNOWN, raw_status=raw, charged_mills=None)
    code = FAILURES.get(reason or "")
    alarm = None if code else f"unknown fail_reason {reason!r}"
    return replace(report, failure_code=code or reason, failure_message=reason, alarm=alarm)


def unreadable(data: Mapping[str, Any], external_id: str, why: str) -> OrderReport | None:
    """Tell of this order's purchase that cannot be read; None where it is about another order."""
    if order_id(data.get("merchant_tx_id")) != external_id:
        return None
    return reading.unreadable(external_id, data.get("status"), why)
