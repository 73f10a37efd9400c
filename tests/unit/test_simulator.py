"""The judge is judged: the SkinsNode simulator, driven over HTTP as a client would."""

import hashlib
import hmac
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.simulator.catalog import build
from fulfillment.simulator.faults import FAULTS
from fulfillment.simulator.scenarios import SCENARIOS, describe
from fulfillment.simulator.skinsnode import sign

SECRET = "cs_test_7f3a9c"
OPTIONS = SimulatorOptions(
    client_id="client_test_4242", client_secret=SECRET, port=0, items=400, balance_cents=50_000_000
)
TRADE_URL = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=AbCdEfGh"
DEADLINE_S = 10.0
numbers = itertools.count()


class Callback:
    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers = headers
        self.body = body
        self.said: dict[str, Any] = json.loads(body)
        self.delivery_id = headers["x-delivery-id"]

    @property
    def is_genuine(self) -> bool:
        signed = self.headers["x-timestamp"].encode() + b"." + self.body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        return self.headers["x-signature"] == expected


class Receiver:
    """A store's webhook endpoint that can be told to refuse."""

    def __init__(self) -> None:
        self.received: list[Callback] = []
        self.refusals: Counter[str] = Counter()
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.send_response(receiver.take(Callback(headers, body)))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        # A burst of callbacks must not wait for a second because the backlog is five.
        ThreadingHTTPServer.request_queue_size = 128
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/webhooks/main"

    def take(self, callback: Callback) -> int:
        with self.changed:
            self.received.append(callback)
            self.changed.notify_all()
            if self.refusals[callback.said["externalId"]]:
                self.refusals[callback.said["externalId"]] -= 1
                return 500
            return 204

    def about(self, external_id: str) -> list[Callback]:
        return [each for each in self.received if each.said["externalId"] == external_id]

    def wait_for(self, external_id: str, count: int) -> list[Callback]:
        with self.changed:
            arrived = self.changed.wait_for(lambda: len(self.about(external_id)) >= count, 10)
            assert arrived, f"{count} callbacks expected, {len(self.about(external_id))} came"
            return self.about(external_id)


