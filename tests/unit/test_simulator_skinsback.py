"""The judge is judged: the SkinsBack simulator, driven over HTTP as a client would."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fulfillment.simulator.skinsback_signature import (
    decode,
    decode_form,
    printed,
    sign,
    signed_text,
)
from tests.support import until
from tests.unit.skinsback_client import HOLD_S, RECIPIENT, SECRET, Client, restored, simulating

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors/skinsback-requests.json").read_text(encoding="utf-8")
)
REQUESTS = VECTORS["requests"]
IDS = [f"{index}-{each['method']}-{each['verdict']}" for index, each in enumerate(REQUESTS)]
DEPOSITS = {"orders", "orderstatus", "create", "callback_error_list"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with simulating() as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    with restored(shared):
        yield shared


# Requests and signatures


@pytest.mark.parametrize("sent", REQUESTS, ids=IDS)
def test_a_recorded_request_is_signed_as_its_client_says(sent: dict[str, Any]) -> None:
    params = decode("application/json;charset=utf-8", sent["body"].encode())

    text = sent.get("signed") or sent["server_signs"]
    assert signed_text(params) == text
    expected = sent.get("server_signature") or sent["signature"]
    assert sign(params, sent["secret"]) == expected


@pytest.mark.parametrize("sent", REQUESTS, ids=IDS)
def test_a_recorded_request_is_accepted_or_refused_by_its_verdict(
    client: Client, sent: dict[str, Any]
) -> None:
    headers = VECTORS["headers"][sent["client"]]

    def code_of(body: str) -> int | None:
        with httpx.Client(trust_env=False) as bare:
            url = f"{client.http.base_url}/some/folder/api.php"
            answer = bare.post(url, content=body.encode(), headers=headers)
        assert answer.status_code == 200
        code: int | None = answer.json().get("error_code")
        return code

    code = code_of(sent["body"])
    if sent["verdict"] == "valid":
        assert (code == -5) if sent["method"] in DEPOSITS else (code is None or code > 0)
    elif "server_signature" in sent:
        assert code == -3
        code = code_of(sent["body"].replace(sent["signature"], sent["server_signature"]))
        assert code is None or code > 0
    else:
        assert code is None or code > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [("12.50", "12.5"), ("1.0", "1"), ("0.00001", "1.0E-5"), ("1e3", "1000"), ("true", "1")],
)
def test_numbers_are_printed_as_php_does(value: str, text: str) -> None:
    params = decode("application/json", f'{{"x": {value}}}'.encode())

    assert printed(params["x"]) == text


def test_a_form_is_read_with_its_arrays(client: Client) -> None:
    assert decode_form("custom_ids[]=a&custom_ids[]=b&items[0][id]=5&items[0][max_price]=1.5") == {
        "custom_ids": ["a", "b"],
        "items": [{"id": "5", "max_price": "1.5"}],
    }
    first, second = client.buy(), client.buy()
    wanted = f"custom_ids[]={first['custom_id']}&custom_ids[]={second['custom_id']}"
    signature = sign({"method": "market_getinfo", "shopid": "4242"}, SECRET)
    form = f"method=market_getinfo&shopid=4242&sign={signature}&{wanted}"
    kind = {"content-type": "application/x-www-form-urlencoded"}
    with httpx.Client(trust_env=False) as bare:
        answer = bare.post(f"{client.http.base_url}/api.php", content=form, headers=kind)
    assert len(answer.json()["items"]) == 2


def test_unreadable_bodies_are_errors_inside_of_200(client: Client) -> None:
    for body in (b"", b"\xff", b"{", b"[]", b'{"a":' * 50_000, b'{"max_price": 1e999999999}'):
        answer = client.http.post("/api.php", content=body)
        assert (answer.status_code, answer.json()["error_code"]) == (200, -5)


def test_each_way_to_fail_authentication_has_its_code(client: Client) -> None:
    def code(**headers: str) -> int:
        given = {"x-client-id": "4242", "x-client-secret": SECRET, **headers}
        answer = client.http.post("/api.php", json={"method": "balance"}, headers=given).json()
        found: int = answer.get("error_code", 0)
        return found

    assert code() == 0
    assert code(**{"x-client-id": "1"}) == -2
    assert code(**{"x-client-secret": "wrong"}) == -10
    assert client.call("nonsense")["error_message"] == "invalid_method"
    assert client.http.get("/api.php").json()["error_code"] == -1
    with httpx.Client(base_url=client.http.base_url, trust_env=False) as bare:
        assert bare.post("/api.php", json={"method": "balance"}).json()["error_code"] == -2


# Lists and money


def test_the_price_list_is_grouped_or_full(client: Client) -> None:
    grouped = client.call("market_pricelist", game="csgo")
    full = client.call("market_pricelist", game="cs2", full=1, extended=1)

    assert set(grouped["items"][0]) == {"name", "price", "classid", "count"}
    assert set(full["items"][0]) == {"id", "name", "price", "classid"}
    assert sum(row["count"] for row in grouped["items"]) == len(full["items"])
    assert client.call("market_pricelist", game="rust")["items"] == []
    by_name = {row["name"]: row["price"] for row in grouped["items"]}
    for row in full["items"]:
        assert by_name[row["name"]] <= row["price"]


def test_search_finds_parts_of_names_or_whole_ones(client: Client) -> None:
    name = client.item()["marketHashName"]

    part = client.call("market_search", name=name[:6])["items"]
    whole = client.call("market_search", names=[name], game="cs2")["items"]

    assert {row["name"] for row in whole} == {name}
    assert len(part) > len(whole) > 0
    assert client.call("market_search")["error_message"] == "name_or_names_required"
    assert client.call("market_search", name="AK")["error_message"] == "name_min_length_3"
    client.side.ask("POST", "/options", search_matches="exact")
    assert client.call("market_search", name=name[:6])["items"] == []


def test_money_and_numbers_have_the_types_that_are_asked_for(client: Client) -> None:
    balance = client.call("balance")
    assert re.fullmatch(r"\d+\.\d{3}", balance["balance"])
    assert balance["balance_in_currencies"]["usd"] == balance["balance"]
    order = client.buy()
    info = client.info(order["custom_id"])
    assert all(type(info[key]) is str for key in ("buy_id", "date", "balance_debited_sum"))

    client.side.ask("POST", "/options", numbers="numbers")
    info = client.info(order["custom_id"])
    assert (type(info["buy_id"]), type(info["item"]["price"])) == (int, float)
    client.side.ask("POST", "/options", old_currency=True)
    usd = client.call("balance")["balance_in_currencies"]["usd"]
    assert client.call("balance")["balance"] == pytest.approx(usd * 75)


def test_the_other_methods_answer(client: Client) -> None:
    assert client.call("status") == {"status": "success", "available": True}
    assert client.call("currencies")["status"] == "success"
    client.side.ask("POST", "/options", site="no_bots")
    assert client.call("status") == {
        "status": "success",
        "available": False,
        "reason": "no_bots",
    }


# Purchases


def test_a_purchase_goes_its_whole_way_and_settles(client: Client) -> None:
    before = client.balance()
    order = client.order()
    answer = client.call("market_buy", **order)
    assert set(answer) == {"status", "item", "buy_id", "offer_status", "balance_debited_sum"}
    assert answer["offer_status"] == "creating_trade"
    custom_id = order["custom_id"]
    assert "in_hold" not in client.info(custom_id)

    client.side.jump(4)
    sent = client.until(custom_id, "waiting_accept")
    assert sent["steamid"] == "76561198083722517"
    client.side.jump(16)
    held = client.until(custom_id, "accepted")
    assert held["in_hold"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", held["in_hold_until"])
    client.side.jump(HOLD_S)
    until(lambda: client.info(custom_id)["in_hold"] is False)

    assert held["tradeofferid"] == sent["tradeofferid"]
    [row] = [
        row
        for row in client.side.ask("GET", "/ledger")["purchases"]
        if row["externalId"] == custom_id
    ]
    assert (row["status"], row["inHold"]) == ("completed", False)
    assert before - client.balance() == row["amountMills"]


def test_a_purchase_by_name_takes_the_cheapest(client: Client) -> None:
    rows = client.call("market_pricelist", full=1)["items"]
    names = [row["name"] for row in rows]
    name = next(name for name in names if names.count(name) > 1)
    prices = sorted(row["price"] for row in rows if row["name"] == name)

    order = client.order(id=None, name=name, game="csgo", max_price=f"{prices[0]:.4f}")
    bought = client.call("market_buy", **order)

    assert float(bought["item"]["price"]) == prices[0]


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        ({"id": None}, 1, "missing_name_and_id"),
        ({"id": None, "name": "AK"}, 2, "name_min_length_3"),
        ({"token": ""}, 3, "missing_partner_or_token"),
        ({"id": "1"}, 5, "skin_unavailable"),
        ({"max_price": 0.0009}, 6, "skins_not_found_at_specified_price"),
        ({"max_price": "cheap"}, 6, "skins_not_found_at_specified_price"),
        ({"partner": "12a"}, 8, "invalid_partner_value"),
    ],
)
def test_a_refused_purchase_is_an_error_and_buys_nothing(
    client: Client, change: dict[str, Any], code: int, name: str
) -> None:
    order = client.order(**change)

    answer = client.call("market_buy", **order)

    assert (answer["error_code"], answer["error_message"]) == (code, name)
    assert client.info(order["custom_id"]) is None
    assert client.call("market_buy", **client.order(custom_id=order["custom_id"]))["buy_id"]


def test_a_price_with_three_decimals_is_held_against_the_cap_exactly(client: Client) -> None:
    item = client.item()
    client.side.ask("PUT", f"/items/{item['id']}", priceMills=6125)
    order = client.order(id=item["id"], max_price=6.124)

    assert client.call("market_buy", **order)["error_code"] == 6
    bought = client.call("market_buy", **{**order, "max_price": 6.125})

    assert (bought["item"]["price"], bought["balance_debited_sum"]) == ("6.125", "6.125")


def test_funds_short_is_refused_at_once() -> None:
    with simulating(balance_cents=1, items=5) as client:
        assert client.call("market_buy", **client.order())["error_code"] == 4


def test_a_custom_id_is_good_once(client: Client) -> None:
    order = client.buy()
    other = client.order(custom_id=order["custom_id"])

    for body in (order, other):
        answer = client.call("market_buy", **body)
        assert (answer["error_code"], answer["error_message"]) == (7, "custom_id_already_exists")

    row = client.side.ask("GET", f"/orders/{order['custom_id']}")
    assert (row["posts"], row["conflictingPosts"]) == (3, 1)


def test_a_refusal_burns_the_custom_id_only_where_it_is_told_to(client: Client) -> None:
    client.side.ask("POST", "/options", refusals_burn_id=True)
    order = client.order(max_price=0)
    assert client.call("market_buy", **order)["error_code"] == 6

    assert client.call("market_buy", **{**order, "max_price": 9999})["error_code"] == 7
    assert client.info(order["custom_id"]) is None


def test_a_batch_is_bought_line_by_line(client: Client) -> None:
    good, dear = client.order(), client.order()
    lines = [
        {"id": good["id"], "max_price": good["max_price"], "custom_id": good["custom_id"]},
        {"id": "1", "max_price": 5, "custom_id": dear["custom_id"]},
        {"id": good["id"], "max_price": 5, "custom_id": good["custom_id"]},
    ]

    answer = client.call("market_batch_buy", **RECIPIENT, items=lines)

    assert [row["custom_id"] for row in answer["purchased"]] == [good["custom_id"]]
    reasons = [row["reason"] for row in answer["unavailable"]]
    assert reasons == ["skin_unavailable", "custom_id_already_exists"]
    assert client.call("market_batch_buy", partner="1", items=lines)["error_code"] == 3


def test_lookups_take_one_id_or_many(client: Client) -> None:
    first, second = client.buy(), client.buy()
    ids = [client.info(order["custom_id"])["buy_id"] for order in (first, second)]

    assert client.call("market_getinfo", buy_id=ids[0])["custom_id"] == first["custom_id"]
    assert client.call("market_getinfo", buy_id=99)["error_message"] == "offer_not_found"
    assert len(client.call("market_getinfo", buy_ids=[*ids, 99])["items"]) == 2
    assert client.call("market_getinfo")["error_message"] == "missing_one_of_required_params"
    client.side.ask("POST", "/options", unknown_ids="error")
    assert client.call("market_getinfo", buy_ids=[*ids, 99])["error_code"] == 2
    assert client.call("market_getinfo", custom_ids=["nope"])["error_code"] == 2


def test_the_history_is_paged_by_time(client: Client) -> None:
    client.buy()
    span = {"starting": 1, "ending": 4_000_000_000}

    page = client.call("market_history", **span)
    rest = client.call("market_history", **span, start_from=1)

    assert int(page["total_count"]) == len(page["items"]) == page["start_from"]
    assert len(rest["items"]) == len(page["items"]) - 1
    assert page["has_more"] is False
    assert client.call("market_history", starting=1)["error_message"].startswith("missing_")
