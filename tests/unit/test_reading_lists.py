"""Half of a surrogate pair in one name of a list, as JavaScript cuts them, costs that name only."""

import json

import msgspec
import pytest

from fulfillment.providers.reading import Listed, decode_listed
from fulfillment.providers.skinsback import wire as skinsback
from fulfillment.providers.skinslink import wire as skinslink
from fulfillment.providers.skinsnode import wire as skinsnode
from schemas.provider import Want

HALF = "AK\ud83d"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"\udfffb\uD83D"', "\ufffdb\ufffd"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\ud83d\ude00 \ud83dx"', "\U0001f600 \ufffdx"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (rb'"\u2605 \n \ud83d"', "\u2605 \n \ufffd"),
    ],
)
def test_what_is_no_half_stays_as_it_is(text: bytes, read: str) -> None:
    assert decode_listed(text, str) == read


@pytest.mark.parametrize("text", [b"", b'"a', rb'"\x"', rb'["\ud83d"', b'{"a":'])
def test_what_is_no_json_is_still_refused(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_listed(text, str)


def test_each_provider_prices_the_other_items() -> None:
    items = [
        {"id": "1", "marketHashName": HALF, "price": 5, "currency": "USD", "available": True},
        {"id": "2", "marketHashName": "B", "price": 7, "currency": "USD", "available": True},
    ]
    found, *_ = skinsnode.read_catalog(json.dumps({"items": items}).encode(), {"2"})
    assert found["2"].price == 7

    rows = [{"id": 1, "name": HALF, "price": 0.05}, {"id": 2, "name": "B", "price": 0.07}]
    answer = json.dumps({"status": "success", "items": rows}).encode()
    back = skinsback.read_listing(answer, [Want("2")])
    assert isinstance(back, Listed)
    assert back.by_id["2"] == ("B", 70)

    link = Listed()
    answer = json.dumps({"success": True, "data": {"items": rows}}).encode()
    skinslink.read_listing(answer, ["B"], link)
    assert link.by_name["B"] == 70
