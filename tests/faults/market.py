"""Provider accounts of one simulated run: the judge's market and all that lies on the way to it.

Requests are carried to the simulator's own handlers in this process, webhooks back to the
service behind the web route; both through the faults that the seed chose.
"""

import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx
from starlette.applications import Starlette

from fulfillment.broker import hint
from fulfillment.crash import crash_point
from fulfillment.errors import ServerUnreachable, WebhookRejected
from fulfillment.providers.base import Provider
from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsback.client import SkinsBack
from fulfillment.providers.skinslink.client import Skinslink
from fulfillment.providers.skinsnode.client import SkinsNode
from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.settings import AccountSettings
from fulfillment.simulator.app import DIALECTS
from fulfillment.simulator.core import Market
from fulfillment.simulator.options import SimulatorOptions
from fulfillment.simulator.timeline import Timeline, VirtualClock
from fulfillment.simulator.webhooks import Delivery
from schemas.enums import ProviderName
from schemas.messages import APPLY_WEBHOOK
from tests.faults.invariants import Judge
from tests.faults.kinds import Faults
from tests.faults.scheduler import Killed, Process, Scheduler
from tests.support import FakeClock

METHODS = {
    "market_buy": "submit",
    "market_getinfo": "lookup",
    "balance": "wallet",
    "market_pricelist": "catalog",
    "market_search": "catalog",
}
PATHS = {
    ("POST", "/v1/orders"): "submit",
    ("GET", "/v1/wallet"): "wallet",
    ("GET", "/v1/catalog"): "catalog",
    ("POST", "/api/v1/merchant/purchase"): "submit",
    ("GET", "/api/v1/merchant/purchase/status"): "lookup",
    ("GET", "/api/v1/merchant/purchase/search"): "catalog",
    ("GET", "/api/v1/merchant/balance"): "wallet",
}
#: Where faults of the network strike most: at what cannot be undone.
WEIGHTS = {"submit": 0.7, "lookup": 0.3}
#: How late a request may still arrive: the bound that the unknown-outcome rules rely on.
LATEST_S = 35.0
#: Answers that the provider never gave.
HTML = b"<html><h1>We'll be back</h1></html>"


@dataclass(slots=True)
class Call:
    """One request that reached the provider: when it left, about whom, and how it ended."""

    at: float
    what: str
    orders: list[str]
    status: int = 0
    #: The caller got the provider's own answer, unspoiled.
    is_told: bool = False
    #: The provider was asked, and knew none of the orders.
    is_empty: bool = False


@dataclass
class Forgery:
    """What a forged webhook changed, which must be nothing."""

    account: str
    before: Any
    after: Any


@dataclass
class Account:
    """One account: the provider's truth, and our adapter of it."""

    name: str
    settings: AccountSettings
    options: SimulatorOptions
    scheduler: Scheduler
    faults: Faults
    clock: FakeClock
    #: Called with the orders of a purchase request before it leaves.
    on_submit: Callable[[str, list[str]], None]
    #: Takes a request out of the account's rate budget.
    spend: Callable[[], None] = lambda: None
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.market = Market(self.options, Timeline(VirtualClock(self.clock, 1.0)))
        self.dialect = DIALECTS[self.options.provider](self.market)
        self.app = Starlette(routes=self.dialect.routes())
        self.down: dict[str, float] = {}

    def connect(self) -> Provider:
        """Make an adapter, as each process has its own."""
        account, kind = self.settings, self.settings.provider
        http = HTTPClient(
            account.url,
            timeout_s=35.0 if kind is ProviderName.SKINSLINK else account.request_timeout_s,
            transport=_Wire(self),
            clock=self.clock,
            spend=lambda: self.spend(),
        )
        secret = account.client_secret.get_secret_value()
        if kind is ProviderName.SKINSNODE:
            return SkinsNode(http, account.client_id, secret, account.webhook_secrets)
        if kind is ProviderName.SKINSBACK:
            return SkinsBack(
                http,
                account.client_id,
                secret,
                account.webhook_secrets,
                is_checking_recipient=account.check_recipient,
            )
        assert account.api_key is not None
        key = account.api_key.get_secret_value()
        return Skinslink(http, key, account.webhook_secrets, read_s=account.request_timeout_s)

    def judge(self, foreign_mills: int) -> Judge:
        """Give the provider's own ledger as it is now, with what strangers took (mills)."""
        market = self.market
        return Judge(
            provider=self.options.provider,
            opening_mills=self.options.balance_cents * 10,
            balance_mills=market.balance_mills,
            reserved_mills=market.reserved_mills,
            foreign_mills=foreign_mills,
            purchases={k: o.row() for k, o in market.orders.items() if not o.is_refused},
            movements=market.movements,
            requests_limited=self.dialect.gate.limited,
            calls=[
                (call.at, call.what, order, call.is_told, call.is_empty)
                for call in self.calls
                for order in call.orders
            ],
        )

    def asked(self, request: httpx.Request) -> tuple[str, list[str]]:
        """Say what is asked for and about which of our orders."""
        path, body = request.url.path, request.read()
        if path.endswith("api.php"):
            fields = json.loads(body)
            found = fields.get("custom_ids") or [fields.get("custom_id")]
            return METHODS.get(fields["method"], "other"), [each for each in found if each]
        what = PATHS.get((request.method, path), "other")
        if path.startswith("/v1/orders/"):
            return "lookup", [unquote(path.removeprefix("/v1/orders/"))]
        if what == "submit":
            fields = json.loads(body)
            return what, [fields.get("externalId") or fields.get("merchant_tx_id")]
        query = parse_qs(request.url.query.decode())
        return what, query.get("merchant_tx_id", [])

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Let the simulator handle a request, at once."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": request.read(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": ("provider", 80),
            "client": ("127.0.0.1", 1),
        }
        run(self.app(scope, receive, send))
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that waits for nothing but strands."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("expected a handler that waits for nothing")


