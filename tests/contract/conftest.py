"""The provider simulator as a real process, and the adapters that are held against it."""

import http.server
import multiprocessing
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from fulfillment.errors import ProviderError, ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers import registry
from fulfillment.providers.base import Provider
from fulfillment.settings import AccountSettings
from fulfillment.simulator.app import SimulatorOptions, serve
from schemas.enums import ProviderName
from schemas.money import cents_to_mills
from schemas.provider import PurchaseCommand, Want, WebhookNotice

CLIENT_ID = "client_test_4242"
SECRET = "cs_test_7f3a9c"
API_KEY = "ak_test_51d0b8"
TOKEN = "AbCdEfGh"
TRADE_URL = f"https://steamcommunity.com/tradeoffer/new/?partner=123456789&token={TOKEN}"
WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Where the contracts differ, so that a card expects what its provider promises."""

    base_path: str = ""
    #: False: the signature covers no time or not the body, so a webhook is a hint to ask.
    is_webhook_applied: bool = False
    #: What a request too many means for a purchase, and the pause that is asked for.
    throttled: type[ProviderError] = ProviderNotReached
    pause_s: int = 1
    bad_trade_url: str = "invalid_trade_url"
    has_cents_only: bool = False
    #: The provider's first callback comes so many seconds after the acceptance at the latest.
    called_back_s: int = 1


FACTS = {
    ProviderName.SKINSNODE: Facts(
        is_webhook_applied=True,
        throttled=ProviderOutcomeUnknown,
        bad_trade_url="refused_by_provider",
        has_cents_only=True,
    ),
    ProviderName.SKINSBACK: Facts(base_path="/api.php", pause_s=60),
    ProviderName.SKINSLINK: Facts(base_path="/api/v1", called_back_s=31),
}


def _serve(options: SimulatorOptions, bound: Connection) -> None:
    serve(options, on_bound=bound.send)


class Simulator:
    """The side door of a running simulator: what truly happened, and the means to bend it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=f"{url}/_sim", trust_env=False, timeout=WAIT_S)

    def ask(self, method: str, path: str, /, **content: Any) -> Any:
        response = self._client.request(method, path, json=content or None)
        response.raise_for_status()
        return response.json()

    def item(self) -> dict[str, Any]:
        """Give one item that is on sale."""
        found: dict[str, Any] = self.ask("GET", "/items?limit=1&available=true")["items"][0]
        return found

    def purchases(self, external_id: str) -> list[dict[str, Any]]:
        """Give the provider's own record of what was bought for this order.

        What it refused at once and keeps as a failed purchase was not bought.
        """
        rows = self.ask("GET", "/ledger")["purchases"]
        return [
            row for row in rows if row["externalId"] == external_id and row["status"] != "failed"
        ]

    def lay(self, fault: str, **options: Any) -> None:
        """Spoil every answer until the end of the test."""
        self.ask("POST", "/faults", fault=fault, **options)

    def jump(self, seconds: float) -> None:
        """Let provider time pass at once; more than 30 s outlasts its caches."""
        self.ask("POST", "/clock", advanceS=seconds)

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook as it came in."""

    headers: Mapping[str, str]
    body: bytes


class Mailbox:
    """Where the provider's webhooks arrive."""

    def __init__(self) -> None:
        self.url = ""
        self._received: queue.Queue[Delivery] = queue.Queue()

    def put(self, delivery: Delivery) -> None:
        self._received.put(delivery)

    def until(
        self, is_last: Callable[[WebhookNotice], bool], provider: Provider, order: PurchaseCommand
    ) -> list[tuple[Delivery, WebhookNotice]]:
        """Collect an order's deliveries up to the one that is asked for."""
        collected = []
        while True:
            delivery = self.take(order)
            notice = provider.read_webhook(delivery.headers, delivery.body)
            collected.append((delivery, notice))
            if is_last(notice):
                return collected

    def take(self, order: PurchaseCommand) -> Delivery:
        """Give the order's next delivery; an earlier test's may still be under way."""
        while True:
            delivery = self._received.get(timeout=WAIT_S)
            if order.external_id.encode() in delivery.body:
                return delivery


