"""The Skinslink simulator's scenarios, faults, recipients and webhooks."""

import threading
from collections.abc import Iterator

import httpx
import pytest

from fulfillment.simulator.skinslink_words import sign
from tests.support import until
from tests.unit.skinslink_client import SECRET, Client, restored, simulating


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
        ("fails_after_accept", "failed", "item_not_available", False),
        ("price_changes_after_accept", "failed", "price_changed", False),
        ("funds_fail_after_accept", "failed", "insufficient_balance", False),
        ("unknown_failure", "failed", "recipient_trade_banned", False),
        ("refund_missing", "failed", "item_not_available", True),
        ("cancelled", "canceled", None, False),
        ("declined", "canceled", None, False),
        ("expired", "canceled", None, False),
        ("recipient_full", "canceled", None, False),
        ("overdue", "hold", None, True),
        ("hold_settles", "completed", None, True),
        ("reversed", "reverted", None, False),
        ("rollback_supplier", "reverted", None, False),
        ("reversed_without_refund", "reverted", None, True),
        ("reversed_after_settling", "reverted", None, False),
        ("contradicted", "hold", None, True),
        ("completed_before_answer", "hold", None, True),
        ("never_delivered_offline", "active", None, True),
        ("stuck", "new", None, True),
    ],
)
def test_a_scenario_ends_in_the_providers_words_and_the_wallet_agrees(
    client: Client, scenario: str, word: str, reason: str | None, kept: bool
) -> None:
    before = client.balance()
    order = client.buy(scenario)
    client.side.jump(2000)

    data = client.until(order["merchant_tx_id"], word)

    assert data.get("fail_reason") == reason
    row = client.ledger(order["merchant_tx_id"])
    paid = row["amountMills"] - row["refundedMills"]
    assert paid == (row["priceMills"] if kept else 0)
    assert client.balance() == before - paid


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("item_gone", "item_not_available"),
        ("refused_funds", "insufficient_balance"),
        ("refused_unavailable", "provider_unavailable"),
        ("refused_unknown", "blue_moon"),
        ("duplicate_purchase", "duplicate_purchase"),
    ],
)
def test_a_purchase_fails_at_once_as_its_scenario_says(
    client: Client, scenario: str, reason: str
) -> None:
    order = client.order(scenario)

    data = client.post(order).json()["data"]

    assert (data["status"], data["fail_reason"]) == ("failed", reason)
    stored = client.status(order["merchant_tx_id"])["status"]
    assert stored == ("new" if scenario == "duplicate_purchase" else "failed")


def test_a_409_can_hide_the_purchase_that_was_just_made(client: Client) -> None:
    order = client.order("duplicate_id")

    assert client.post(order).status_code == 409
    assert client.status(order["merchant_tx_id"])["status"] == "new"


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("BadToken", "trade_link_invalid"),
        ("OldToken", "trade_link_revoked"),
        ("TradeBan", "trade_banned"),
        ("PrivateI", "profile_private"),
        ("LimitedA", "limited_account"),
        ("HoldAcct", "hold"),
        ("CantTrad", "permissions"),
        ("HoldPerm", "hold_and_permissions"),
    ],
)
def test_a_recipients_problem_is_a_validation_error(client: Client, token: str, code: str) -> None:
    order = client.order(token=token)

    answer = client.post(order)

    assert (answer.status_code, answer.json()["message"]) == (400, "validation error")
    [said] = answer.json()["data"]
    assert set(said) == {"field", "code", "message"}
    assert said["code"] == code
    assert client.status(order["merchant_tx_id"]) is None


def test_a_stalled_purchase_is_made_after_the_client_hung_up(client: Client) -> None:
    order, dropped = client.order("stalled_before_accept"), client.order("stalled_and_dropped")
    for each in (order, dropped):
        with pytest.raises(httpx.TimeoutException):
            client.post(each, timeout=0.2)
        assert client.status(each["merchant_tx_id"]) is None

    client.side.jump(30)

    until(lambda: client.status(order["merchant_tx_id"]) is not None)
    assert client.status(dropped["merchant_tx_id"]) is None


