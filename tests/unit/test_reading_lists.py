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
#: Written as it stands here: what is no UTF-8.
TORN = "AK\xff"
EMOJI = "Sticker \U0001f525"


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


def written(document: object) -> bytes:
    return json.dumps(document).replace(r"AK\u00ff", "AK\xff").encode("latin-1")


@pytest.mark.parametrize("name", [HALF, TORN, EMOJI, HALF + TORN])
@pytest.mark.parametrize("is_odd", [False, True])
def test_each_provider_prices_the_other_items(name: str, is_odd: bool) -> None:
    """Where an entry is odd besides, each is read by itself."""
    odd: dict[str, object] = {"price": "none"} if is_odd else {}
    items = [
        {"id": "1", "marketHashName": name, "price": 5, "currency": "USD", "available": True} | odd,
        {"id": "2", "marketHashName": "B", "price": 7, "currency": "USD", "available": True},
    ]
    found, *_ = skinsnode.read_catalog(written({"items": items}), {"2"}, {name})
    assert found["2"].price == 7

    odd = {"name": None, "title": name} if is_odd else {}
    rows = [{"id": 1, "name": name, "price": 0.05} | odd, {"id": 2, "name": "B", "price": 0.07}]
    back = Listed()
    skinsback.read_listing(written({"status": "success", "items": rows}), [Want("2")], back)
    assert back.by_id["2"] == ("B", 70)

    link = Listed()
    skinslink.read_listing(written({"success": True, "data": {"items": rows}}), ["B"], link)
    assert link.by_name["B"] == [70]


def test_an_odd_price_that_is_no_text_is_told_of_as_far_as_it_can_be_read() -> None:
    items = [{"id": "1", "marketHashName": "A", "price": "AK\xff", "currency": "USD"}]
    items += [{"id": "2", "marketHashName": "B", "price": 7, "currency": "USD"}]  # type: ignore[dict-item]

    _, _, unclear = skinsnode.read_catalog(written({"items": items}), {"1"})

    assert "\ufffd" in unclear["1"]
