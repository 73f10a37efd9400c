"""What adapters read of every provider alike: dollars, times, offer numbers, text fit to be kept.

Amounts are exact or refused, and no trade link and no secret of ours gets out of here.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from heapq import nsmallest
from typing import Any, TypedDict, TypeVar

import msgspec

from fulfillment.errors import ProviderRefused
from fulfillment.log import masked
from fulfillment.providers.http import Unusable, read_json
from schemas.checkout import trade_url_parts
from schemas.enums import FailureCode
from schemas.money import InexactMoney, mills_from_dollars
from schemas.provider import OrderReport, Quote, ReportState, Want

T = TypeVar("T")

STEAM = re.compile(r"(?i)steamcommunity\.com")
WORD = re.compile(r"\S+")
#: Steam's are eight characters long: also one that only stands behind the word.
TOKEN = re.compile(r"(?i)\btoken(\s?(=|:|%3D)\s?\S+|\W{1,3}[A-Z0-9_-]{8}\b)")
HIDDEN = "[removed]"
_AMOUNT = re.compile(rb'"?[0-9]{1,12}([.,][0-9]{1,20})?"?')
UNREADABLE = " (unreadable)"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
WORD_LENGTH = 64
ITEM_LENGTH = 300
MESSAGE_LENGTH = 200
#: No more of a text is looked at, be it as long as an answer may be.
_LOOKED_AT = 4000
_EARLIEST, _LATEST = 2000, 2100
# What intake lets through (DESIGN section 7): another id cannot be an order of ours.
EXTERNAL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: So many more of a name are told of than are wanted: others are buying three full batches at the
#: most, of the default size (services/dispatch.py).
SPARE = 256
LISTED_TWICE = "it is listed twice, with different content"
# A surrogate's escape with all backslashes before it: an even number of them escapes each other.
_HALF = re.compile(rb"(?<!\\)(\\++)u[dD][89a-fA-F][0-9a-fA-F]{2}")
_REPLACED = rb"\ufffd"
_MOST_HALVES = 10_000
_CODE_WORD = re.compile(r"[a-z0-9_]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,20}")
_STEAM_ID = re.compile(r"[0-9]{17}")
#: SteamID64 of the account with the number 0; a trade URL's `partner` is added to it.
STEAM_ID_BASE = 76561197960265728


def dollars(amount: object) -> int:
    """Read dollars, a JSON number or numeric text, as mills, never below zero. Raises Unusable."""
    mills = balance_in_dollars(amount)
    if mills < 0:
        raise Unusable("expected an amount of at least 0 dollars")
    return mills


def balance_in_dollars(amount: object) -> int:
    """Read dollars as mills; a balance may be overdrawn. Raises Unusable."""
    if type(amount) in (str, int, Decimal):
        with suppress(InexactMoney):
            return mills_from_dollars(str(amount))
    raise Unusable("expected an amount in dollars of at most three decimals")


def number(value: object) -> str | None:
    """Give a natural number, written as a number or as text, as text; None for anything else."""
    text = str(value) if type(value) in (str, int) else ""
    return text if text and _NUMBER.fullmatch(text) else None


def order_id(value: object) -> str | None:
    """Give an order id that could be ours, written as a number or as text, as text."""
    text = str(value) if type(value) in (str, int, Decimal) else ""
    return text if EXTERNAL_ID.fullmatch(text) else None


def clean(value: object, length: int, secret: str | None = None) -> str | None:
    """Make a provider's text fit to be kept: no trade link, no secret of ours, all storable."""
    if not isinstance(value, str):
        return None
    text = value[:_LOOKED_AT]
    if not text.isprintable():
        text = UNPRINTABLE.sub("", text)
    folded = text.casefold()
    if "steamcommun" in folded and STEAM.search(text):  # most texts are names, and looked at once
        # Word by word: one pattern with what stands before the host takes quadratic time.
        text = WORD.sub(lambda word: HIDDEN if STEAM.search(word[0]) else word[0], text)
    if "token" in folded:
        text = TOKEN.sub(HIDDEN, text)
    return masked(text.replace(secret, HIDDEN) if secret else text)[:length]


def code_word(value: object) -> str | None:
    """Give a provider's word for what is wrong; None for what is none, or a secret of ours."""
    is_word = isinstance(value, str) and _CODE_WORD.fullmatch(value)
    return str(value) if is_word and masked(str(value)) == value else None


def instant(value: object) -> datetime | None:
    """Read an ISO 8601 time that says its zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        return sensible(moment.astimezone(UTC)) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def sensible(moment: datetime) -> datetime | None:
    """Give a time that an order could have; None for one far off, with which none can reckon."""
    return moment if _EARLIEST <= moment.year <= _LATEST else None


def decode_listed(text: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode a list of items, or one of them.

    Half a surrogate pair, or what is no UTF-8, costs only the text it is in. Raises
    msgspec.DecodeError and RecursionError.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        whole = _in_whole_letters(bytes(text))
        if whole is None:
            raise
    return msgspec.json.decode(whole, type=kind)


def _in_whole_letters(text: bytes) -> bytes | bytearray | None:
    """Replace what is no letter in any text; None where all are."""
    legible = text.decode(errors="replace").encode()
    return _without_halves(legible) or (legible if legible != text else None)


def _without_halves(text: bytes) -> bytearray | None:
    """Replace what is only half of a surrogate pair; None where none is, or where they are many."""
    halves: list[int] = []
    high_at: int | None = None
    for count, found in enumerate(_HALF.finditer(text)):
        if count >= _MOST_HALVES:
            return None
        if len(found[1]) % 2 == 0:
            continue  # the last backslash is a text's own
        at = found.end() - len(_REPLACED)
        is_low = text[at + 3] in b"cCdDeEfF"
        if is_low and high_at == at - len(_REPLACED):
            high_at = None  # a whole pair
            continue
        if high_at is not None:
            halves.append(high_at)
        high_at = None if is_low else at
        if is_low:
            halves.append(at)
    if high_at is not None:
        halves.append(high_at)
    if not halves:
        return None
    whole = bytearray(text)
    for at in halves:
        whole[at : at + len(_REPLACED)] = _REPLACED
    return whole


def price_of(text: bytes) -> int | None:
    """Read a listed price's JSON text in mills; None for one that is not exact, or none."""
    try:
        return dollars(read_json(text)) or None
    except Unusable:
        return None


