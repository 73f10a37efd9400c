"""The checkout event: one customer's paid order, the same body on every way in (DESIGN 7)."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_PRICE_CENTS = 10**9  # ten million dollars: more is a wrong unit, not a skin
_PARTNER = re.compile(r"[0-9]{1,10}")
_ISO_START = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,16}")
#: As Steam shows it to its owner; everything else is taken apart more slowly.
_USUAL = re.compile(
    r"https://steamcommunity\.com/tradeoffer/new/\?partner=([0-9]{1,10})&token=([A-Za-z0-9_-]{1,16})"
)
TRADE_URL_FORM = (
    "expected https://steamcommunity.com/tradeoffer/new/?partner=<32-bit number>&token="
    "<1 to 16 of A-Z a-z 0-9 _ ->"
)


def trade_url_parts(url: str) -> tuple[int, str]:
    """Give `partner` and `token` of a Steam trade URL.

    Raises ValueError, without the URL in its text, for anything that is not exactly one.
    """
    if usual := _USUAL.fullmatch(url):
        partner, token = usual.groups()
    else:
        partner, token = _taken_apart(url)
    if not 0 < int(partner) < 2**32:
        raise ValueError(TRADE_URL_FORM)
    return int(partner), token


def plain_trade_url(url: str) -> str:
    """Spell a Steam trade URL as Steam shows it to its owner: providers refuse other spellings.

    Raises ValueError as `trade_url_parts` does.
    """
    partner, token = trade_url_parts(url)
    return f"https://steamcommunity.com/tradeoffer/new/?partner={partner}&token={token}"


def _taken_apart(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
        port = parts.port
    except ValueError:
        raise ValueError(TRADE_URL_FORM) from None
    fields = dict(query)
    is_steam = (
        parts.scheme == "https"
        and parts.hostname == "steamcommunity.com"
        and port in (None, 443)
        and parts.username is None
        and parts.path.rstrip("/") == "/tradeoffer/new"
        and not parts.fragment
    )
    if not is_steam or len(fields) != len(query) or not url.isascii() or not url.isprintable():
        raise ValueError(TRADE_URL_FORM)
    partner, token = fields.get("partner", ""), fields.get("token", "")
    if not _PARTNER.fullmatch(partner) or not _TOKEN.fullmatch(token):
        raise ValueError(TRADE_URL_FORM)
    return partner, token


def _main_if_null(value: object) -> object:
    return "main" if value is None else value


def _no_blank(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


#: Written out where a reader of the documents would need more than the pattern that is checked.
_PLAIN_ID = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
_PLAIN_TRADE_URL = (
    r"^https://steamcommunity\.com/tradeoffer/new/\?partner=[1-9][0-9]{0,8}"
    r"&token=[A-Za-z0-9_-]{1,16}$"
)

ExternalId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$", min_length=1, max_length=64),
    WithJsonSchema({"type": "string", "pattern": _PLAIN_ID}),
]
#: Whatever has a pattern is text that UTF-8 can write.
_PRINTABLE = r"^[^\x00-\x1f]+$"
_NOT_BLANK = r"^[^\x00-\x1f]*[^\x00-\x1f\s][^\x00-\x1f]*$"


def _is_not_blank(value: str) -> str:
    if value.isspace():
        raise ValueError("expected a text, found only blanks")
    return value


Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=300, pattern=_PRINTABLE),
    AfterValidator(_is_not_blank),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 300, "pattern": _NOT_BLANK}),
]


_BETWEEN_WORDS = re.compile(r"[_\-\s]")
#: A longer name is not repeated to its sender.
_LONGEST_TOLD = 40
_CURRENCY = "currency"
_EXAMPLE = {
    "externalId": "order_100042",
    "account": "main",
    "catalogItemId": "0b0f4f0e-7c1e-4d0e-9a51-0d6c5a6c7f10",
    "expectedPrice": 1840,
    "tradeUrl": "https://steamcommunity.com/tradeoffer/new/?partner=123&token=abc",
}


def _describe(schema: dict[str, Any]) -> None:
    """Add to the documents what is no field of the event."""
    text = "May be left out: prices are in US cents, and nothing else is taken."
    usd = {"type": "string", "pattern": "^[Uu][Ss][Dd]$", "description": text}
    schema["properties"][_CURRENCY] = usd
    schema["examples"] = [_EXAMPLE]


class CheckoutEvent(BaseModel):
    """One paid checkout of the store.

    `expectedPrice` is in cents and is the most that may be paid. `submitBy` is the time after
    which it must not be bought any more. Other fields are ignored, unless their names are these
    in other case or with `_`, `-` or blanks: those are refused.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra=_describe,
    )

    external_id: ExternalId
    account: Annotated[
        str,
        BeforeValidator(_main_if_null),
        StringConstraints(min_length=1, max_length=32, pattern=_PRINTABLE),
    ] = "main"
    catalog_item_id: Text
    expected_price: Annotated[int, Field(strict=True, gt=0, le=MAX_PRICE_CENTS)]
    trade_url: Annotated[
        str,
        BeforeValidator(_no_blank),
        Field(repr=False, max_length=300),
        WithJsonSchema({"type": "string", "pattern": _PLAIN_TRADE_URL}),
    ]
    market_hash_name: Text | None = None
    submit_by: AwareDatetime | None = None

    @model_validator(mode="before")
    @classmethod
    def _means_no_more_than_it_says(cls, raw: object) -> object:
        """Refuse what would be ignored, and then something else be bought than was meant."""
        if isinstance(raw, Mapping) and not raw.keys() <= NAMES:
            for found in _misunderstood(raw):
                raise ValidationError.from_exception_data(cls.__name__, [found])
        return raw

    @field_validator("external_id")
    @classmethod
    def _is_no_path_step(cls, value: str) -> str:
        if value in (".", ".."):
            raise ValueError("expected an id other than . and ..")
        return value

    @field_validator("trade_url")
    @classmethod
    def _is_trade_url(cls, value: str) -> str:
        trade_url_parts(value)
        return value

    @field_validator("submit_by", mode="before")
    @classmethod
    def _is_iso_text(cls, value: object) -> object:
        # Text of digits alone would be read as seconds since 1970.
        is_iso = isinstance(value, str) and _ISO_START.match(value)
        if value is not None and not is_iso and not isinstance(value, datetime):
            raise ValueError(
                "expected an ISO 8601 time with its zone, such as 2026-11-20T12:30:00Z"
            )
        return value

    @field_validator("submit_by")
    @classmethod
    def _exists_in_utc(cls, value: datetime | None) -> datetime | None:
        try:
            return value.astimezone(UTC) if value else None
        except OverflowError:
            raise ValueError("expected a time within the years 1 to 9999 of UTC") from None

    def content(self) -> dict[str, str | int | None]:
        """Give what makes two checkouts of one id the same; the id itself stands outside."""
        return {
            "account": self.account,
            "catalogItemId": self.catalog_item_id,
            "expectedPrice": self.expected_price,
            "tradeUrl": self.trade_url,
            "marketHashName": self.market_hash_name,
            "submitBy": self.submit_by.astimezone(UTC).isoformat() if self.submit_by else None,
        }


