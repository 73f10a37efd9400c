"""The judge is judged: the Skinslink simulator, driven over HTTP as a client would."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from fulfillment.simulator.skinslink_words import amount
from tests.unit.skinslink_client import HOLD_S, Client, restored, simulating


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with simulating() as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    with restored(shared):
        yield shared


# Reads


def test_the_key_is_asked_for(client: Client) -> None:
    with httpx.Client(base_url=client.http.base_url, trust_env=False) as bare:
        missing = bare.get("/balance")
        wrong = bare.get("/balance", headers={"x-api-key": "other"})
    assert (missing.status_code, missing.json()) == (
        401,
        {"success": False, "message": "missing authorization header"},
    )
    assert (wrong.status_code, wrong.json()["message"]) == (401, "invalid API key")


def test_the_list_is_grouped_full_or_paged(client: Client) -> None:
    grouped = client.get("/purchase/available", game="csgo")
    full = client.get("/purchase/available", game="csgo", full="true", extended="true")
    pages = [
        client.get("/purchase/available", game="csgo", full=1, page=page) for page in range(1, 17)
    ]

    assert set(grouped["items"][0]) == {"name", "count", "price", "game", "image_url"}
    assert sum(row["count"] for row in grouped["items"]) == full["total"] == len(full["items"])
    assert {"id", "name", "price", "class_id", "float", "phase"} <= set(full["items"][0])
    ids = [row["id"] for page in pages for row in page["items"]]
    assert sorted(ids) == sorted(row["id"] for row in full["items"])
    assert {page["total"] for page in pages} == {full["total"]}
    assert max(len(each) for each in ids) == 270
    assert client.get("/purchase/available", game="rust")["items"] == []
    wrong = client.http.get("/purchase/available", params={"game": "cs2"})
    assert (wrong.status_code, wrong.json()["message"]) == (400, "invalid game code")
    assert client.http.get("/purchase/available", params={"game": "csgo", "full": 1, "page": 17})


def test_names_are_searched_exactly(client: Client) -> None:
    rows = client.get("/purchase/available", game="csgo", full=1)["items"]
    wanted = {rows[0]["name"], rows[1]["name"]}

    found = client.get("/purchase/search", game="csgo", names=[*wanted, "AK-47"])

    assert {row["name"] for row in found["items"]} == wanted
    assert found["total"] == sum(row["name"] in wanted for row in rows)
    refused = client.http.get("/purchase/search", params={"game": "csgo"})
    assert refused.json()["message"] == "validation error"


def test_money_is_written_exactly_and_short() -> None:
    shown = [bytes(amount(mills)).decode() for mills in (6125, 6120, 6000, 5, 0, 12_345_678_901)]

    assert shown == ["6.125", "6.12", "6", "0.005", "0", "12345678.901"]


def test_the_balance_tells_what_is_open(client: Client) -> None:
    before = client.get("/balance")
    order = client.buy("stuck")

    after = client.get("/balance")

    price = Decimal(client.ledger(order["merchant_tx_id"])["amountMills"]).scaleb(-3)
    assert after["available"] == before["available"] - price
    assert after["hold"] == before["hold"] + price
    assert after["total"] == before["total"]


# Purchases


def test_a_purchase_goes_its_whole_way_and_settles(client: Client) -> None:
    before = client.balance()
    order = client.order()
    answer = client.post(order).json()
    assert (answer["success"], answer["message"]) == (True, "Purchase created")
    data = answer["data"]
    assert data["steam_id"] == "76561198083722517"
    assert (data["status"], data["item"]["id"]) == ("new", order["asset_id"])
    assert not {"fail_reason", "trade_offer_id", "hold_end_date"} & set(data)

    tx_id = order["merchant_tx_id"]
    client.side.jump(2)
    client.until(tx_id, "pending")
    client.side.jump(2)
    assert client.until(tx_id, "active")["trade_offer_id"]
    client.side.jump(16)
    assert client.until(tx_id, "hold")["hold_end_date"].endswith("Z")
    client.side.jump(HOLD_S)
    done = client.until(tx_id, "completed")

    assert "hold_end_date" not in done
    row = client.ledger(tx_id)
    assert (row["status"], row["inHold"], row["providerStatus"]) == (
        "completed",
        False,
        "completed",
    )
    assert row["amountMills"] == row["priceMills"] == before - client.balance()
    assert client.get("/purchase/status", id=done["id"])["merchant_tx_id"] == tx_id


def test_a_purchase_by_name_takes_the_cheapest(client: Client) -> None:
    rows = client.get("/purchase/available", game="csgo", full=1)["items"]
    names = [row["name"] for row in rows]
    name = next(name for name in names if names.count(name) > 1)
    cheapest = min((row for row in rows if row["name"] == name), key=lambda row: row["price"])

    order = client.order(asset_id=None, name=name, max_price=float(cheapest["price"]))
    data = client.post(order).json()["data"]

    assert data["item"]["id"] == cheapest["id"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_price": 0.001}, "price_changed"),
        ({"asset_id": "0"}, "item_not_available"),
        ({"asset_id": None, "name": "No Such Skin"}, "item_not_available"),
    ],
)
def test_a_refusal_is_a_failed_purchase_inside_of_success(
    client: Client, change: dict[str, Any], reason: str
) -> None:
    before = client.balance()
    order = client.order(**change)

    answer = client.post(order)

    data = answer.json()["data"]
    assert (answer.status_code, data["status"], data["fail_reason"]) == (200, "failed", reason)
    assert client.status(order["merchant_tx_id"])["id"] == data["id"]
    assert client.balance() == before


def test_a_name_above_the_cap_has_its_own_reason(client: Client) -> None:
    name = client.item()["marketHashName"]
    order = client.order(asset_id=None, name=name, max_price=0.001)

    assert client.post(order).json()["data"]["fail_reason"] == "item_specified_price_not_found"


def test_funds_short_is_refused_at_once() -> None:
    with simulating(balance_cents=1, items=5) as client:
        data = client.post(client.order()).json()["data"]
        assert data["fail_reason"] == "insufficient_balance"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"partner": 7}, "partner"),
        ({"partner": 2**32}, "partner"),
        ({"partner": None}, "partner"),
        ({"token": "short"}, "token"),
        ({"asset_id": None}, "name"),
        ({"max_price": -1}, "max_price"),
    ],
)
def test_a_wrong_field_is_named(client: Client, change: dict[str, Any], field: str) -> None:
    order = client.order(**change)

    answer = client.post(order)

    assert (answer.status_code, answer.json()["message"]) == (400, "validation error")
    assert [each["field"] for each in answer.json()["data"]] == [field]
    assert client.status(order["merchant_tx_id"]) is None


@pytest.mark.parametrize("change", [{"partner": "123456789"}, {"max_price": "6"}, {"token": 1}])
def test_a_wrong_type_makes_the_body_invalid(client: Client, change: dict[str, Any]) -> None:
    answer = client.post(client.order(**change))

    assert (answer.status_code, answer.json()["message"]) == (400, "invalid request body")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"max_price": NaN}', b"\xff", b"[" * 99_999])
def test_a_body_that_is_no_object_is_invalid(client: Client, body: bytes) -> None:
    answer = client.http.post("/purchase", content=body)

    assert (answer.status_code, answer.json()["message"]) == (400, "invalid request body")


def test_a_repeated_id_is_answered_in_one_of_three_ways(client: Client) -> None:
    order = client.order()
    first = client.post(order).json()["data"]
    client.side.jump(5)
    client.until(order["merchant_tx_id"], "active")

    stored = client.post({**order, "max_price": 1}).json()["data"]
    client.side.ask("POST", "/options", repeated_id="conflict")
    conflict = client.post(order)
    client.side.ask("POST", "/options", repeated_id="failed")
    failed = client.post(order).json()["data"]

    assert (stored["id"], stored["status"]) == (first["id"], "active")
    assert (conflict.status_code, conflict.json()["success"]) == (409, False)
    assert (failed["status"], failed["fail_reason"]) == ("failed", "duplicate_purchase")
    assert failed["id"] != first["id"]
    assert client.status(order["merchant_tx_id"])["id"] == first["id"]
    row = client.ledger(order["merchant_tx_id"])
    assert (row["posts"], row["conflictingPosts"]) == (4, 1)


def test_a_refused_id_is_free_again_where_it_is_told_to(client: Client) -> None:
    order = client.order(max_price=0)
    refused = client.post(order).json()["data"]
    again = {**order, "max_price": 9999}
    assert client.post(again).json()["data"]["id"] == refused["id"]

    client.side.ask("POST", "/options", refusals_burn_id=False)

    assert client.post(again).json()["data"]["status"] == "new"


def test_unknown_purchases_are_404(client: Client) -> None:
    answer = client.http.get("/purchase/status", params={"merchant_tx_id": "nobody"})
    assert (answer.status_code, answer.json()["success"]) == (404, False)
    assert client.http.get("/purchase/status", params={"id": 1}).status_code == 404
    assert client.http.get("/purchase/status", params={"id": "x"}).status_code == 400
    assert client.http.get("/purchase/status").status_code == 400


def test_the_history_is_filtered_sorted_and_paged(client: Client) -> None:
    order, other = client.buy("stuck"), client.buy("stuck")
    tx_ids = [order["merchant_tx_id"], other["merchant_tx_id"]]

    newest = client.get("/purchase", limit=2)
    oldest = client.get("/purchase", limit=1, sort="id", date_range=1)
    found = client.get("/purchase", search=tx_ids[0])
    reverted = client.get("/purchase", status="reverted")

    assert [row["merchant_tx_id"] for row in newest["data"]] == tx_ids[::-1]
    assert oldest["data"][0]["id"] < newest["data"][0]["id"]
    assert tx_ids[0] in {row["merchant_tx_id"] for row in found["data"]}
    assert all(row["status"] == "reverted" for row in reverted["data"])
    assert client.get("/purchase", offset=1, limit=1)["data"] == newest["data"][1:]