def is_priced(text: bytes) -> bool:
    """Say whether a listed price's JSON text is an amount, though perhaps not an exact one."""
    return _AMOUNT.fullmatch(text) is not None and re.search(rb"[1-9]", text) is not None


@dataclass(slots=True)
class Listed:
    """What is listed under the wanted ids and names: id -> (name, mills), name -> mills of each."""

    by_id: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=dict)
    #: Under which names anything is listed, at whatever price.
    names: set[str] = field(default_factory=set)
    #: Ids that stand twice with different content, and their names.
    ambiguous: set[str] = field(default_factory=set)
    #: Id or name of a row whose price is not exact, or none -> what stands there.
    unpriced: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def add(self, item_id: str | None, name: str, price: bytes) -> None:
        """Add a row; `price` is its own JSON text, in dollars."""
        mills = price_of(price)
        self.names.add(name)
        if known := self.by_id.get(item_id or ""):
            if known == (name, mills):
                return  # the same one again
            self.ambiguous |= {item_id or "", known[0], name}
        elif item_id:
            self.by_id[item_id] = (name, mills)
        if mills is not None:
            self.by_name.setdefault(name, []).append(mills)
        else:
            text = clean(price.decode(errors="replace"), WORD_LENGTH) or ""
            self.unpriced |= dict.fromkeys(filter(None, (item_id, name)), text)

    def why_unclear(self, key: str, name: str | None) -> str | None:
        """Say why the price of this id or name, of an item of this name, is not known.

        Of a name, a row without a price counts only where no other row has one.
        """
        if key in self.ambiguous:
            return LISTED_TWICE
        named, price = self.by_id.get(key, (key, min(self.by_name.get(key, ()), default=None)))
        is_known = price is not None or key not in self.unpriced
        return None if is_known or name not in (None, named) else not_exact(self.unpriced[key])

    def cheapest(self, item_id: str, name: str, count: int) -> list[Quote]:
        """Give the cheapest of a name, for so many wants and some that others buy meanwhile."""
        prices = nsmallest(count + SPARE, self.by_name.get(name, ()))
        return [Quote(item_id, name, mills) for mills in prices]


def not_exact(price: str) -> str:
    return f"its price cannot be read exactly: {price}"


class ItemTold(TypedDict):
    """What a report says was bought."""

    item_id: str | None
    item_name: str | None


def item_told(item: object, name_key: str = "name") -> ItemTold:
    """Read a report's item; None for what it does not tell."""
    fields = item if isinstance(item, dict) else {}
    item_id = fields.get("id")
    text = str(item_id) if type(item_id) is int else item_id
    name = fields.get(name_key)
    return {
        "item_id": clean(text, ITEM_LENGTH) or None,
        "item_name": clean(name, ITEM_LENGTH) or None,
    }


def item_asked_for(want: Want, by_id: Mapping[str, tuple[str, int | None]]) -> str:
    """Give the wanted item's id; its name where that will do and no priced item has id and name."""
    name = want.market_hash_name
    listed, price = by_id.get(want.catalog_item_id, ("", None))
    is_here = listed == name and price is not None
    return name if want.or_by_name and name and not is_here else want.catalog_item_id


def recipient(trade_url: str) -> dict[str, Any]:
    """Give a trade URL's `partner` and `token` as fields of a body; nothing where it is no URL.

    A body without them is stored like any other, and refused before it is sent.
    """
    try:
        partner, token = trade_url_parts(trade_url)
    except ValueError:
        return {}
    return {"partner": partner, "token": token}


def partner_of_link(trade_url: object) -> int | None:
    """Give the recipient's number of a trade link as a provider writes it; nothing else of it."""
    match = re.search(r"[?&]partner=([0-9]{1,10})(?![0-9])", str(trade_url))
    return _partner(int(match[1])) if match else None


def partner_of_steam_id(steam_id: object) -> int | None:
    """Give the recipient's number of a SteamID64; None for a JSON number, which may be rounded."""
    is_id = isinstance(steam_id, str) and _STEAM_ID.fullmatch(steam_id)
    return _partner(int(str(steam_id)) - STEAM_ID_BASE) if is_id else None


def _partner(number: int) -> int | None:
    return number if 0 < number < 2**32 else None


def unreadable(external_id: str, word: object, why: str) -> OrderReport:
    """Tell of an order that the provider has and that cannot be read: nothing is concluded from it.

    Its word is marked, so that it is news also where the same word was read before.
    """
    raw = f"{clean(word, WORD_LENGTH - len(UNREADABLE)) or ''}{UNREADABLE}".lstrip()
    return OrderReport(external_id, ReportState.UNKNOWN, raw, alarm=why)


def bad_trade_url(why: str) -> ProviderRefused:
    """Refuse on our own side, before anything was sent."""
    return ProviderRefused(FailureCode.INVALID_TRADE_URL, why, is_ours=True)
