"""The Skinslink dialect: an API key, an envelope, refusals inside of success, holds that settle.

What the contract leaves open is an option; deposits and the catalog's event feed are not played.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fulfillment.simulator import catalog
from fulfillment.simulator.catalog import Item
from fulfillment.simulator.core import Market, Order, trade_url_of
from fulfillment.simulator.desk import Desk, Visit
from fulfillment.simulator.faults import Gate, Handler, answer_json
from fulfillment.simulator.recipients import PROBLEMS
from fulfillment.simulator.skinslink_words import Words
from fulfillment.simulator.webhooks import Courier

BASE = "/api/v1/merchant"
GAMES = ("csgo", "rust", "dota2", "tf2")
HISTORY_PAGE, HISTORY_MOST = 50, 1000
SORTS: dict[str, Callable[[Order], Any]] = {
    "id": lambda order: order.number,
    "merchant_tx_id": lambda order: order.custom_id or "",
    "amount": lambda order: order.amount_mills,
    "created_at": lambda order: order.started,
}
Detail = dict[str, str]


def success(data: Any, message: str = "ok") -> Response:
    return answer_json(200, {"success": True, "message": message, "data": data})


def failure(status: int, message: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer_json(status, {"success": False, "message": message}, named)


def invalid(*details: Detail) -> Response:
    body = {"success": False, "message": "validation error", "data": details}
    return answer_json(400, body)


def detail(field: str, code: str, message: str = "") -> Detail:
    return {"field": field, "code": code, "message": message or f"{field}: {code}"}


WORDS: dict[str, Callable[[], Response]] = {
    "outage": lambda: failure(503, "internal error"),
    "outage_retry_after": lambda: failure(503, "internal error", retry_after="2"),
    "maintenance": lambda: failure(503, "internal error"),
    "market_disabled": lambda: failure(503, "internal error"),
    "error": lambda: failure(500, "internal error"),
    "unauthorized": lambda: failure(401, "invalid API key"),
    "forbidden": lambda: failure(403, "invalid IP: 203.0.113.7"),
    "account_disabled": lambda: failure(403, "merchant account is disabled"),
    "not_found": lambda: failure(404, "purchase not found"),
    "rate_limited": lambda: failure(429, "too many requests", retry_after="1"),
    "rate_limited_bare": lambda: failure(429, "too many requests"),
}


@dataclass(frozen=True, slots=True)
class PurchaseRequest:
    """A purchase whose fields are all in order."""

    trade_url: str
    game: str
    name: str
    asset_id: str
    merchant_tx_id: str
    cap_mills: int | None


class Malformed(Exception):
    """The body is not what it is said to be."""


class Invalid(Exception):
    """Fields are wrong; each has its line."""

    def __init__(self, details: list[Detail]) -> None:
        super().__init__(details)
        self.details = details


def read_purchase(body: bytes) -> PurchaseRequest:
    """Check a purchase's body as strictly as the contract words it."""
    try:
        found = json.loads(body, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise Malformed from None
    if not isinstance(found, dict):
        raise Malformed
    kinds: dict[str, type | tuple[type, ...]] = {"partner": int, "max_price": (int, Decimal)}
    names = ("partner", "token", "game", "name", "asset_id", "merchant_tx_id", "max_price")
    given = {name: found[name] for name in names if found.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, kinds.get(name, str)):
            raise Malformed
    details = [detail(n, "required") for n in ("partner", "token", "game") if n not in given]
    if not given.get("name") and not given.get("asset_id"):
        details.append(detail("name", "required_without"))
    if given.get("partner", 8) < 8:
        details.append(detail("partner", "min"))
    if given.get("partner", 8) >= 2**32:
        details.append(detail("partner", "max"))
    if len(given.get("token", "12345678")) != 8:
        details.append(detail("token", "len"))
    cap = given.get("max_price")
    if cap is not None and not 0 <= cap <= 10**9:
        details.append(detail("max_price", "min" if cap < 0 else "max"))
    if details:
        raise Invalid(details)
    return PurchaseRequest(
        trade_url=trade_url_of(str(given["partner"]), given["token"]),
        game=given["game"],
        name=given.get("name", ""),
        asset_id=given.get("asset_id", ""),
        merchant_tx_id=given.get("merchant_tx_id", ""),
        cap_mills=None if cap is None else int(cap * 1000),
    )


class Skinslink:
    """Answers for one merchant."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.words = Words(market)
        self.courier = Courier(market, self.words)
        self.gate = Gate(market, WORDS)
        self.desk = Desk(market, self.courier, self.gate)

    def routes(self) -> list[BaseRoute]:
        table: tuple[tuple[str, str, Handler, str], ...] = (
            ("GET", "/purchase/available", self.available, "catalog"),
            ("GET", "/purchase/search", self.search, "catalog"),
            ("POST", "/purchase", self.create, "submit"),
            ("GET", "/purchase/status", self.status, "lookup"),
            ("GET", "/purchase", self.history, "lookup"),
            ("GET", "/balance", self.balance, "wallet"),
        )
        return [
            Route(
                BASE + path,
                self.gate.answering(f"{method} {path}", self.authorised(handler), what),
                methods=[method],
            )
            for method, path, handler, what in table
        ]

    def word(self, order: Order) -> str:
        return self.words.state(order)[0]

    def authorised(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            key = request.headers.get("x-api-key")
            if not key:
                return failure(401, "missing authorization header")
            if key != self.market.options.api_key:
                return failure(401, "invalid API key")
            return await handler(request)

        return answer

    # Lists

    async def available(self, request: Request) -> Response:
        query = request.query_params
        game = query.get("game")
        if game not in GAMES:
            return failure(400, "invalid game code")
        items = self._on_sale(game)
        data: dict[str, Any] = {"game": game}
        if not _is_true(query.get("full")):
            rows = list(self._grouped(items))
        else:
            page = query.get("page")
            pages = self.market.options.list_pages
            if page is not None:
                if not page.isdecimal() or not 1 <= int(page) <= pages:
                    return invalid(detail("page", "range"))
                size = -(-len(items) // pages)
                items = items[(int(page) - 1) * size : int(page) * size]
                data["pages"] = pages
            is_extended = _is_true(query.get("extended"))
            rows = [self.words.listed(item, is_extended=is_extended) for item in items]
        data["total"] = len(self._on_sale(game)) if "pages" in data else len(rows)
        cursor = str(int(self.market.clock.wall().timestamp() * 1_000_000) * 1000)
        return success(data | {"last_update_at": cursor, "items": rows})

    def _on_sale(self, game: str) -> list[Item]:
        return [i for i in self.market.items.values() if i.available] if game == "csgo" else []

    def _grouped(self, items: Iterable[Item]) -> Iterable[dict[str, Any]]:
        named: dict[str, list[Item]] = {}
        for item in items:
            named.setdefault(item.name, []).append(item)
        for name, group in named.items():
            row = self.words.listed(min(group, key=lambda i: i.price_mills), is_extended=False)
            kept = {key: row[key] for key in ("price", "image_url")}
            yield {"name": name, "count": len(group), "game": "csgo", **kept}

    async def search(self, request: Request) -> Response:
        query = request.query_params
        game, names = query.get("game"), query.getlist("names")
        if game not in GAMES:
            return failure(400, "invalid game code")
        if not any(names):
            return invalid(detail("names", "required"))
        is_extended = _is_true(query.get("extended"))
        rows = [
            self.words.listed(item, is_extended=is_extended)
            for name in dict.fromkeys(names if game == "csgo" else ())
            for item in self.market.items_named.get(name, ())
            if item.available
        ]
        return success({"game": game, "total": len(rows), "items": rows})

    # Purchases

    async def create(self, request: Request) -> Response:
        try:
            ask = read_purchase(await request.body())
        except Malformed:
            return failure(400, "invalid request body")
        except Invalid as error:
            return invalid(*error.details)
        if ask.game not in GAMES:
            return failure(400, "invalid game code")
        visit = self.desk.visit(request, ask.merchant_tx_id, self._item_id(ask), ask.trade_url)
        early = await self.desk.before(visit) if not visit.scenario.refuse else None
        if early is not None:
            return early
        existing = self.market.orders.get(ask.merchant_tx_id)
        if existing is not None and self._is_taken(existing):
            return self._repeated(existing, ask, self.market.options.repeated_id)
        problem = PROBLEMS.get(visit.scenario.recipient)
        if problem is not None and problem.validation is not None:
            field = "token" if problem.validation.startswith("trade_link") else "partner"
            return invalid(detail(field, problem.validation, problem.description))
        order = self._take(ask, visit)
        if order.is_refused:
            return success(self.words.purchase(order), "Purchase created")
        await self.desk.call_back_first(order)
        if visit.is_spoiled and visit.scenario.repeat:
            return self._repeated(order, ask, visit.scenario.repeat)
        response = success(self.words.purchase(order), "Purchase created")
        return await self.desk.after(visit, response)

    def _item_id(self, ask: PurchaseRequest) -> str:
        if ask.asset_id:
            return ask.asset_id
        found = self.market.cheapest(ask.name) if ask.game == "csgo" else None
        return found.id if found else ""

    def _is_taken(self, existing: Order) -> bool:
        return not existing.is_refused or self.market.options.refusals_burn_id is not False

    def _take(self, ask: PurchaseRequest, visit: Visit) -> Order:
        """Buy, or keep a purchase that failed at once."""
        item_id, tx_id = self._item_id(ask), ask.merchant_tx_id or None
        item = self.market.items.get(item_id)
        why = visit.scenario.refuse or self.market.obstacle(item, ask.cap_mills)
        if why is None:
            order = self.market.buy(tx_id, item_id, ask.cap_mills, trade_url=ask.trade_url)
            assert order is not None
            return order
        if why == "price_changed" and not ask.asset_id:
            why = "item_specified_price_not_found"
        item = item or catalog.missing(ask.asset_id, ask.name)
        return self.market.enter_refused(tx_id, item, ask.cap_mills, why, ask.trade_url)

    def _repeated(self, order: Order, ask: PurchaseRequest, mode: str) -> Response:
        """Answer a POST under an id that is taken, in one of the three ways that were seen."""
        order.posts += 1
        is_other = ask.asset_id and ask.asset_id != order.item.id
        if is_other or (ask.trade_url, ask.cap_mills) != (order.trade_url, order.cap_mills):
            order.conflicts += 1
        if mode == "conflict":
            return failure(409, "duplicate merchant_tx_id")
        stored = self.words.purchase(order)
        if mode == "stored":
            return success(stored, "Purchase created")
        kept = {key: stored[key] for key in ("merchant_tx_id", "steam_id", "date", "amount")}
        kept |= {"id": self.market.next_number(), "status": "failed"}
        return success(kept | {"fail_reason": "duplicate_purchase"}, "Purchase created")

    # What was bought

    async def status(self, request: Request) -> Response:
        query = request.query_params
        number, tx_id = query.get("id"), query.get("merchant_tx_id")
        if not number and not tx_id:
            return invalid(detail("id", "required_without"))
        if number:
            if not number.isdecimal() or len(number) > 18:
                return invalid(detail("id", "number"))
            order = self.market.orders_numbered.get(int(number))
        else:
            order = self.market.orders.get(tx_id or "")
        if order is not None and (number or order.custom_id):
            now = self.market.clock.now()
            order.note_read(now)
            if now - order.started >= order.scenario.hidden_s:
                return success(self.words.purchase(order))
        return failure(404, "purchase not found")

    async def history(self, request: Request) -> Response:
        query = request.query_params
        numbers = {name: query.get(name, "") for name in ("limit", "offset", "date_range")}
        wrong = [name for name, text in numbers.items() if text and not text.isdecimal()]
        sort = query.get("sort", "-id")
        key = SORTS.get(sort.removeprefix("-"))
        if sort.removeprefix("-") == "status":
            key = self.word
        if wrong or key is None:
            return invalid(*(detail(name, "invalid") for name in wrong or ["sort"]))
        found = [order for order in self.market.orders.values() if self._matches(order, query)]
        if numbers["date_range"]:
            oldest = self.market.clock.wall() - timedelta(days=min(int(numbers["date_range"]), 365))
            found = [o for o in found if datetime.fromisoformat(o.accepted_at) >= oldest]
        found.sort(key=key, reverse=sort.startswith("-"))
        offset = int(numbers["offset"] or 0)
        limit = min(int(numbers["limit"] or HISTORY_PAGE), HISTORY_MOST)
        page = [self.words.purchase(order) for order in found[offset : offset + limit]]
        return success({"data": page, "total": len(found)})

    def _matches(self, order: Order, query: Any) -> bool:
        word, text = query.get("status"), query.get("search", "")
        said = f"{order.number} {order.custom_id or ''} {order.steam_id} {order.item.name}"
        return word in (None, "", self.word(order)) and text.lower() in said.lower()

    async def balance(self, request: Request) -> Response:
        return success(self.words.balance())


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true")
