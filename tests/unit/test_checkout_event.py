"""The checkout event: what is let in, and that a refusal names the field and shows no secret."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fulfillment.errors import InvalidBody, InvalidInput
from fulfillment.services.intake import parse_event, parse_json
from schemas.checkout import MAX_PRICE_CENTS, TRADE_URL_FORM, plain_trade_url, trade_url_parts
from tests.support import TOKEN, TRADE_URL, checkout

URL = "https://steamcommunity.com/tradeoffer/new/"


def refusal_of(raw: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as refusal:
        parse_event(raw)
    return refusal.value


GOOD_TRADE_URLS = [
    f"{URL}?partner=123&token=abc",
    f"{URL}?token=abc&partner=123",
    f"{URL[:-1]}?partner=123&token=abc",
    f"{URL}?partner=1&token=a",
    f"{URL}?partner=4294967295&token=AbC-_9xyAbC-_9xy",
    f"  {URL}?partner=123&token=abc\n",
]
#: What means `partner=123&token=abc`, and is no spelling of Steam's.
ODD_TRADE_URLS = [
    "HTTPS://SteamCommunity.COM/tradeoffer/new/?partner=123&token=abc",
    "https://steamcommunity.com:443/tradeoffer/new/?partner=123&token=abc",
    f"{URL}?partner=%31%32%33&token=%61bc",
    f"{URL}?partner=123&token=abc&for_item=730_2_1&x=",
    f"{URL}?%70artner=123&token=abc",
    f"{URL}?partner=00123&token=abc",
    f"{URL[:-1]}?token=abc&partner=123",
    f"{URL}/?partner=123&token=abc",
]

BAD_TRADE_URLS = {
    "empty": "",
    "no address": "abc",
    "http": f"http://steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "no scheme": f"//steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "javascript": f"javascript:https://steamcommunity.com/?partner=123&token={TOKEN}",
    "other host": f"https://steamcommunity.co/tradeoffer/new/?partner=123&token={TOKEN}",
    "sub domain": f"https://www.steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "host as sub domain": f"https://steamcommunity.com.evil.example/tradeoffer/new/?partner=1&token={TOKEN}",
    "host with a dot": f"https://steamcommunity.com./tradeoffer/new/?partner=123&token={TOKEN}",
    "look-alike": f"https://\u0455teamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "user": f"https://someone@steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "user and password": f"https://a:b@steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "host as user": f"https://steamcommunity.com@evil.example/tradeoffer/new/?partner=1&token={TOKEN}",
    "backslash": f"https://steamcommunity.com\\@evil.example/tradeoffer/new/?partner=1&token={TOKEN}",
    "other port": f"https://steamcommunity.com:8443/tradeoffer/new/?partner=123&token={TOKEN}",
    "port too large": f"https://steamcommunity.com:99999/tradeoffer/new/?partner=1&token={TOKEN}",
    "other path": f"https://steamcommunity.com/tradeoffer/old/?partner=123&token={TOKEN}",
    "path tricks": f"https://steamcommunity.com/x/../tradeoffer/new/?partner=123&token={TOKEN}",
    "fragment": f"{URL}?partner=123&token={TOKEN}#x",
    "no query": URL,
    "no partner": f"{URL}?token={TOKEN}",
    "no token": f"{URL}?partner=123",
    "empty partner": f"{URL}?partner=&token={TOKEN}",
    "empty token": f"{URL}?partner=123&token=",
    "partner zero": f"{URL}?partner=0&token={TOKEN}",
    "partner one too large": f"{URL}?partner=4294967296&token={TOKEN}",
    "partner of 64 bits": f"{URL}?partner=76561198083722517&token={TOKEN}",
    "partner negative": f"{URL}?partner=-1&token={TOKEN}",
    "partner hex": f"{URL}?partner=0x1f&token={TOKEN}",
    "partner with a fraction": f"{URL}?partner=12.5&token={TOKEN}",
    "partner in other digits": f"{URL}?partner=١٢٣&token={TOKEN}",
    "partner in full-width digits": f"{URL}?partner=\uff11\uff12\uff13&token={TOKEN}",
    "partner in escaped digits": f"{URL}?partner=%D9%A1&token={TOKEN}",
    "partner twice": f"{URL}?partner=123&partner=124&token={TOKEN}",
    "token twice": f"{URL}?partner=123&token={TOKEN}&token=x",
    "token too long": f"{URL}?partner=123&token={'a' * 17}",
    "token with a dot": f"{URL}?partner=123&token=a.b",
    "token with a plus": f"{URL}?partner=123&token=a+b",
    "token with an umlaut": f"{URL}?partner=123&token=äbc",
    "blank inside": f"{URL}?partner=123&token=ab c",
    "newline inside": f"{URL}?partner=1\n23&token={TOKEN}",
    "tab inside": f"https://steam\tcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "NUL at the end": f"{URL}?partner=123&token={TOKEN}\x00",
    "NUL escaped": f"{URL}?partner=123&token={TOKEN}%00",
    "invisible": f"{URL}?partner=123&token={TOKEN}\u200b",
    "right to left": f"{URL}?partner=123&token=\u202e{TOKEN}",
    "broken brackets": f"https://[steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
    "very long": f"{URL}?partner=123&token={TOKEN}&x={'y' * 10_000}",
}


@pytest.mark.parametrize("url", ODD_TRADE_URLS)
def test_another_spelling_of_a_trade_url_is_taken_as_it_came_and_has_a_plain_form(url: str) -> None:
    assert parse_event(checkout(tradeUrl=url)).trade_url == url
    assert plain_trade_url(url) == f"{URL}?partner=123&token=abc"


@given(st.integers(1, 2**32 - 1), st.from_regex(r"[A-Za-z0-9_-]{1,16}", fullmatch=True))
def test_the_plain_form_of_a_trade_url_is_its_own_plain_form(partner: int, token: str) -> None:
    url = f"{URL}?partner={partner}&token={token}"

    assert plain_trade_url(url) == url


@pytest.mark.parametrize("url", GOOD_TRADE_URLS)
def test_a_steam_trade_url_is_taken(url: str) -> None:
    event = parse_event(checkout(tradeUrl=url))

    assert event.trade_url == url.strip()


@pytest.mark.parametrize("url", BAD_TRADE_URLS.values(), ids=BAD_TRADE_URLS)
def test_whatever_is_no_steam_trade_url_is_refused_by_name_and_never_quoted(url: str) -> None:
    refusal = refusal_of(checkout(tradeUrl=url))

    assert refusal.field == "tradeUrl"
    assert TOKEN not in str(refusal)
    assert TOKEN not in repr(refusal.__context__)


@pytest.mark.parametrize("value", [None, 5, True, ["x"], {"a": 1}, b"x"])
def test_a_trade_url_of_another_type_is_refused_by_name(value: Any) -> None:
    assert refusal_of(checkout(tradeUrl=value)).field == "tradeUrl"


@given(st.integers(1, 2**32 - 1), st.from_regex(r"[A-Za-z0-9_-]{1,16}", fullmatch=True))
def test_partner_and_token_are_read_as_written(partner: int, token: str) -> None:
    assert trade_url_parts(f"{URL}?partner={partner}&token={token}") == (partner, token)


@given(st.text(max_size=60))
@example("/tradeof")
def test_no_text_makes_the_trade_url_check_fail_in_another_way(text: str) -> None:
    refusal = TRADE_URL_FORM
    try:
        trade_url_parts(f"{URL}?partner=1&token={text}")
    except ValueError as error:
        refusal = str(error)

    assert refusal == TRADE_URL_FORM  # nothing of the text, which may be a token


@pytest.mark.parametrize(
    "price", [True, False, 1840.0, 18.4, "1840", "", None, [1840], 0, -1, MAX_PRICE_CENTS + 1]
)
def test_a_price_that_is_no_positive_whole_number_of_cents_is_refused(price: Any) -> None:
    assert refusal_of(checkout(expectedPrice=price)).field == "expectedPrice"


@pytest.mark.parametrize("price", [2**63, 10**30, 10**1000, float("nan"), float("inf"), 1e308])
def test_a_price_that_no_column_holds_is_refused(price: Any) -> None:
    assert refusal_of(checkout(expectedPrice=price)).field == "expectedPrice"


@pytest.mark.parametrize("price", [1, 1840, MAX_PRICE_CENTS])
def test_a_price_in_whole_cents_is_taken(price: int) -> None:
    assert parse_event(checkout(expectedPrice=price)).expected_price == price


@pytest.mark.parametrize("name", ["a", "A-Z_0.9", "...", "x" * 64, "order_100042", "-", ".a"])
def test_an_id_of_the_documented_alphabet_is_taken(name: str) -> None:
    assert parse_event(checkout(externalId=name)).external_id == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "x" * 65,
        "x" * 10000,
        "a/b",
        "a\\b",
        "a b",
        " a",
        "a\n",
        "\na",
        "a\x00",
        "ä",
        "\uff11",
        "a%2e",
        "a\r\nX: y",
        "\u202ea",
        "'; DROP TABLE orders; --",
        None,
        5,
        5.0,
        True,
    ],
)
def test_any_other_id_is_refused(name: Any) -> None:
    assert refusal_of(checkout(externalId=name)).field == "externalId"


@pytest.mark.parametrize("field", ["catalogItemId", "marketHashName"])
@pytest.mark.parametrize("value", ["", "a\x00b", "a\nb", "x" * 301, 5, True, ["x"], "\ud800"])
def test_a_text_that_no_column_holds_is_refused(field: str, value: Any) -> None:
    assert refusal_of(checkout(**{field: value})).field == field


@pytest.mark.parametrize("field", ["catalogItemId", "marketHashName"])
@pytest.mark.parametrize("value", [" ", "    ", "\u00a0\u2003 \u3000"])
def test_a_text_of_blanks_is_refused_by_name(field: str, value: str) -> None:
    refusal = refusal_of(checkout(**{field: value}))

    assert str(refusal) == f"{field}: expected a text, found only blanks"


@pytest.mark.parametrize("field", ["externalId", "catalogItemId", "expectedPrice", "tradeUrl"])
def test_a_missing_field_is_named(field: str) -> None:
    raw = checkout()
    del raw[field]

    assert refusal_of(raw).field == field


@pytest.mark.parametrize("value", ["", "x" * 33, 5, True, ["main"]])
def test_an_account_that_cannot_be_one_is_refused_by_name(value: Any) -> None:
    assert refusal_of(checkout(account=value)).field == "account"


def test_the_account_is_main_where_none_is_given() -> None:
    assert parse_event(checkout()).account == "main"
    assert parse_event(checkout(account=None)).account == "main"


@pytest.mark.parametrize("text", ["2026-11-20T12:30:00Z", "2026-11-20T13:30:00.000+01:00"])
def test_a_time_with_its_zone_is_taken(text: str) -> None:
    event = parse_event(checkout(submitBy=text))

    assert event.submit_by == datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-20T12:30:00",
        "2026-11-20",
        "12:30",
        "",
        "soon",
        "2026-13-01T00:00:00Z",
        "NaN",
        1795000000,
        1.5,
        True,
        "1795000000",
        "-1",
        ["x"],
        {},
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_a_time_that_is_no_moment_in_iso_8601_is_refused(value: Any) -> None:
    assert refusal_of(checkout(submitBy=value)).field == "submitBy"


def test_one_moment_in_two_zones_is_the_same_content() -> None:
    here = parse_event(checkout(submitBy="2026-11-20T12:30:00Z"))
    there = parse_event(checkout(submitBy="2026-11-20T13:30:00+01:00"))

    assert here.content() == there.content()


def test_a_python_store_may_give_an_aware_datetime() -> None:
    moment = datetime(2026, 11, 20, 13, 30, tzinfo=timezone(timedelta(hours=1)))

    assert parse_event(checkout(submitBy=moment)).submit_by == moment


@pytest.mark.parametrize("raw", [None, [], [checkout()], "x", 5, True, 1.5])
def test_what_is_no_object_is_refused_as_a_whole(raw: Any) -> None:
    refused = refusal_of(raw)

    assert refused.field is None
    assert not isinstance(refused, InvalidBody)


def test_fields_of_ours_cannot_be_set_from_outside() -> None:
    raw = checkout(status="completed", id="other", chargedPrice=1, overdue=True)

    event = parse_event(raw)

    assert event.external_id == raw["externalId"]
    assert set(event.content()) == {
        "account",
        "catalogItemId",
        "expectedPrice",
        "tradeUrl",
        "marketHashName",
        "submitBy",
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Account", "account"),
        ("ACCOUNT", "account"),
        ("account ", "account"),
        ("submit_by", "submitBy"),
        ("submitby", "submitBy"),
        ("Submit-By", "submitBy"),
        ("submit by", "submitBy"),
        ("market_hash_name", "marketHashName"),
        ("external_id", "externalId"),
        ("trade_url", "tradeUrl"),
    ],
)
def test_a_misspelled_field_is_refused_by_its_name_with_the_right_one(
    name: str, meant: str
) -> None:
    refusal = refusal_of(checkout(**{name: None}))

    assert str(refusal) == f"{name}: expected the name {meant}, spelled like this"
    assert refusal.field == name


def test_a_misspelled_field_that_could_hold_anything_is_refused_by_its_right_name() -> None:
    for name in (f"trade{'_' * 60}url", "trade\nUrl"):
        assert refusal_of(checkout(**{name: "x"})).field == "tradeUrl"


@pytest.mark.parametrize("name", ["currency", "Currency", "CURRENCY"])
@pytest.mark.parametrize("value", ["EUR", "", "US", "u\u017fd", None, 840, ["USD"]])
def test_another_currency_than_that_of_our_prices_is_refused(name: str, value: Any) -> None:
    refusal = refusal_of(checkout(**{name: value}))

    assert refusal.field == name
    assert "prices are in US cents" in str(refusal)


@pytest.mark.parametrize("value", ["USD", "usd"])
def test_the_currency_of_our_prices_may_be_named(value: str) -> None:
    assert "currency" not in parse_event(checkout(currency=value)).content()


@pytest.mark.parametrize("name", ["accounts", "note", "item", "price_currency", "", "\ud800"])
def test_a_field_that_resembles_none_of_ours_is_ignored(name: str) -> None:
    assert parse_event(checkout(**{name: "x"})).account == "main"


def test_an_event_shows_no_trade_url() -> None:
    event = parse_event(checkout())

    assert TOKEN not in repr(event)
    assert TOKEN not in str(event)
    assert event.trade_url == TRADE_URL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b"{'a': 1}",
        b"[" * 100000,
        b'{"a":' * 100000,
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_json_that_parsers_read_differently_or_not_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidBody):
        parse_json(body)


def test_a_refusal_of_json_does_not_quote_it() -> None:
    with pytest.raises(InvalidBody) as refusal:
        parse_json(f'{{"tradeUrl": "{TRADE_URL}", '.encode())

    assert TOKEN not in str(refusal.value)
