"""The SkinsNode dialect: five endpoints and signed webhooks, to the letter of the contract.

What the contract leaves open is an option; its caches and replays are played even where they hurt.
"""

import hashlib
import hmac
import re
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fulfillment.simulator.catalog import Item, cents_up
from fulfillment.simulator.core import MESSAGES, Market, Order
from fulfillment.simulator.desk import Desk
from fulfillment.simulator.faults import Gate, Handler, answer_json, problem
from fulfillment.simulator.webhooks import GARBAGE, Courier, Delivery

EXTERNAL_ID = r"^[A-Za-z0-9._-]{1,64}\Z"
TRADE_URL = (
    r"^https://steamcommunity\.com/tradeoffer/new/?\?"
    r"(?:partner=\d{1,10}&token=[A-Za-z0-9_-]{1,16}|token=[A-Za-z0-9_-]{1,16}&partner=\d{1,10})\Z"
)
# Cached lookups are forgotten oldest first, so that a scan over invented ids cannot fill memory.
CACHED_LOOKUPS = 200_000


class OrderRequest(msgspec.Struct, frozen=True, rename="camel"):
    catalog_item_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    expected_price: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    external_id: Annotated[str, msgspec.Meta(pattern=EXTERNAL_ID)]
    trade_url: Annotated[str, msgspec.Meta(pattern=TRADE_URL)]
    webhook_url: Annotated[str, msgspec.Meta(pattern=r"^https?://")] | None = None


decoder = msgspec.json.Decoder(OrderRequest)
encode = msgspec.json.Encoder().encode


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Sign a webhook: HMAC-SHA256 over `<timestamp>.<raw body>`, lower-case hex."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def signed_headers(secret: str, timestamp: str, delivery_id: str, body: bytes) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "x-event-type": "order.updated",
        "x-delivery-id": delivery_id,
        "x-timestamp": timestamp,
        "x-signature": sign(secret, timestamp, body),
    }


def failure_of(order: Order) -> dict[str, str] | None:
    if order.failure is None:
        return None
    return {"code": order.failure, "message": MESSAGES.get(order.failure, "order ended")}


def timestamps_of(order: Order) -> dict[str, str | None]:
    return {
        "queuedAt": order.accepted_at,
        "updatedAt": order.updated_at,
        "refundedAt": order.refunded_at,
    }


def webhook_body(order: Order, status: str) -> bytes:
    """Write the webhook's payload; `status` may be a claim that is not true."""
    return encode(
        {
            "externalId": order.external_id,
            "status": status,
            "steamOfferId": order.steam_offer_id,
            "amount": str(cents_up(order.amount_mills)),
            "currency": "USD",
            "error": failure_of(order) if status == order.status else None,
            "timestamps": timestamps_of(order),
        }
    )


def order_body(order: Order) -> bytes:
    item = order.item
    return encode(
        {
            "externalId": order.external_id,
            "status": order.status,
            "steamOfferId": order.steam_offer_id,
            "tradeUrl": order.trade_url,
            "item": {
                "id": item.id,
                "marketHashName": item.name,
                "price": item.price_cents,
                "currency": "USD",
            },
            "pricing": {"currency": "USD", "amount": str(cents_up(order.amount_mills))},
            "failure": failure_of(order),
            "timestamps": timestamps_of(order),
        }
    )


def item_body(item: Item) -> bytes:
    return encode(
        {
            "id": item.id,
            "marketHashName": item.name,
            "price": item.price_cents,
            "currency": "USD",
            "phase": item.phase,
            "floatValue": item.float_value,
            "paintIndex": item.paint_index,
            "paintSeed": item.paint_seed,
            "rarityColor": item.rarity_color,
            "classId": item.class_id,
            "instanceId": "302028390",
            "imageUrl": f"https://cdn.example/{item.class_id}.png",
        }
    )


class Letters:
    """A signed callback for every status, to the URL that came with the order."""

    retry_s: tuple[float, ...] = ()
    claim = "completed"

    def url_of(self, order: Order) -> str | None:
        return order.webhook_url

    def is_news(self, order: Order) -> bool:
        return True

    def body_of(self, order: Order, status: str) -> bytes:
        return webhook_body(order, status)

    def sealed(self, delivery: Delivery, secret: str, stamp: str) -> tuple[dict[str, str], bytes]:
        headers = signed_headers(secret, stamp, delivery.id, delivery.signed_body)
        if delivery.tamper == "garbage":
            headers["x-signature"] = GARBAGE
        return headers, delivery.body


