"""The SkinsBack simulator's scenarios, faults, recipients and events."""

import hashlib
import hmac
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fulfillment.simulator.skinsback_signature import sign_event
from tests.support import until
from tests.unit.skinsback_client import OPTIONS, SECRET, TOKEN, Client, restored, simulating


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with simulating() as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    with restored(shared):
        yield shared


# Scenarios


@pytest.mark.parametrize(
    ("scenario", "word", "reason", "kept"),
    [
        ("fails_after_accept", "trade_create_error", "skin_unavailable", False),
        ("trade_not_created", "trade_create_error", None, False),
        ("unknown_failure", "trade_create_error", "recipient_trade_banned", False),
        ("refund_missing", "trade_create_error", "skin_unavailable", True),
        ("cancelled", "canceled", None, False),
        ("declined", "canceled", None, False),
        ("expired", "timeout", None, False),
        ("overdue", "accepted", None, True),
        ("hold_settles", "accepted", None, True),
        ("reversed", "rollback_user", None, False),
        ("rollback_user", "rollback_user", None, False),
        ("rollback_supplier", "rollback_supplier", None, False),
        ("reversed_without_refund", "rollback_user", None, True),
        ("reversed_after_settling", "rollback_user", None, False),
        ("contradicted", "accepted", None, True),
        ("completed_before_answer", "accepted", None, True),
        ("never_delivered_offline", "waiting_accept", None, True),
        ("stuck", "creating_trade", None, True),
        ("recipient_bad_token", "invalid_trade_token", None, False),
        ("recipient_trade_ban", "user_not_tradable", "user_trade_ban", False),
        ("recipient_private", "trade_create_error", "private_inventory", False),
        ("recipient_full", "trade_create_error", "user_inventory_is_full", False),
        ("recipient_failed_often", "trade_create_error", "too_many_failed_attempts", False),
    ],
)
def test_a_scenario_ends_in_the_providers_words_and_the_wallet_agrees(
    client: Client, scenario: str, word: str, reason: str | None, kept: bool
) -> None:
    before = client.balance()
    order = client.buy(scenario)
    client.side.jump(2000)

    info = client.until(order["custom_id"], word)

    assert info["error_reason"] == reason
    truth = client.side.ask("GET", f"/orders/{order['custom_id']}")
    assert truth["providerStatus"] == word
    paid = truth["amountMills"] - truth["refundedMills"]
    assert paid == (truth["priceMills"] if kept else 0)
    assert client.balance() == before - paid
    if scenario == "hold_settles":
        assert info["in_hold"] is False


@pytest.mark.parametrize(
    ("scenario", "code", "is_created"),
    [
        ("item_gone", 5, False),
        ("refused_item", 5, False),
        ("refused_price", 6, False),
        ("refused_funds", 4, False),
        ("refused_unavailable", -6, False),
        ("refused_unknown", 13, False),
        ("rate_limited", -7, False),
        ("duplicate_id", 7, True),
        ("duplicate_purchase", 7, True),
    ],
)
def test_a_purchase_is_answered_with_the_scenarios_error(
    client: Client, scenario: str, code: int, is_created: bool
) -> None:
    order = client.order(scenario)

    assert client.call("market_buy", **order)["error_code"] == code
    assert (client.info(order["custom_id"]) is not None) == is_created


def test_a_lost_answer_leaves_an_order_that_hides_for_a_while(client: Client) -> None:
    order = client.order("timeout_and_hidden")
    with pytest.raises(httpx.TimeoutException):
        client.post({"method": "market_buy", **order}, timeout=0.2)

    assert client.info(order["custom_id"]) is None
    assert client.call("market_buy", **order)["error_code"] == 7
    client.side.jump(46)
    assert client.info(order["custom_id"])["offer_status"]


def test_a_stalled_purchase_is_made_after_the_client_hung_up(client: Client) -> None:
    order = client.order("stalled_before_accept")
    with pytest.raises(httpx.TimeoutException):
        client.post({"method": "market_buy", **order}, timeout=0.2)
    assert client.info(order["custom_id"]) is None

    client.side.jump(30)

    until(lambda: client.info(order["custom_id"]) is not None)


def test_faults_speak_the_providers_words_and_can_name_a_call(client: Client) -> None:
    for fault, code in [
        ("maintenance", -9),
        ("market_disabled", -6),
        ("account_disabled", -4),
        ("forbidden", -8),
        ("unauthorized", -10),
        ("rate_limited", -7),
    ]:
        client.side.ask("POST", "/faults", fault=fault, call="wallet", times=1)
        assert client.call("market_getinfo", buy_id=1)["error_code"] == 2
        assert client.call("balance")["error_code"] == code
    client.side.ask("POST", "/faults", fault="outage", call="market_buy", after=True, times=1)
    order = client.order()
    answer = client.http.post("/api.php", json={"method": "market_buy", **order})
    assert answer.status_code == 503
    assert client.info(order["custom_id"])
    client.side.ask("POST", "/faults", fault="foreign_order", call="lookup", times=1)
    answer = client.call("market_getinfo", custom_ids=[order["custom_id"]])
    assert answer["items"][0]["custom_id"] == "somebody-elses-order"


def test_the_limit_is_kept_and_the_busiest_minute_told(client: Client) -> None:
    ledger = client.side.ask("GET", "/ledger")
    client.side.jump(61)
    client.side.ask("POST", "/options", requests_per_minute=20, limit_block_s=5)

    answers = [client.call("status") for _ in range(21)]

    assert [answer.get("error_code") for answer in answers] == [None] * 20 + [-7]
    after = client.side.ask("GET", "/ledger")
    assert after["requestsLimited"] == ledger["requestsLimited"] + 1
    assert after["peakRequestsPerMinute"] >= 21
    assert OPTIONS.limit_per_minute == 0
    assert replace(OPTIONS, requests_per_minute=None).limit_per_minute == 500
    client.side.jump(61)
    assert client.call("status")["status"] == "success"


