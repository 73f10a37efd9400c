"""What adapters read of every provider alike: dollars, times, offer numbers, text fit to be kept.

Amounts are exact or refused, and no trade link gets out of here.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict

from fulfillment.errors import ProviderRefused
from fulfillment.providers.http import Unusable
from schemas.checkout import trade_url_parts
from schemas.enums import FailureCode
from schemas.money import InexactMoney, mills_from_dollars
from schemas.provider import Want

TRADE_LINK = re.compile(r"(?i)\S*steamcommunity\.com\S*|\btoken\s?(=|:|%3D)\s?\S+")
HIDDEN = "[removed]"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
WORD_LENGTH = 64
ITEM_LENGTH = 300
MESSAGE_LENGTH = 200
# What intake lets through (DESIGN section 7): another id cannot be an order of ours.
EXTERNAL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: SteamID64 of the account with the number 0; a trade URL's `partner` is added to it.
STEAM_ID_BASE = 76561197960265728


def dollars(amount: object) -> int:
    """Read dollars, a JSON number or numeric text, as mills, never below zero. Raises Unusable."""
    if type(amount) in (str, int, Decimal):
        with suppress(InexactMoney):
            mills = mills_from_dollars(str(amount))
            if mills >= 0:
                return mills
    raise Unusable("expected an amount in dollars of at most three decimals")


def number(value: object) -> str | None:
    """Give a natural number, written as a number or as text, as text; None for anything else."""
    text = str(value) if type(value) in (str, int) else ""
    return text if re.fullmatch(r"[0-9]{1,20}", text) else None


def clean(value: object, length: int, secret: str | None = None) -> str | None:
    """Make a provider's text fit to be kept: no trade link, nothing that a database refuses."""
    if not isinstance(value, str):
        return None
    text = TRADE_LINK.sub(HIDDEN, UNPRINTABLE.sub("", value))
    return (text.replace(secret, HIDDEN) if secret else text)[:length]


def instant(value: object) -> datetime | None:
    """Read an ISO 8601 time that says its zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


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


def bad_trade_url(why: str) -> ProviderRefused:
    """Refuse on our own side, before anything was sent."""
    return ProviderRefused(FailureCode.INVALID_TRADE_URL, why, is_ours=True)