class SkinsNode:
    """Answers for one account, from the market's truth through the provider's caches."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.courier = Courier(market, Letters())
        self.gate = Gate(market)
        self.desk = Desk(market, self.courier, self.gate)
        self._lookups: dict[str, tuple[float, Response]] = {}
        self._wallet: tuple[float, Response] | None = None
        self._catalog: Response | None = None
        self._on_sale: dict[str, bytes] = {}
        for item in market.items.values():
            self._item_changed(item)
        market.on_item.append(self._item_changed)

    def routes(self) -> list[BaseRoute]:
        table: tuple[tuple[str, str, Handler, str], ...] = (
            ("GET", "/v1/health", self.health, "other"),
            ("GET", "/v1/wallet", self.authorised(self.wallet), "wallet"),
            ("GET", "/v1/catalog", self.authorised(self.catalog), "catalog"),
            ("POST", "/v1/orders", self.authorised(self.create_order), "submit"),
            ("GET", "/v1/orders/{externalId}", self.authorised(self.read_order), "lookup"),
        )
        return [
            Route(path, self.gate.answering(f"{method} {path}", handler, what), methods=[method])
            for method, path, handler, what in table
        ]

    def word(self, order: Order) -> str:
        return order.status

    def authorised(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            headers, options = request.headers, self.market.options
            given = headers.get("x-client-id"), headers.get("x-client-secret")
            if given != (options.client_id, options.client_secret):
                return problem(401, "unauthorized", "credentials are missing or wrong")
            return await handler(request)

        return answer

    async def health(self, request: Request) -> Response:
        return answer_json(200, {"status": "ok", "service": "skinsnode"})

    async def wallet(self, request: Request) -> Response:
        if self._wallet is None or not self._is_fresh(self._wallet[0]):
            figure = {
                "clientId": self.market.options.client_id,
                "currency": "USD",
                "availableBalance": str(self.market.balance_mills // 10),
            }
            self._wallet = self.market.clock.now(), answer_json(200, figure)
        return self._wallet[1]

    def _is_fresh(self, read_at: float) -> bool:
        return self.market.clock.now() - read_at < self.market.options.reads_cached_s

    async def catalog(self, request: Request) -> Response:
        if self._catalog is None:
            # Each item is kept encoded: with 34,500 of them a purchase costs one join, no encoding.
            body = b'{"items":[' + b",".join(self._on_sale.values()) + b"]}"
            self._catalog = answer_json(200, body)
        return self._catalog

    def _item_changed(self, item: Item) -> None:
        self._catalog = None
        if item.available:
            self._on_sale[item.id] = item_body(item)
        else:
            self._on_sale.pop(item.id, None)

    async def create_order(self, request: Request) -> Response:
        try:
            ask = decoder.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return problem(422, "validation_failed", str(error))
        visit = self.desk.visit(request, ask.external_id, ask.catalog_item_id, ask.trade_url)
        early = await self.desk.before(visit)
        if early is not None:
            return early
        order = self.market.orders.get(ask.external_id)
        if order is not None and self._replay(order, ask):
            return problem(422, "external_id_reused", "externalId was used with another body")
        order = order or await self._take(ask)
        if order is None:
            return problem(404, "not_found", "catalog item is not on sale")
        accepted = {
            "externalId": order.external_id,
            "status": "accepted",
            "acceptedAt": order.accepted_at,
        }
        return await self.desk.after(visit, answer_json(202, accepted))

    async def _take(self, ask: OrderRequest) -> Order | None:
        order = self.market.buy(
            ask.external_id,
            ask.catalog_item_id,
            ask.expected_price * 10,
            trade_url=ask.trade_url,
            webhook_url=ask.webhook_url,
        )
        if order is not None:
            await self.desk.call_back_first(order)
        return order

    def _replay(self, order: Order, ask: OrderRequest) -> bool:
        """Note a repeated POST and tell whether its other content is to be refused."""
        order.posts += 1
        said = (ask.catalog_item_id, ask.expected_price * 10, ask.trade_url, ask.webhook_url)
        kept = (order.item.id, order.cap_mills, order.trade_url, order.webhook_url)
        if said == kept:
            return False
        order.conflicts += 1
        return self.market.options.replay_conflict == "refused"

    async def read_order(self, request: Request) -> Response:
        external_id = request.path_params["externalId"]
        if not re.match(EXTERNAL_ID, external_id):
            return problem(422, "validation_failed", "externalId is malformed")
        order = self.market.orders.get(external_id)
        if order is not None:
            order.note_read(self.market.clock.now())
        cached = self._lookups.get(external_id)
        if cached is not None and self._is_fresh(cached[0]):
            return cached[1]
        now = self.market.clock.now()
        hidden = order is not None and now - order.started < order.scenario.hidden_s
        if order is None or hidden:
            response = problem(404, "not_found", "order is not known")
        else:
            response = answer_json(200, order_body(order))
        if response.status_code == 200 or self.market.options.cache_missing_orders:
            self._lookups.pop(external_id, None)
            self._lookups[external_id] = now, response
            if len(self._lookups) > CACHED_LOOKUPS:
                del self._lookups[next(iter(self._lookups))]
        return response