class Provider:
    """The client side of one running simulator."""

    def __init__(self, url: str, receiver: Receiver) -> None:
        headers = {"x-client-id": OPTIONS.client_id, "x-client-secret": SECRET}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=DEADLINE_S)
        self.receiver = receiver

    def item(self) -> dict[str, Any]:
        found = self.http.get("/_sim/items", params={"limit": 1, "available": "true"}).json()
        item: dict[str, Any] = found["items"][0]
        return item

    def body(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        item = self.item()
        body = {
            "catalogItemId": item["id"],
            "expectedPrice": item["price"],
            "externalId": f"order-{next(numbers)}.{scenario}",
            "webhookUrl": self.receiver.url,
            "tradeUrl": TRADE_URL,
        }
        return {**body, **changes}

    def post(self, body: dict[str, Any], timeout: float = DEADLINE_S) -> httpx.Response:
        return self.http.post("/v1/orders", json=body, timeout=timeout)

    def buy(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        body = self.body(scenario, **changes)
        assert self.post(body).status_code == 202
        return body

    def control(self, method: str, path: str, body: Any = None) -> Any:
        response = self.http.request(method, f"/_sim{path}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def jump(self, seconds: float) -> None:
        self.control("POST", "/clock", {"advanceS": seconds})

    def truth(self, external_id: str) -> dict[str, Any]:
        state: dict[str, Any] = self.control("GET", f"/orders/{external_id}")
        return state

    def until(self, external_id: str, status: str) -> dict[str, Any]:
        eventually(lambda: self.truth(external_id)["status"] == status)
        return self.truth(external_id)

    def balance(self) -> int:
        figure: int = self.control("GET", "/ledger")["wallet"]["balance"]
        return figure


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.02,))
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def shared(receiver: Receiver) -> Iterator[Provider]:
    with running(OPTIONS) as url:
        provider = Provider(url, receiver)
        with provider.http:
            yield provider


@pytest.fixture
def provider(shared: Provider) -> Iterator[Provider]:
    yield shared
    shared.control("DELETE", "/faults")
    shared.control("POST", "/options", {"cache_missing_orders": True, "replay_conflict": "stored"})
    # Nothing that one test left in the provider's read cache may meet the next one.
    shared.jump(60)


def test_signature_equals_the_contracts_vector() -> None:
    body = (
        b'{"externalId":"order_100042","status":"completed","steamOfferId":"7193849201",'
        b'"amount":"1840","currency":"USD","error":null,"timestamps":{"queuedAt":'
        b'"2026-11-20T12:30:00.000Z","updatedAt":"2026-11-20T12:36:12.000Z","refundedAt":null}}'
    )
    expected = "7c7609a088622004de56fa30e139c36d6612cccf76e88b0d20c914c2aa4232d4"

    assert len(body) == 234
    assert sign(SECRET, "2026-11-20T12:36:12.000Z", body) == expected


def test_reads_have_the_contracts_fields_and_types(provider: Provider) -> None:
    assert provider.http.get("/v1/health", headers={"x-client-id": ""}).json() == {
        "status": "ok",
        "service": "skinsnode",
    }
    wallet = provider.http.get("/v1/wallet").json()
    assert wallet["clientId"] == OPTIONS.client_id
    assert isinstance(wallet["availableBalance"], str)
    item = provider.http.get("/v1/catalog").json()["items"][0]
    assert set(item) == {
        *("id", "marketHashName", "price", "currency", "phase", "floatValue", "paintIndex"),
        *("paintSeed", "rarityColor", "classId", "instanceId", "imageUrl"),
    }
    assert type(item["price"]) is int
    assert type(item["floatValue"]) is str


def test_every_route_but_health_wants_both_headers(provider: Provider) -> None:
    for path in ("/v1/wallet", "/v1/catalog", "/v1/orders/some-order"):
        answer = provider.http.get(path, headers={"x-client-secret": "wrong"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "change",
    [
        {"expectedPrice": "612"},
        {"expectedPrice": 612.0},
        {"expectedPrice": 0},
        {"externalId": "a/b"},
        {"externalId": "x" * 65},
        {"tradeUrl": "https://steamcommunity.com/tradeoffer/new/?partner=1"},
        {"webhookUrl": "ftp://x"},
        {"catalogItemId": None},
    ],
)
def test_a_body_that_is_not_valid_is_422_and_never_quoted(
    provider: Provider, change: dict[str, Any]
) -> None:
    answer = provider.post(provider.body(**change))

    assert answer.status_code == 422
    assert next(iter(change)) in answer.json()["error"]["message"]
    assert "partner=1" not in answer.text


def test_an_order_goes_its_whole_way_with_signed_webhooks(provider: Provider) -> None:
    body = provider.body()
    before = provider.balance()
    accepted = provider.post(body)
    assert accepted.status_code == 202
    assert set(accepted.json()) == {"externalId", "status", "acceptedAt"}
    assert accepted.json()["status"] == "accepted"

    provider.jump(25)
    callbacks = provider.receiver.wait_for(body["externalId"], 5)

    statuses = {callback.said["status"] for callback in callbacks}
    assert statuses == {"queued", "processing", "pending", "sent", "completed"}
    assert all(callback.is_genuine for callback in callbacks)
    assert len({callback.delivery_id for callback in callbacks}) == 5
    last = next(each for each in callbacks if each.said["status"] == "completed")
    assert last.headers["x-event-type"] == "order.updated"
    assert last.said["amount"] == str(body["expectedPrice"])
    order = provider.http.get(f"/v1/orders/{body['externalId']}").json()
    assert order["status"] == "completed"
    assert order["tradeUrl"] == TRADE_URL
    assert order["item"]["price"] == body["expectedPrice"]
    assert order["pricing"] == {"currency": "USD", "amount": str(body["expectedPrice"])}
    assert order["steamOfferId"] == last.said["steamOfferId"]
    assert order["failure"] is None
    assert provider.balance() == before - body["expectedPrice"]


def test_a_replay_answers_the_same_and_buys_nothing(provider: Provider) -> None:
    body = provider.body()
    first = provider.post(body).json()
    balance = provider.balance()
    provider.jump(25)
    provider.until(body["externalId"], "completed")

    replay = provider.post(body)
    changed = provider.post({**body, "expectedPrice": body["expectedPrice"] + 1})

    assert replay.status_code == changed.status_code == 202
    assert replay.json() == changed.json() == first
    assert provider.balance() == balance
    truth = provider.truth(body["externalId"])
    assert (truth["posts"], truth["conflictingPosts"]) == (3, 1)
    provider.control("POST", "/options", {"replay_conflict": "refused"})
    assert provider.post({**body, "expectedPrice": 1}).status_code == 422
    assert provider.post(body).status_code == 202


def test_reads_are_thirty_seconds_old_even_a_404(provider: Provider) -> None:
    body = provider.body()
    path = f"/v1/orders/{body['externalId']}"
    wallet = provider.http.get("/v1/wallet").json()
    assert provider.http.get(path).status_code == 404

    provider.post(body)
    assert provider.http.get(path).status_code == 404
    assert provider.http.get("/v1/wallet").json() == wallet
    provider.jump(30)
    assert provider.http.get(path).status_code == 200
    paid = int(wallet["availableBalance"]) - body["expectedPrice"]
    assert provider.http.get("/v1/wallet").json()["availableBalance"] == str(paid)


def test_a_cached_404_can_be_switched_off(provider: Provider) -> None:
    provider.control("POST", "/options", {"cache_missing_orders": False})
    body = provider.body()
    path = f"/v1/orders/{body['externalId']}"

    assert provider.http.get(path).status_code == 404
    provider.post(body)
    assert provider.http.get(path).status_code == 200


def test_an_item_is_sold_once_and_returns_when_its_order_is_cancelled(provider: Provider) -> None:
    body = provider.buy("cancelled")

    assert body["catalogItemId"] not in provider.http.get("/v1/catalog").text
    other = provider.body(catalogItemId=body["catalogItemId"])
    assert provider.post(other).status_code == 404
    provider.jump(5)
    provider.until(body["externalId"], "cancelled")
    assert body["catalogItemId"] in provider.http.get("/v1/catalog").text


def test_price_above_the_cap_fails_after_the_202_uncharged(provider: Provider) -> None:
    body = provider.body()
    before = provider.balance()
    new_price = body["expectedPrice"] + 1
    provider.control("PUT", f"/items/{body['catalogItemId']}", {"price": new_price})
    assert provider.post(body).status_code == 202

    provider.jump(5)
    truth = provider.until(body["externalId"], "failed")

    assert truth["failureCode"] == "price_changed"
    assert truth["amountCents"] == 0
    assert provider.balance() == before


def test_price_below_the_cap_is_charged_as_it_is(provider: Provider) -> None:
    item = provider.item()
    body = provider.buy(catalogItemId=item["id"], expectedPrice=item["price"] + 100)

    order = provider.http.get(f"/v1/orders/{body['externalId']}").json()
    assert order["pricing"]["amount"] == str(item["price"])


def test_funds_short_fails_after_the_202(receiver: Receiver) -> None:
    with running(replace(OPTIONS, balance_cents=1, items=5, speed=20)) as url:
        provider = Provider(url, receiver)
        with provider.http:
            body = provider.buy()
            truth = provider.until(body["externalId"], "failed")
            assert truth["failureCode"] == "insufficient_funds"
            provider.control("POST", "/wallet", {"deltaCents": 1_000_000})
            wallet = provider.control("GET", "/ledger")["wallet"]
            assert wallet["balance"] == 1_000_001
            assert [move["kind"] for move in wallet["movements"]] == ["top_up"]


@pytest.mark.parametrize(
    ("scenario", "status", "code", "kept"),
    [
        ("fails_after_accept", "failed", "item_unavailable", False),
        ("price_changes_after_accept", "failed", "price_changed", False),
        ("funds_fail_after_accept", "failed", "insufficient_funds", False),
        ("refund_missing", "failed", "item_unavailable", True),
        ("cancelled", "cancelled", "cancelled", False),
        ("declined", "failed", "cancelled", False),
        ("expired", "expired", None, False),
        ("overdue", "completed", None, True),
        ("reversed", "reversed", None, False),
        ("reversed_without_refund", "reversed", None, True),
        ("contradicted", "completed", None, True),
        ("unknown_status", "completed", None, True),
        ("completed_before_answer", "completed", None, True),
        ("never_delivered_offline", "sent", None, True),
        ("stuck", "accepted", None, True),
    ],
)
def test_a_scenario_ends_as_its_row_says_and_the_wallet_agrees(
    provider: Provider, scenario: str, status: str, code: str | None, kept: bool
) -> None:
    before = provider.balance()
    body = provider.buy(scenario, webhookUrl=None)
    provider.jump(2000)

    truth = provider.until(body["externalId"], status)

    assert truth["failureCode"] == code
    paid = truth["amountCents"] - truth["refundedCents"]
    assert paid == (body["expectedPrice"] if kept else 0)
    assert provider.balance() == before - paid
    provider.jump(60)
    order = provider.http.get(f"/v1/orders/{body['externalId']}").json()
    assert order["status"] == status
    assert (order["timestamps"]["refundedAt"] is None) == kept or scenario == "contradicted"


def test_expiry_waits_for_the_whole_window(provider: Provider) -> None:
    body = provider.buy("expired")
    provider.jump(600)
    assert provider.until(body["externalId"], "sent")["history"][-1][1] == "sent"
    provider.jump(5)
    provider.until(body["externalId"], "expired")


@pytest.mark.parametrize(
    ("scenario", "is_created"),
    [
        ("timeout_after_accept", True),
        ("timeout_before_accept", False),
        ("dropped_after_accept", True),
        ("dropped_before_accept", False),
        ("reset_after_accept", True),
    ],
)
def test_a_post_without_answer_leaves_the_order_or_not(
    provider: Provider, scenario: str, is_created: bool
) -> None:
    body = provider.body(scenario)
    with pytest.raises(httpx.TransportError):
        provider.post(body, timeout=0.2)

    state = provider.http.get(f"/_sim/orders/{body['externalId']}")
    assert state.status_code == (200 if is_created else 404)
    assert provider.post(body).json()["status"] == "accepted"
    assert provider.truth(body["externalId"])["posts"] == (2 if is_created else 1)


@pytest.mark.parametrize(
    ("scenario", "code", "is_created"),
    [
        ("error_after_accept", 500, True),
        ("error_before_accept", 503, False),
        ("errors_three_times", 503, False),
        ("rate_limited", 429, False),
        ("garbage_answer", 202, True),
        ("foreign_answer", 202, True),
        ("html_answer", 200, True),
        ("item_gone", 404, False),
    ],
)
def test_a_post_answered_badly_leaves_the_order_or_not(
    provider: Provider, scenario: str, code: int, is_created: bool
) -> None:
    body = provider.body(scenario)

    answer = provider.post(body)

    assert answer.status_code == code
    assert answer.headers.get("retry-after") == ("1" if scenario == "rate_limited" else None)
    state = provider.http.get(f"/_sim/orders/{body['externalId']}")
    assert state.status_code == (200 if is_created else 404)


def test_callbacks_come_before_the_posts_answer(provider: Provider) -> None:
    body = provider.buy("webhook_before_answer")

    said = [each.said["status"] for each in provider.receiver.about(body["externalId"])]
    assert said == ["accepted", "processing"]


def test_lost_webhooks_are_lost_and_known_as_lost(provider: Provider) -> None:
    body = provider.buy("webhooks_lost")
    provider.jump(25)
    provider.until(body["externalId"], "completed")

    deliveries = provider.control("GET", f"/deliveries?externalId={body['externalId']}")
    assert {each["outcome"] for each in deliveries["deliveries"]} == {"lost"}
    assert provider.receiver.about(body["externalId"]) == []


def test_doubled_webhooks_share_their_delivery_id(provider: Provider) -> None:
    body = provider.buy("webhooks_doubled")
    provider.jump(25)

    callbacks = provider.receiver.wait_for(body["externalId"], 10)
    assert len({callback.delivery_id for callback in callbacks}) == 5


def test_reordered_webhooks_tell_the_end_first(provider: Provider) -> None:
    body = provider.buy("webhooks_reordered")
    # Step by step, since callbacks that fall due together overtake each other anyway.
    provider.jump(20)
    for count, seconds in ((1, 0), (2, 16), (3, 2), (4, 1), (5, 0.5)):
        provider.jump(seconds)
        provider.receiver.wait_for(body["externalId"], count)

    said = [each.said["status"] for each in provider.receiver.about(body["externalId"])]
    assert said == ["completed", "sent", "pending", "processing", "queued"]


def test_forgeries_claim_completed_and_do_not_verify(provider: Provider) -> None:
    body = provider.buy("webhooks_forged")
    provider.jump(1)

    callbacks = provider.receiver.wait_for(body["externalId"], 8)
    genuine = [each for each in callbacks if each.is_genuine]
    assert {each.said["status"] for each in genuine} == {"queued", "processing"}
    forged = [each for each in callbacks if not each.is_genuine]
    assert {each.said["status"] for each in forged} == {"completed"}


@pytest.mark.parametrize("scenario", ["webhooks_bad_signature", "webhooks_reserialised"])
def test_spoiled_webhooks_do_not_verify(provider: Provider, scenario: str) -> None:
    body = provider.buy(scenario)
    provider.jump(0.5)

    assert not provider.receiver.wait_for(body["externalId"], 1)[0].is_genuine


def test_a_refused_webhook_is_retried_and_stamped_anew(provider: Provider) -> None:
    body = provider.buy("stuck")
    provider.receiver.refusals[body["externalId"]] = 2
    path = f"/orders/{body['externalId']}/advance"
    provider.control("POST", path, {"status": "sent"})
    provider.receiver.wait_for(body["externalId"], 1)
    deliveries = f"/deliveries?externalId={body['externalId']}"

    def attempts() -> int:
        count: int = provider.control("GET", deliveries)["deliveries"][0]["attempts"]
        return count

    for count, seconds in ((2, 2), (3, 4)):
        # The retry is planned when the refusal was read, which the count does not tell.
        eventually(lambda: _outcome(provider, deliveries) == "retrying")
        provider.jump(seconds)
        callbacks = provider.receiver.wait_for(body["externalId"], count)
        eventually(lambda count=count: attempts() == count)  # type: ignore[misc]

    eventually(lambda: _outcome(provider, deliveries) == "delivered")
    assert len({callback.delivery_id for callback in callbacks}) == 1
    assert all(callback.is_genuine for callback in callbacks)
    assert len({callback.headers["x-timestamp"] for callback in callbacks}) == 3


def _outcome(provider: Provider, path: str) -> str:
    outcome: str = provider.control("GET", path)["deliveries"][0]["outcome"]
    return outcome


def test_the_wallet_is_its_movements_and_the_purchases_to_the_cent(provider: Provider) -> None:
    for scenario in ("delivered", "cancelled", "reversed", "overcharged"):
        provider.buy(scenario, webhookUrl=None)
    provider.control("POST", "/wallet", {"deltaCents": -777})
    provider.jump(100)
    provider.until(provider.buy("stuck")["externalId"], "accepted")

    ledger = provider.control("GET", "/ledger")

    wallet, purchases = ledger["wallet"], ledger["purchases"]
    moved = sum(movement["amountCents"] for movement in wallet["movements"])
    assert wallet["balance"] == wallet["opening"] + moved
    bought = {row["externalId"]: row["refundedCents"] - row["amountCents"] for row in purchases}
    for movement in wallet["movements"]:
        if movement["externalId"]:
            bought[movement["externalId"]] -= movement["amountCents"]
    assert set(bought.values()) == {0}
    assert ledger["requests"]["POST /v1/orders"] >= len(purchases)


def test_a_wallet_debited_at_the_end_promises_no_cent_twice(receiver: Receiver) -> None:
    options = replace(OPTIONS, debits_at="final", items=5, balance_cents=1000, reusable_items=True)
    with running(options) as url:
        provider = Provider(url, receiver)
        with provider.http:
            item = provider.item()["id"]
            provider.control("PUT", f"/items/{item}", {"price": 600})
            first, second = (
                provider.buy(catalogItemId=item, expectedPrice=600, webhookUrl=None)
                for _ in range(2)
            )
            wallet = provider.control("GET", "/ledger")["wallet"]
            assert (wallet["balance"], wallet["reserved"]) == (1000, 600)
            provider.jump(25)
            provider.until(first["externalId"], "completed")
            provider.until(second["externalId"], "failed")
            wallet = provider.control("GET", "/ledger")["wallet"]
            assert (wallet["balance"], wallet["reserved"]) == (400, 0)


def test_scenarios_are_chosen_by_id_item_and_default(provider: Provider) -> None:
    plain = provider.body(externalId="chosen-by-api")
    item = provider.control("GET", "/items?available=true&limit=2")["items"][1]
    provider.control("POST", "/scenarios", {"externalId": "chosen-by-api", "scenario": "cancelled"})
    provider.control("POST", "/scenarios", {"itemId": item["id"], "scenario": "stuck"})

    provider.post(plain)
    chosen = {"externalId": "chosen-by-item", "catalogItemId": item["id"], "expectedPrice": 1}
    provider.post({**plain, **chosen})

    assert provider.truth("chosen-by-api")["scenario"] == "cancelled"
    assert provider.truth("chosen-by-item")["scenario"] == "stuck"
    refused = provider.http.post("/_sim/scenarios", json={"default": "no such"})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("fault", "status"),
    [("outage", 503), ("unauthorized", 401), ("forbidden", 403), ("redirect", 307)],
)
def test_a_fault_is_laid_on_all_as_often_as_asked(
    provider: Provider, fault: str, status: int
) -> None:
    provider.control("POST", "/faults", {"fault": fault, "path": "/v1/wallet", "times": 2})

    codes = [provider.http.get("/v1/wallet").status_code for _ in range(3)]

    assert codes == [status, status, 200]
    assert provider.control("DELETE", "/faults")["fired"] == 2


def test_a_fault_after_the_work_hides_an_accepted_order(provider: Provider) -> None:
    fault = {"fault": "outage", "path": "/v1/orders", "method": "POST", "times": 1, "after": True}
    provider.control("POST", "/faults", fault)
    body = provider.body()

    assert provider.post(body).status_code == 503
    assert provider.truth(body["externalId"])["status"] == "accepted"


def test_answers_can_be_spoiled(provider: Provider) -> None:
    def spoiled(fault: str, path: str, seconds: float = 0) -> bytes:
        provider.control("POST", "/faults", {"fault": fault, "times": 1, "seconds": seconds})
        return provider.http.get(path).content

    assert json.loads(spoiled("empty_catalog", "/v1/catalog"))["items"] == []
    assert type(json.loads(spoiled("wrong_types", "/v1/catalog"))["items"][0]["price"]) is str
    assert json.loads(spoiled("free_catalog", "/v1/catalog"))["items"][0]["price"] == 0
    assert "availableBalance" not in json.loads(spoiled("missing_fields", "/v1/catalog"))
    assert len(spoiled("bomb", "/v1/wallet")) == 1 << 26
    assert spoiled("huge_body", "/v1/wallet").strip().startswith(b"{")
    assert json.loads(spoiled("slow_drip", "/v1/health", 0.001))["status"] == "ok"
    for fault in ("truncated", "garbage", "html_page"):
        with pytest.raises(ValueError, match=r"."):
            json.loads(spoiled(fault, "/v1/wallet"))


def test_every_scenario_names_faults_that_exist_and_is_described(provider: Provider) -> None:
    assert len(describe()) == len(SCENARIOS) >= 30
    for scenario in SCENARIOS.values():
        assert {scenario.before, scenario.after} - {""} <= set(FAULTS)
        times = [step.at for step in scenario.steps]
        assert times == sorted(times)
    assert provider.control("GET", "/scenarios")["scenarios"] == dict(describe())


def test_the_ledger_file_keeps_every_event_and_no_trade_url(
    receiver: Receiver, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    with running(replace(OPTIONS, ledger_file=path, items=5)) as url:
        provider = Provider(url, receiver)
        with provider.http:
            body = provider.buy("cancelled", webhookUrl=None)
            provider.jump(5)
            provider.until(body["externalId"], "cancelled")

    text = path.read_text()
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events.count("movement") == 2
    assert events.count("status") == 3
    assert "AbCdEfGh" not in text


def test_the_catalog_is_repeatable_and_takes_real_prices(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"unit": "integer cents", "prices": {"AWP | Atheris (Field-Tested)": 612}}')

    assert build(50, None, seed=7) == build(50, None, seed=7) != build(50, None, seed=8)
    (item,) = build(50, path, seed=7)
    assert (item.name, item.price_cents) == ("AWP | Atheris (Field-Tested)", 612)
    path.write_text('{"prices": {"AWP": "6.12"}}')
    with pytest.raises(ValueError, match="expected"):
        build(50, path, seed=7)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="scenario"):
        replace(OPTIONS, default_scenario="nonsense")
    with pytest.raises(ValueError, match="speed"):
        replace(OPTIONS, speed=0)
    with pytest.raises(ValueError, match="client_secret"):
        OPTIONS.switched({"client_secret": "other"})
    with pytest.raises(ValueError, match="default_scenario"):
        OPTIONS.switched({"default_scenario": "nonsense"})
    with pytest.raises(msgspec.ValidationError):
        OPTIONS.switched({"debits_at": "sometimes"})
    assert SECRET not in repr(OPTIONS)
