"""The store's side of SkinsBack, for tests of the simulator."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx

from fulfillment.simulator.app import SimulatorOptions, running
from tests.support import Simulator, until
from tests.unit.inbox import Inbox, receiving

SECRET = "s3cr3t"
TOKEN = "AbCdEfGh"
RECIPIENT = {"partner": "123456789", "token": TOKEN}
OPTIONS = SimulatorOptions(
    provider="skinsback",
    client_id="4242",
    client_secret=SECRET,
    port=0,
    items=400,
    balance_cents=50_000_000,
    requests_per_minute=0,
)
HOLD_S = 8 * 86_400
numbers = itertools.count()


class Client:
    """The store's side: headers for authentication, JSON bodies."""

    def __init__(self, url: str, inbox: Inbox) -> None:
        headers = {"x-client-id": "4242", "x-client-secret": SECRET}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False)
        self.side = Simulator(url, "4242", SECRET)
        self.inbox = inbox

    def post(self, body: Any, **options: Any) -> Any:
        answer = self.http.post("/api.php", json=body, **options)
        assert answer.status_code == 200
        return answer.json()

    def call(self, method: str, **params: Any) -> Any:
        return self.post({"method": method, **params})

    def item(self) -> dict[str, Any]:
        found: dict[str, Any] = self.side.ask("GET", "/items?limit=1&available=true")["items"][0]
        return found

    def order(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        item = self.item()
        bought = {"id": item["id"], "max_price": item["priceMills"] / 1000, **RECIPIENT}
        return {**bought, "custom_id": f"order-{next(numbers)}.{scenario}", **changes}

    def buy(self, scenario: str = "delivered", **changes: Any) -> dict[str, Any]:
        order = self.order(scenario, **changes)
        answer = self.call("market_buy", **order)
        assert answer["status"] == "success", answer
        return order

    def info(self, custom_id: str) -> Any:
        answer = self.call("market_getinfo", custom_ids=[custom_id])
        return answer["items"][0] if answer["items"] else None

    def until(self, custom_id: str, word: str) -> Any:
        until(lambda: self.info(custom_id)["offer_status"] == word)
        return self.info(custom_id)

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