class _Wire(httpx.BaseTransport):
    """The network between our adapter and the simulator."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._scheduler = account.scheduler
        self._faults = account.faults

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Carry one request there and back, as far as the faults let it."""
        account = self._account
        what, orders = account.asked(request)
        if what == "submit":
            account.on_submit(account.name, orders)
        call = Call(self._scheduler.now, what, orders)
        self._scheduler.pause(self._latency())
        early = self._early(request, call)
        if early is not None:
            return early
        response = account.answer(request)
        call.status = response.status_code
        account.calls.append(call)
        crash_point("http.sent")
        call.is_empty = what == "lookup" and not any(o.encode() in response.content for o in orders)
        self._scheduler.pause(self._latency())
        response = self._spoiled(request, response, what, orders)
        call.is_told = "x-spoiled" not in response.headers
        return response

    def _latency(self) -> float:
        dice = self._faults.source.random()
        return 0.0 if dice < 0.6 else dice**2 if dice < 0.97 else dice * 12

    def _hang(self, request: httpx.Request) -> None:
        self._scheduler.pause(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("no answer")

    def _early(self, request: httpx.Request, call: Call) -> httpx.Response | None:
        """Let a request fail before the provider has done anything."""
        faults, account, now = self._faults, self._account, self._scheduler.now
        what, orders = call.what, call.orders
        weight = WEIGHTS.get(what, 0.1)
        for name, longest_s in (("denied", 120.0), ("outage", 300.0)):
            if faults.strikes(name, orders=orders, weight=weight):
                account.down[name] = now + faults.source.uniform(5, longest_s)
        if faults.is_on and now < account.down.get("denied", 0):
            return self._say("unauthorized")
        if faults.is_on and now < account.down.get("outage", 0):
            return httpx.Response(503, content=HTML)
        if faults.strikes("not_reached", orders=orders, weight=weight):
            raise httpx.ConnectError("refused")
        if faults.strikes("timeout_before", orders=orders, weight=weight):
            self._hang(request)
        if faults.strikes("error_before", orders=orders, weight=weight):
            return httpx.Response(faults.source.choice((500, 502, 503, 504)), content=HTML)
        if faults.strikes("throttled", orders=orders, weight=weight):
            return self._say(faults.source.choice(("rate_limited", "rate_limited_bare")))
        if what == "submit" and faults.strikes("late_arrival", orders=orders, weight=weight):
            late_s = faults.source.uniform(5, LATEST_S)
            self._scheduler.at(now + late_s, lambda: self._arrive(request, call))
            self._hang(request)
        return None

    def _arrive(self, request: httpx.Request, call: Call) -> None:
        call.status = self._account.answer(request).status_code
        self._account.calls.append(call)

    def _say(self, fault: str) -> httpx.Response:
        """Answer with a fault in the provider's own words."""
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await self._account.dialect.gate.spoil(fault, None, None))  # type: ignore[arg-type]

        run(ask())
        (answer,) = answers
        return httpx.Response(answer.status_code, headers=answer.raw_headers, content=answer.body)

    def _garbled(self, body: bytes, what: str, orders: list[str]) -> bytes:
        """Cut an answer short, make it none, give its values other types, or another order."""
        ways = [body[: len(body) // 2], b'{"externalId: \xff\xfe', HTML, b"null", b"{}"]
        ways.append(re.sub(rb':"[^"]*"', lambda _: rb':"\ud800"', body, count=2))
        ways.append(re.sub(rb':"[^"]*"', b":[7]", body, count=2))
        ways.append(re.sub(rb':"?[0-9.]+"?([,}])', rb":1e400\1", body))
        # Where several orders are told of, one that is not among them is unknown: nobody sees that.
        if what == "submit":
            ways.append(body.replace(orders[0].encode(), b"order-of-another"))
        return self._faults.source.choice(ways)

    def _spoiled(
        self, request: httpx.Request, response: httpx.Response, what: str, orders: list[str]
    ) -> httpx.Response:
        """Lose or spoil the answer of a request that was done."""
        faults = self._faults
        struck = faults.strikes(
            "timeout_after",
            "error_after",
            "reset_after",
            "garbled",
            orders=orders,
            weight=WEIGHTS.get(what, 0.1),
        )
        if struck == "timeout_after":
            self._hang(request)
        if struck == "reset_after":
            raise faults.source.choice((httpx.ReadError, httpx.RemoteProtocolError))("reset")
        if struck == "error_after":
            status = faults.source.choice((500, 502, 504))
            return httpx.Response(status, content=HTML, headers={"x-spoiled": "1"})
        if what == "submit" and faults.strikes("odd_refusal", orders=orders):
            status = faults.source.choice((402, 409, 418))
            return httpx.Response(status, content=HTML, headers={"x-spoiled": "1"})
        body, status = response.content, response.status_code
        if struck == "garbled":
            return httpx.Response(
                status,
                content=self._garbled(body, what, orders),
                headers={"x-spoiled": "1"},
            )
        if what == "catalog" and faults.strikes("bad_catalog"):
            content = json.loads(body)
            _spoil_catalog(content, faults.source.choice(("empty", "half", "free")))
            return httpx.Response(status, json=content, headers={"x-spoiled": "1"})
        return response


def _spoil_catalog(content: Any, how: str) -> None:
    holder = content.get("data", content)
    items = holder["items"]
    if how == "empty":
        holder["items"] = []
    elif how == "half":
        holder["items"] = items[::2]
    else:
        holder["items"] = [{**item, "price": 0} for item in items]


class Postman:
    """Brings an account's webhooks to the service that the web route calls."""

    def __init__(
        self,
        account: Account,
        context: Context,
        snapshot: Callable[[], Any],
        web: Callable[[], Process],
    ) -> None:
        self._account = account
        self._context = context
        self._snapshot = snapshot
        self._web = web
        self._courier = account.dialect.courier
        self._courier.post = self._post
        self.forgeries: list[Forgery] = []

    def collect(self) -> None:
        """Start a strand for every delivery that is to be brought now."""
        account = self._account
        for delivery in self._courier.take_due():
            orders = [delivery.external_id]
            if delivery.forged:
                account.faults.note("webhook_forged", orders)
            elif account.faults.strikes("webhook_lost", orders=orders):
                continue
            later = 0.0
            if account.faults.strikes("webhook_delayed", orders=orders):
                later = account.faults.source.uniform(1, 600)
            self._bring(delivery, later)
            if account.faults.strikes("webhook_doubled", orders=orders):
                self._bring(delivery, later)
            if account.faults.strikes("webhook_replayed", orders=orders):
                self._replay(delivery, account.faults.source.uniform(10, 4000))

    def _bring(self, delivery: Delivery, later: float) -> None:
        name = f"webhook {delivery.external_id}"
        self._later(later, name, lambda: self._attempt(delivery))

    def _attempt(self, delivery: Delivery) -> None:
        try:
            run(self._courier.attempt(delivery))
        except Killed:
            # Nobody answered, so the sender comes again.
            self._account.scheduler.at(
                self._account.scheduler.now + 10, lambda: self._bring(delivery, 0.0)
            )
            raise

    def _replay(self, delivery: Delivery, later: float) -> None:
        headers, body = self._courier.sealed(delivery)
        headers = {**headers, "x-delivery-id": "another-one"}
        self._later(later, f"replay {delivery.external_id}", lambda: self._take(headers, body))

    def _later(self, seconds: float, name: str, act: Callable[[], Any]) -> None:
        scheduler = self._account.scheduler
        scheduler.at(scheduler.now + seconds, lambda: scheduler.spawn(self._web(), name, act))

    async def _post(self, delivery: Delivery) -> tuple[str, bool]:
        headers, body = self._courier.sealed(delivery)
        if not delivery.forged:
            return self._take(headers, body)
        with self._account.scheduler.alone():
            before = self._snapshot()
            answer, is_taken = self._take(headers, body)
            self.forgeries.append(Forgery(self._account.name, before, self._snapshot()))
        return answer, is_taken

    def _take(self, headers: dict[str, str], body: bytes) -> tuple[str, bool]:
        """Do what `POST /webhooks/{account}` does."""
        self._account.scheduler.pause(self._account.faults.source.random() ** 4)
        if self._account.name not in self._context.settings.accounts:
            return "404", False
        try:
            taken = webhooks.take(self._context, self._account.name, headers, body)
        except WebhookRejected:
            return "401", False
        except ServerUnreachable:
            return "503", False
        if taken.delivery_id is not None:
            hint(APPLY_WEBHOOK, taken.external_id)
        return "200", True
