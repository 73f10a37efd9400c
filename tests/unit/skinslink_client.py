"""The store's side of Skinslink, for tests of the simulator."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx

from fulfillment.simulator.app import SimulatorOptions, running
from tests.support import Simulator, until
from tests.unit.inbox import Inbox, receiving

SECRET = "merchant-secret"
KEY = "merchant-key"
HOLD_S = 7 * 86_400
OPTIONS = SimulatorOptions(
    provider="skinslink",
    client_id="77",
    client_secret=SECRET,
    api_key=KEY,
    port=0,
    items=400,
    balance_cents=50_000_000,
    three_decimals=True,
)
numbers = itertools.count()


class Client:
    """The store's side; money is read as it is written."""

    def __init__(self, url: str, inbox: Inbox) -> None:
        base = f"{url}/api/v1/merchant"
        headers = {"x-api-key": KEY}
        self.http = httpx.Client(base_url=base, headers=headers, timeout=10, trust_env=False)
        self.side = Simulator(url, "77", SECRET)
        self.inbox = inbox

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        said = json.loads(answer.text, parse_float=Decimal)
        assert said["success"] is True
        return said["data"]

    def item(self) -> dict[str, Any]:
        found: dict[str, Any] = self.side.ask("GET", "/items?limit=1&available=true")["items"][0]
        return found

    def order(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        item = self.item()
        bought = {"partner": 123456789, "token": "AbCdEfGh", "game": "csgo", "asset_id": item["id"]}
        named = {"merchant_tx_id": f"order-{next(numbers)}.{scenario}"}
        return {**bought, **named, "max_price": item["priceMills"] / 1000, **changes}

    def post(self, order: dict[str, Any], **options: Any) -> httpx.Response:
        return self.http.post("/purchase", json=order, **options)

    def buy(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        order = self.order(scenario, **changes)
        answer = self.post(order)
        assert answer.status_code == 200, answer.text
        return order

    def status(self, tx_id: str) -> Any:
        answer = self.http.get("/purchase/status", params={"merchant_tx_id": tx_id})
        return answer.json()["data"] if answer.status_code == 200 else None

    def until(self, tx_id: str, word: str) -> Any:
        until(lambda: self.status(tx_id)["status"] == word)
        return self.status(tx_id)

    def ledger(self, tx_id: str) -> dict[str, Any]:
        row: dict[str, Any] = self.side.ask("GET", f"/orders/{tx_id}")
        return row

    def balance(self) -> int:
        mills: int = self.side.ask("GET", "/ledger")["wallet"]["balanceMills"]
        return mills


@contextlib.contextmanager
def simulating(**options: Any) -> Iterator[Client]:
    with receiving() as inbox, running(replace(OPTIONS, webhook_url=inbox.url, **options)) as url:
        client = Client(url, inbox)
        with client.http:
            yield client
        client.side.close()


@contextlib.contextmanager
def restored(client: Client) -> Iterator[Client]:
    """Take back after a test what it laid and switched."""
    switches = client.side.ask("GET", "/options")
    yield client
    client.side.ask("DELETE", "/faults")
    client.side.ask("POST", "/options", **switches)
