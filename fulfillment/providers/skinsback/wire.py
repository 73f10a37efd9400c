"""SkinsBack's JSON (contracts/skinsback.md) as typed values: amounts exact or refused.

Numbers come as numbers or as text, errors inside HTTP 200. An unknown status word is never taken
for success.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec
from msgspec.structs import replace

from fulfillment.providers import reading
from fulfillment.providers.http import BOM, NotJSON, Unusable, read_json
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
    sensible,
)
from fulfillment.providers.signing import hmac_hex
from schemas.enums import FailureCode
from schemas.money import MILLS_PER_DOLLAR
from schemas.provider import OrderReport, PurchaseCommand, Quote, Quotes, ReportState, Want

GAME = "cs2"
#: A skin's own id; any other `catalogItemId` stands for a name.
SKIN_ID = re.compile(r"[1-9][0-9]{0,17}")
SHORTEST_NAME = 3
NO_PRICE = msgspec.Raw(b"null")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
STATES = {
    # SkinsBack's word -> ours
    "creating_trade": ReportState.ACCEPTED,
    "waiting_accept": ReportState.SENT,
    "accepted": ReportState.COMPLETED,
    "canceled": ReportState.CANCELLED,
    "timeout": ReportState.EXPIRED,
    "invalid_trade_token": ReportState.FAILED,
    "user_not_tradable": ReportState.FAILED,
    "trade_create_error": ReportState.FAILED,
    "rollback_user": ReportState.REVERSED,
    "rollback_supplier": ReportState.REVERSED,
}
FAILURES = {
    # `offer_status` or `error_reason` -> our code; the more exact `error_reason` counts first
    "invalid_trade_token": FailureCode.INVALID_TRADE_URL,
    "user_not_tradable": FailureCode.RECIPIENT_CANNOT_TRADE,
    "user_cant_trade": FailureCode.RECIPIENT_CANNOT_TRADE,
    "private_inventory": FailureCode.RECIPIENT_CANNOT_TRADE,
    "user_trade_ban": FailureCode.RECIPIENT_CANNOT_TRADE,
    "user_inventory_is_full": FailureCode.RECIPIENT_CANNOT_TRADE,
    "too_many_failed_attempts": FailureCode.RECIPIENT_CANNOT_TRADE,
    "skin_unavailable": FailureCode.ITEM_UNAVAILABLE,
    "trade_create_error": "trade_create_error",
}
UNFULFILLED = {ReportState.FAILED, ReportState.CANCELLED, ReportState.EXPIRED}
#: How far the sum taken from the balance may lie from the price before nobody believes it.
PLAUSIBLE_PERCENT = 5


class NothingUsable(Unusable):
    """A list of which no entry can be used, or none has a price."""

    is_outage = True


class Meaning(Enum):
    """What an error means, whichever method it answers."""

    DENIED = "the account is not accepted"
    AWAY = "nothing was done, and nothing is wrong with what was asked"
    TAKEN = "this custom_id was used before"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A definite no to one purchase."""

    code: FailureCode
    text: str