# Recipients


def check(client: Client, token: str = TOKEN, **changes: Any) -> str:
    asked = {"game": "cs2", "steam_id": "76561198083722517", "trade_token": token, **changes}
    answer = client.call("user_inventory", **asked)
    return str(answer.get("error_message") or answer["status"])


@pytest.mark.parametrize(
    ("token", "found", "word"),
    [
        ("BadToken", "invalid_trade_token", "invalid_trade_token"),
        ("TradeBan", "user_not_tradable", "user_not_tradable"),
        ("PrivateI", "user_inventory_is_hidden", "trade_create_error"),
        ("NoInvent", "user_inventory_is_unavailable", "trade_create_error"),
        ("FullInvt", "success", "trade_create_error"),
    ],
)
def test_a_token_names_what_is_wrong_with_its_recipient(
    client: Client, token: str, found: str, word: str
) -> None:
    assert check(client, token) == found

    order = client.buy(token=token)
    client.side.jump(3)
    client.until(order["custom_id"], word)


def test_a_recipients_problem_can_be_set_by_account(client: Client) -> None:
    for recipient in ("123456789", "76561198083722517", TOKEN):
        client.side.ask("POST", "/recipients", recipient=recipient, problem="trade_ban")
        assert check(client) == "user_not_tradable"
        client.side.ask("POST", "/recipients", recipient=recipient)
    assert check(client) == "success"
    refused = client.http.post("/_sim/recipients", json={"recipient": "1", "problem": "?"})
    assert refused.status_code == 422


def test_an_inventory_is_asked_for_rightly(client: Client) -> None:
    assert check(client, game="chess") == "invalid_game"
    assert check(client, steam_id="123") == "invalid_steam_id"
    assert check(client, token="no token") == "invalid_trade_token"
    assert check(client, currency="xyz") == "invalid_currency"
    assert check(client, custom_currency="toolong") == "invalid_custom_currency"
    assert check(client, custom_currency_rate=0.05) == "invalid_custom_currency_rate"
    assert check(client, custom_multiplier=3) == "invalid_custom_multiplier"
    asked = {"game": "cs2", "steam_id": "76561198083722517", "trade_token": TOKEN}
    [first, *_] = client.call("user_inventory", **asked)["data"]["items"]
    assert first["item"]["tradable"] == 1


# Events


def test_the_event_signature_equals_the_contracts_vector() -> None:
    body = (
        b'{"event":"status_change","data":{"item":{"id":"2516"},"buy_id":"65","offer_status":'
        b'"waiting_accept","error_reason":null,"tradeofferid":"7000000001","custom_id":"order-1"}}'
    )
    assert len(body) == 171
    expected = "c1685aa3c86ba07d4cf704e5a2138ca20ef100cc8f78226f4f87a42179e05698"
    assert sign_event("s3cr3t", body) == expected


def test_events_are_pushed_for_each_new_word(client: Client) -> None:
    order = client.buy("rollback_user")
    client.side.jump(100)

    letters = client.inbox.wait(order["custom_id"], 4)

    for letter in letters:
        expected = hmac.new(SECRET.encode(), letter.body, hashlib.sha256).hexdigest()
        assert letter.headers["signature"] == expected
    said = {(each.said["event"], each.said["data"]["offer_status"]) for each in letters}
    assert said == {
        ("buy_item", "creating_trade"),
        ("status_change", "waiting_accept"),
        ("status_change", "accepted"),
        ("status_change", "rollback_user"),
    }
    assert not any("in_hold" in letter.said["data"] for letter in letters)


def test_what_is_pushed_can_be_switched(client: Client) -> None:
    client.side.ask("POST", "/options", pushes_rollbacks=False, pushes_balance=True)
    order = client.buy("rollback_supplier")
    client.side.jump(100)
    client.until(order["custom_id"], "rollback_supplier")

    letters = client.inbox.wait(order["custom_id"], 4)

    events = sorted(letter.said["event"] for letter in letters)
    assert events == ["balance_change", "buy_item", "status_change", "status_change"]
    client.side.ask("POST", "/options", webhook_url=None)
    silent = client.buy()
    client.side.jump(30)
    client.until(silent["custom_id"], "accepted")
    assert client.inbox.about(silent["custom_id"]) == []


def test_an_event_can_come_before_the_purchases_answer(client: Client) -> None:
    order = client.buy("completed_before_answer")

    [letter] = client.inbox.about(order["custom_id"])
    assert letter.said["data"]["offer_status"] == "accepted"


@pytest.mark.parametrize("scenario", ["webhooks_bad_signature", "webhooks_reserialised"])
def test_spoiled_events_do_not_verify(client: Client, scenario: str) -> None:
    order = client.buy(scenario)

    letter = client.inbox.wait(order["custom_id"], 1)[0]

    expected = hmac.new(SECRET.encode(), letter.body, hashlib.sha256).hexdigest()
    assert letter.headers["signature"] != expected


def test_many_purchases_at_once_under_one_custom_id_are_one(client: Client) -> None:
    order = client.order()
    answers: list[Any] = []

    def post() -> None:
        with httpx.Client(headers=client.http.headers, trust_env=False) as own:
            body = {"method": "market_buy", **order}
            answers.append(own.post(f"{client.http.base_url}/api.php", json=body).json())

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    codes = sorted(answer.get("error_code", 0) for answer in answers)
    assert codes == [0] + [7] * 7