#: As they are sent.
NAMES = frozenset(field.alias for field in CheckoutEvent.model_fields.values() if field.alias)
_MEANT = {name.lower(): name for name in NAMES} | {_CURRENCY: _CURRENCY}


def _misunderstood(raw: Mapping[Any, object]) -> Iterator[InitErrorDetails]:
    """Find other fields than the known ones that were meant to say something to us."""
    for name in raw:
        if name in NAMES or not isinstance(name, str):
            continue
        meant = _MEANT.get(_BETWEEN_WORDS.sub("", name).lower())
        if meant == _CURRENCY:
            value = raw[name]
            if not isinstance(value, str) or value.lower() != "usd":
                text = "expected USD, or no such field: prices are in US cents"
                yield _wrong(name, meant, text)
        elif meant is not None:
            yield _wrong(name, meant, f"expected the name {meant}, spelled like this")


def _wrong(name: str, meant: str, text: str) -> InitErrorDetails:
    """Say what is wrong with a field by its name as it was sent, or as it is known where that is
    odd enough to hold a secret."""
    is_told = name.isprintable() and len(name) <= _LONGEST_TOLD
    kind = PydanticCustomError("misunderstood", "{text}", {"text": text})
    return InitErrorDetails(type=kind, loc=(name if is_told else meant,), input=None)