NOT_FOUND = ("offer_not_found", 2)
TOO_SHORT = ("name_min_length_3", 2)
#: The name, which counts first, and the code -> what it means.
Table = Mapping[tuple[str, int | None], Meaning | Refusal]
#: Of every method.
STANDARD: Table = {
    ("please_use_post_method", -1): Meaning.AWAY,
    ("invalid_shopid", -2): Meaning.DENIED,
    ("invalid_signature", -3): Meaning.DENIED,
    ("shop_not_active", -4): Meaning.DENIED,
    ("invalid_method", -5): Meaning.AWAY,
    ("market_disabled", -6): Meaning.AWAY,
    ("request_limit_reached", -7): Meaning.AWAY,
    ("invalid_ip_address", -8): Meaning.DENIED,
    ("under_maintenance", -9): Meaning.AWAY,
    ("invalid_client_secret", -10): Meaning.DENIED,
}
PURCHASE: Table = {
    **STANDARD,
    ("missing_name_and_id", 1): Refusal(FailureCode.REFUSED, "neither name nor id"),
    TOO_SHORT: Refusal(FailureCode.ITEM_UNAVAILABLE, "the name is too short"),
    ("missing_partner_or_token", 3): Refusal(
        FailureCode.INVALID_TRADE_URL, "partner or token is missing"
    ),
    ("insufficient_funds", 4): Refusal(
        FailureCode.INSUFFICIENT_FUNDS, "the project's balance is too low"
    ),
    ("skin_unavailable", 5): Refusal(FailureCode.ITEM_UNAVAILABLE, "the skin cannot be bought"),
    ("skins_not_found_at_specified_price", 6): Refusal(
        FailureCode.PRICE_CHANGED, "nothing at or below the price"
    ),
    ("custom_id_already_exists", 7): Meaning.TAKEN,
    # Its code is not known, so only the name is believed.
    ("invalid_partner_value", None): Refusal(FailureCode.INVALID_TRADE_URL, "the partner is wrong"),
}
RECIPIENT: Table = {
    **STANDARD,
    ("invalid_steam_id", 2): Refusal(
        FailureCode.INVALID_TRADE_URL, "the trade URL's partner is no Steam account"
    ),
    ("invalid_trade_token", 3): Refusal(
        FailureCode.INVALID_TRADE_URL, "the trade URL's token is wrong"
    ),
    ("user_not_tradable", 5): Refusal(
        FailureCode.RECIPIENT_CANNOT_TRADE, "the recipient may not trade"
    ),
    ("user_inventory_is_hidden", 6): Refusal(
        FailureCode.RECIPIENT_CANNOT_TRADE, "the recipient's inventory is hidden"
    ),
}
_TABLES: Mapping[str, Iterable[tuple[str, int | None]]] = {
    "market_buy": PURCHASE,
    "user_inventory": RECIPIENT,
    "market_getinfo": (*STANDARD, NOT_FOUND),
    "market_search": (*STANDARD, TOO_SHORT),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is no success: its code and name, None where it has none."""

    code: int | None
    name: str | None

    def __str__(self) -> str:
        return f"error {self.code} {self.name or ''}".rstrip()

    def is_about(self, name: str, code: int | None) -> bool:
        return self.name == name or (self.name is None and self.code == code is not None)

    def meaning(self, table: Table) -> Meaning | Refusal | None:
        """Look the problem up by its name, then by its code; None for one not in the table."""
        for (name, _), meaning in table.items():
            if name == self.name:
                return meaning
        return next((m for (_, code), m in table.items() if code == self.code is not None), None)


@dataclass(frozen=True, slots=True)
class Purchase:
    """One purchase as an answer tells of it."""

    report: OrderReport
    custom_id: str | None


class Row(msgspec.Struct, gc=False):
    """One listed skin; the price is read from its own text, and only where it is wanted."""

    name: str
    price: msgspec.Raw = NO_PRICE
    id: str | int | None = None


class Listing(msgspec.Struct):
    status: str
    items: list[Row]


class RawListing(msgspec.Struct):
    status: str
    items: list[msgspec.Raw]


def sign(fields: Mapping[str, Any], secret: str) -> str:
    """Sign a request's parameters (section 2.2); lists and objects are not covered."""
    text = "".join(
        f"{key}:{_printed(fields[key])};"
        for key in sorted(fields)
        if key != "sign" and not isinstance(fields[key], list | dict)
    )
    return hmac_hex(secret, text.encode(), "sha1")


def _printed(value: object) -> str:
    """Print a scalar as the server's PHP does."""
    if value is None or value is False:
        return ""
    if value is True:
        return "1"
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return str(value)


def write_request(method: str, **fields: Any) -> bytes:
    """Write the body of one request, compact."""
    return msgspec.json.encode({"method": method, **fields})


def signed(body: bytes, client_id: str, secret: str) -> bytes:
    """Add the project's id and the signature to a body."""
    fields = read_json(body)
    signature = sign(fields | {"shopid": client_id}, secret)
    added = msgspec.json.encode({"shopid": client_id, "sign": signature})
    # Put in before the last brace: what stands in the stored bytes stays as it is.
    return body.rstrip()[:-1] + b"," + added[1:]


def write_purchase(command: PurchaseCommand) -> bytes:
    """Write a purchase by the skin's id, or by its name. Raises ValueError for no price."""
    if command.price_mills <= 0:
        raise ValueError("expected a price above zero")
    to = recipient(command.trade_url)
    fields: dict[str, Any] = {"partner": str(to["partner"]), "token": to["token"]} if to else {}
    skin_id = skin_id_of(command.catalog_item_id)
    # A name of digits alone is no id.
    if skin_id is not None and skin_id != command.market_hash_name:
        fields["id"] = int(skin_id)
    else:
        fields |= {"name": command.market_hash_name or command.catalog_item_id, "game": GAME}
    fields["max_price"] = msgspec.Raw(price_text(command.price_mills).encode())
    return write_request("market_buy", **fields, custom_id=command.external_id)


def skin_id_of(catalog_item_id: str) -> str | None:
    """Give the skin's own id; None where the item is meant by its name."""
    return catalog_item_id if SKIN_ID.fullmatch(catalog_item_id) else None


def price_text(mills: int) -> str:
    """Write mills as the shortest decimal of dollars: the signature covers the digits as sent."""
    whole, rest = divmod(mills, MILLS_PER_DOLLAR)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def read_answer(body: bytes) -> dict[str, Any] | Problem:
    """Read an answer's fields, or its problem: `status` decides, not the HTTP code.

    Raises Unusable for what is neither.
    """
    document = read_json(body)
    if not isinstance(document, dict) or not isinstance(document.get("status"), str):
        raise Unusable("expected an object with a status")
    if document["status"] == "success":
        return document
    code = document.get("error_code")
    name = code_word(document.get("error_message"))
    with suppress(ValueError):
        return Problem(int(str(code)), name)
    if name is None:
        raise Unusable("expected an error with a code or a name")
    return Problem(None, name)


def name_of(want: Want) -> str:
    return want.market_hash_name or want.catalog_item_id


def is_answer(method: str, body: bytes) -> bool:
    """Say whether this is SkinsBack's own word about what was asked, whatever the HTTP code.

    It is a success, or an error that the method is documented to have. Of another one a 401 or 403
    is the only part that says anything.
    """
    with suppress(Unusable):
        answer = read_answer(body)
        return not isinstance(answer, Problem) or any(
            answer.is_about(*error) for error in _TABLES.get(method, STANDARD)
        )
    return False


def read_listing(body: bytes, wants: Sequence[Want], listed: Listed) -> Problem | None:
    """Add the wanted skins of a price list or a search to `listed`. Raises Unusable."""
    rows = _rows(body.removeprefix(BOM))
    if rows is None:
        answer = read_answer(body)
        if isinstance(answer, Problem):
            return answer
        raise NothingUsable("expected a list of items")
    ids = {id_ for want in wants if (id_ := skin_id_of(want.catalog_item_id))}
    names = set(map(name_of, wants))
    listed.size += len(rows)
    is_any_usable = False
    for row in rows:
        skin_id = number(row.id)
        if skin_id in ids or row.name in names:
            listed.add(skin_id, row.name, bytes(row.price))
        is_any_usable = is_any_usable or is_priced(bytes(row.price))
    if rows and not is_any_usable:
        raise NothingUsable("expected items with a price, found none")
    return None


def _rows(body: bytes) -> list[Row] | None:
    """Read the rows that are whole; None where there is no list of a successful answer."""
    try:
        listing: Listing | RawListing = decode_listed(body, Listing)
    except msgspec.ValidationError:
        try:  # some entry is odd: read each by itself
            listing = decode_listed(body, RawListing)
        except (msgspec.DecodeError, RecursionError):
            return None
    except (msgspec.DecodeError, RecursionError):
        raise NotJSON("expected a list in JSON") from None
    if listing.status != "success":
        return None
    if isinstance(listing, Listing):
        return listing.items
    rows = []
    for raw in listing.items:
        with suppress(msgspec.DecodeError, RecursionError):
            rows.append(decode_listed(raw, Row))
    if listing.items and not rows:
        raise NothingUsable("expected a list with usable entries, found none")
    return rows


def quotes(wants: Sequence[Want], listed: Listed) -> Quotes:
    """Price the wants: by id where the id is a skin's, else the cheapest of the name."""
    found, dearer, unclear = {}, {}, {}
    count = Counter(map(name_of, wants))
    for want in dict.fromkeys(wants):
        item_id = item_asked_for(want, listed.by_id)
        skin_id = skin_id_of(item_id)
        name = name_of(want)
        # A name's lowest price may have come from a row that another contradicts.
        if why := listed.why_unclear(skin_id or name, want.market_hash_name):
            unclear[want] = why
        elif skin_id is None:
            if offers := listed.cheapest(name, name, count[name]):
                found[want], *dearer[want] = offers
        elif skin_id in listed.by_id:
            named, price = listed.by_id[skin_id]
            # An id under another name is another item.
            if price is not None and want.market_hash_name in (None, named):
                found[want] = Quote(item_id, named, price)
    return Quotes(found, listed.size, unclear, dearer=dearer)


def is_available(fields: Mapping[str, Any]) -> bool:
    """Read whether the market says that it can be bought from."""
    return _flag(fields.get("available")) is True


def read_wallet(fields: Mapping[str, Any]) -> int:
    """Read the balance in mills where it says dollars. Raises Unusable.

    The bare `balance` may be in another currency (section 5.7): 75 times what is there.
    """
    currencies = fields.get("balance_in_currencies")
    if isinstance(currencies, dict) and currencies.get("usd") is not None:
        return balance_in_dollars(currencies["usd"])
    raise Unusable("expected balance_in_currencies.usd")


def read_purchase(row: Any) -> Purchase:
    """Read what was said about one purchase. Raises Unusable, also for an inexact amount."""
    if not isinstance(row, dict) or not isinstance(word := row.get("offer_status"), str):
        raise Unusable("expected a purchase with an offer_status")
    custom_id = custom_id_of(row)
    if custom_id is None and row.get("custom_id") is not None:
        raise Unusable("expected a custom_id that could be ours")
    item = row.get("item") if isinstance(row.get("item"), dict) else {}
    assert isinstance(item, dict)
    state = STATES.get(word, ReportState.UNKNOWN)
    charged, alarm = _charge(item.get("price"), row.get("balance_debited_sum"), state)
    is_held, until = _flag(row.get("in_hold")), _hold_end(row.get("in_hold_until"))
    report = OrderReport(
        external_id=custom_id or "",
        state=state,
        raw_status=word if word in STATES else clean(word, WORD_LENGTH) or "",
        charged_mills=charged,
        steam_offer_id=number(row.get("tradeofferid")),
        reversible_until=until if is_held is not False else None,
        provider_reference=number(row.get("buy_id")),
        is_held=is_held,
        alarm=alarm,
        **item_told(item),
        partner=partner_of_steam_id(row.get("steamid")),
    )
    if state in UNFULFILLED:
        report = _with_failure(report, word, row.get("error_reason"))
    return Purchase(report, custom_id)


def _with_failure(report: OrderReport, word: str, reason: object) -> OrderReport:
    reason = clean(reason, WORD_LENGTH)
    code = FAILURES.get(reason or word)
    alarm = report.alarm
    if reason and code is None:
        code, alarm = reason, f"unknown error_reason {reason!r}"
    message = f"{word}: {reason}" if reason else word
    return replace(report, failure_code=code, failure_message=message, alarm=alarm)


def _charge(price: object, debited: object, state: ReportState) -> tuple[int | None, str | None]:
    """Say what is booked: the sum taken from the balance, if it can be the price in dollars.

    A sum of 0 is not taken yet, or given back: nothing is told. The documentation's own examples
    have sums that can only be another currency (section 3). Then the price is booked, which is
    surely dollars, and a person is told; so also where the item was delivered for nothing.
    """
    price_mills = None if price is None else dollars(price)
    if debited is None or (type(debited) is type(price) and debited == price):
        return price_mills, None
    mills = dollars(debited)
    if mills == 0 and state is not ReportState.COMPLETED:
        return None, None
    if price_mills is None or abs(mills - price_mills) * 100 <= PLAUSIBLE_PERCENT * price_mills:
        return mills, None
    if state in UNFULFILLED:
        return price_mills, None  # nothing is booked
    alarm = (
        f"balance_debited_sum {price_text(mills)} is not believed beside the price "
        f"{price_text(price_mills)}, which is booked"
    )
    return price_mills, alarm


def _hold_end(value: object) -> datetime | None:
    """Read a time whose form and zone are not documented: ISO or UNIX seconds, UTC if it is bare.

    SkinsBack's home is east of Greenwich: read as UTC, a bare time is rather too late than early.
    """
    if value is None:
        return None
    with suppress(ValueError, OverflowError, OSError):
        if seconds := number(value):
            return sensible(datetime.fromtimestamp(int(seconds), UTC))
        if isinstance(value, str):
            bare = datetime.fromisoformat(value)
            return sensible(bare.replace(tzinfo=UTC)) if bare.tzinfo is None else instant(value)
    return None


def _flag(value: object) -> bool | None:
    """Read a bool that may be shown as 1, "1" or "true"."""
    if value is None or isinstance(value, bool):
        return value
    return _FLAGS.get(str(value).lower()) if type(value) in (int, str) else None


def unreadable(row: Any, custom_id: str, why: str) -> OrderReport:
    """Tell of a purchase that exists and cannot be read: nothing is concluded, a person is told."""
    word = row.get("offer_status") if isinstance(row, dict) else None
    return reading.unreadable(custom_id, word, why)


def custom_id_of(row: Any) -> str | None:
    """Give the row's own order id, None where it has none that could be ours."""
    return order_id(row.get("custom_id")) if isinstance(row, dict) else None