def test_faults_speak_the_providers_words(client: Client) -> None:
    for fault, status in [
        ("outage_retry_after", 503),
        ("unauthorized", 401),
        ("forbidden", 403),
        ("rate_limited", 429),
        ("gateway_timeout", 504),
        ("error", 500),
    ]:
        client.side.ask("POST", "/faults", fault=fault, call="wallet", times=1)
        answer = client.http.get("/balance")
        assert answer.status_code == status
        if fault != "gateway_timeout":
            assert answer.json()["success"] is False
    client.side.ask("POST", "/faults", fault="empty_catalog", call="catalog", times=1)
    assert client.get("/purchase/available", game="csgo")["items"] == []
    order = client.buy()
    client.side.ask("POST", "/faults", fault="foreign_order", call="lookup", times=1)
    assert client.status(order["merchant_tx_id"])["merchant_tx_id"] == "somebody-elses-order"


def test_words_that_are_not_documented_can_be_switched(client: Client) -> None:
    client.side.ask("POST", "/options", declined_word="failed", dates="offset", hold_s=0)
    declined, delivered = client.buy("declined"), client.buy()
    client.side.jump(25)

    assert "fail_reason" not in client.until(declined["merchant_tx_id"], "failed")
    assert client.until(delivered["merchant_tx_id"], "completed")["date"].endswith("+03:00")


# Webhooks


def test_the_sign_equals_the_contracts_vector() -> None:
    assert sign(178, SECRET) == "prMmPzRaN0T3R7gE03AdYKlG1fNpsN0iKTzMuk1/Q+M="


def test_webhooks_come_on_the_named_statuses_only(client: Client) -> None:
    order = client.buy("reversed_after_settling")
    client.side.jump(100)

    letters = client.inbox.wait(order["merchant_tx_id"], 3)

    said = [letter.said for letter in letters]
    assert {each["status"] for each in said} == {"hold", "completed", "reverted"}
    assert all(each["sign"] == sign(each["purchase_id"], SECRET) for each in said)
    assert said[0]["amount_currency"] == "usd"
    assert {"purchase_date", "steam_id", "offer_id", "amount"} <= set(said[0])


def test_a_forged_status_can_carry_a_valid_sign(client: Client) -> None:
    order = client.buy("webhooks_forged")
    client.side.jump(1)

    letters = client.inbox.wait(order["merchant_tx_id"], 6)

    signs = {letter.said["sign"] for letter in letters}
    valid = sign(letters[0].said["purchase_id"], SECRET)
    assert valid in signs
    assert len(signs) == 3
    claims = [each.said["status"] for each in letters if each.said["sign"] == valid]
    assert set(claims) == {"completed"}
    assert client.status(order["merchant_tx_id"])["status"] == "pending"


def test_a_refused_webhook_is_tried_five_times(client: Client) -> None:
    client.inbox.code = 500
    order = client.buy()
    client.side.jump(25)
    path = f"/deliveries?externalId={order['merchant_tx_id']}"

    for count, pause_s in ((1, 1), (2, 5), (3, 30), (4, 120), (5, 300)):
        client.inbox.wait(order["merchant_tx_id"], count)
        until(lambda n=count: len(client.side.ask("GET", path)["deliveries"][0]["answers"]) == n)  # type: ignore[misc]
        client.side.jump(pause_s)
    client.inbox.code = 204

    [delivery] = client.side.ask("GET", path)["deliveries"]
    assert (delivery["attempts"], delivery["outcome"]) == (5, "given_up")


def test_many_purchases_at_once_under_one_id_are_one(client: Client) -> None:
    order = client.order()
    ids: set[int] = set()

    def post() -> None:
        with httpx.Client(headers=client.http.headers, trust_env=False) as own:
            answer = own.post(f"{client.http.base_url}purchase", json=order)
            ids.add(answer.json()["data"]["id"])

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 1