@pytest.fixture(scope="session", params=sorted(registry.ADAPTERS))
def provider_name(request: pytest.FixtureRequest) -> ProviderName:
    return ProviderName(request.param)


@pytest.fixture
def facts(provider_name: ProviderName) -> Facts:
    return FACTS[provider_name]


Applies = Callable[..., None]


@pytest.fixture
def applies(provider_name: ProviderName) -> Applies:
    """Skip a card of other providers only, with the contract's section that says why."""

    def only(*names: ProviderName, why: str) -> None:
        if provider_name not in names:
            pytest.skip(f"{provider_name}: {why}")

    return only


@pytest.fixture(scope="session")
def simulator_process(provider_name: ProviderName) -> Iterator[Simulator]:
    options = SimulatorOptions(
        provider=provider_name.value,
        api_key=API_KEY,
        requests_per_minute=0,
        client_id=CLIENT_ID,
        client_secret=SECRET,
        port=0,
        items=200,
        balance_cents=1_000_000_000,
        reusable_items=True,
    )
    context = multiprocessing.get_context("spawn")
    bound, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(options, sender), daemon=True)
    process.start()
    sender.close()
    try:
        assert bound.poll(60), "the simulator did not start"
        simulator = Simulator(bound.recv())
        yield simulator
        simulator.close()
    finally:
        bound.close()
        process.terminate()
        process.join(10)


@pytest.fixture
def simulator(simulator_process: Simulator) -> Iterator[Simulator]:
    """Give the simulator with no fault laid, its caches outlived."""
    simulator_process.jump(31)
    switches = simulator_process.ask("GET", "/options")
    yield simulator_process
    simulator_process.ask("DELETE", "/faults")
    simulator_process.ask("POST", "/options", **switches)


@pytest.fixture
def mailbox(simulator: Simulator) -> Iterator[Mailbox]:
    box = Mailbox()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            box.put(Delivery(dict(self.headers.items()), self.rfile.read(length)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    box.url = f"http://127.0.0.1:{server.server_port}/webhooks/main"
    simulator.ask("POST", "/options", webhook_url=box.url)
    yield box
    server.shutdown()
    server.server_close()
    thread.join()


BuildProvider = Callable[..., Provider]


@pytest.fixture
def build(provider_name: ProviderName, simulator: Simulator) -> Iterator[BuildProvider]:
    """Make adapters with changed account settings."""
    built: list[Provider] = []

    def build_provider(spend: Callable[[], None] | None = None, **changes: Any) -> Provider:
        account = {
            "provider": provider_name,
            "base_url": simulator.url + FACTS[provider_name].base_path,
            "client_id": CLIENT_ID,
            "api_key": SecretStr(API_KEY),
            "client_secret": SecretStr(SECRET),
            **changes,
        }
        built.append(registry.build("main", AccountSettings(**account), spend))
        return built[-1]

    yield build_provider
    for provider in built:
        provider.close()


@pytest.fixture
def provider(build: BuildProvider) -> Provider:
    return build()


@pytest.fixture
def hasty(build: BuildProvider) -> Provider:
    """Give an adapter that waits no longer than a second."""
    return build(request_timeout_s=1.0)


Order = Callable[[str], PurchaseCommand]


@pytest.fixture
def order(simulator: Simulator, mailbox: Mailbox) -> Order:
    """Make commands; the scenario is what the simulator does to the order."""
    item = simulator.item()

    def make(scenario: str = "delivered") -> PurchaseCommand:
        return PurchaseCommand(
            external_id=f"{uuid.uuid4().hex}.{scenario}",
            catalog_item_id=item["id"],
            market_hash_name=item["marketHashName"],
            price_mills=cents_to_mills(item["price"]),
            trade_url=TRADE_URL,
            webhook_url=mailbox.url,
        )

    return make


@pytest.fixture
def want(order: Order) -> Want:
    command = order("delivered")
    return Want(command.catalog_item_id, command.market_hash_name)
