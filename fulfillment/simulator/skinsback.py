"""The SkinsBack dialect: one address for all methods, errors inside HTTP 200, events pushed.

What the contract leaves open is an option; deposits are not played.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fulfillment.simulator import catalog
from fulfillment.simulator.catalog import Item
from fulfillment.simulator.core import Market, Order, recipient_of, trade_url_of
from fulfillment.simulator.desk import Desk
from fulfillment.simulator.faults import Gate, answer_json
from fulfillment.simulator.skinsback_signature import Params, decode, printed, refusal_of
from fulfillment.simulator.skinsback_words import Words, mills_in, offer_of, unix_date
from fulfillment.simulator.webhooks import Courier

GAMES = ("cs2", "csgo", "dota2", "rust")
CURRENCIES = {"usd": "1.000", "eur": "0.920", "rub": "75.000", "uah": "41.000", "cny": "7.100"}
PAGE = 1000
# the market's obstacle -> error of a purchase; any other is error 13, a code of no table
OBSTACLES = {
    "insufficient_funds": (4, "insufficient_funds"),
    "item_unavailable": (5, "skin_unavailable"),
    "price_changed": (6, "skins_not_found_at_specified_price"),
    "provider_unavailable": (-6, "market_disabled"),
}
DUPLICATE = (7, "custom_id_already_exists")
PURPOSES = {
    "market_buy": "submit",
    "market_batch_buy": "submit",
    "market_getinfo": "lookup",
    "balance": "wallet",
    "market_pricelist": "catalog",
    "market_search": "catalog",
    "user_inventory": "check",
}


class Refused(Exception):
    """The provider's own error: a code and a name."""

    def __init__(self, code: int, name: str) -> None:
        super().__init__(name)
        self.code = code
        self.name = name


def error(code: int, name: str) -> Response:
    """Answer with an error; its HTTP code is 200, as every one of them."""
    return answer_json(200, {"status": "error", "error_code": code, "error_message": name})


def success(fields: dict[str, Any]) -> Response:
    return answer_json(200, {"status": "success", **fields})


WORDS: dict[str, Callable[[], Response]] = {
    "unauthorized": lambda: error(-10, "invalid_client_secret"),
    "forbidden": lambda: error(-8, "invalid_ip_address"),
    "account_disabled": lambda: error(-4, "shop_not_active"),
    "not_found": lambda: error(2, "offer_not_found"),
    "rate_limited": lambda: error(-7, "request_limit_reached"),
    "rate_limited_bare": lambda: error(-7, "request_limit_reached"),
    "maintenance": lambda: error(-9, "under_maintenance"),
    "market_disabled": lambda: error(-6, "market_disabled"),
}


class SkinsBack:
    """Answers for one project."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.words = Words(market)
        self.courier = Courier(market, self.words)
        self.gate = Gate(market, WORDS)
        self.desk = Desk(market, self.courier, self.gate)
        self._lists: dict[tuple[bool, str], Response] = {}
        market.on_item.append(lambda item: self._lists.clear())
        self._methods: dict[str, Callable[[Params], Response]] = {
            "market_pricelist": self.pricelist,
            "market_search": self.search,
            "market_batch_buy": self.batch_buy,
            "market_getinfo": self.getinfo,
            "market_history": self.history,
            "balance": lambda params: success(self.words.balance()),
            "currencies": lambda params: success({"currencies": CURRENCIES}),
            "status": self.status,
            "user_inventory": self.user_inventory,
        }

    def routes(self) -> list[BaseRoute]:
        verbs = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return [
            Route("/api.php", self.answer, methods=verbs),
            Route("/{folder:path}/api.php", self.answer, methods=verbs),
        ]

    def word(self, order: Order) -> str:
        return offer_of(order)[0]

    async def answer(self, request: Request) -> Response:
        params = decode(request.headers.get("content-type", ""), await request.body())
        method = printed(params.get("method"))
        is_known = method in self._methods or method == "market_buy"

        async def handle(request: Request) -> Response:
            return await self._handle(request, params, method)

        purpose = PURPOSES.get(method, "other")
        return await self.gate.answer(request, method if is_known else "?", purpose, handle)

    async def _handle(self, request: Request, params: Params, method: str) -> Response:
        if request.method != "POST":
            return error(-1, "please_use_post_method")
        headers, options = request.headers, self.market.options
        given = headers.get("x-client-id"), headers.get("x-client-secret")
        refused = refusal_of(params, *given, options.client_id, options.client_secret)
        if refused is not None:
            return error(*refused)
        try:
            if method == "market_buy":
                return await self.buy(request, params)
            handler = self._methods.get(method)
            return handler(params) if handler else error(-5, "invalid_method")
        except Refused as refusal:
            return error(refusal.code, refusal.name)

    # Lists

    def pricelist(self, params: Params) -> Response:
        is_full = printed(params.get("full")) in ("1", "true")
        if not _is_ours(params):
            return success({"last_update": self._unix(), "items": []})
        kind = is_full, self.market.options.numbers
        if kind not in self._lists:
            items = [item for item in self.market.items.values() if item.available]
            rows = [self.words.listed(i) for i in items] if is_full else self._grouped(items)
            self._lists[kind] = success({"last_update": self._unix(), "items": rows})
        return self._lists[kind]

    def _grouped(self, items: list[Item]) -> list[dict[str, Any]]:
        named: dict[str, list[Item]] = {}
        for item in items:
            named.setdefault(item.name, []).append(item)
        rows = []
        for group in named.values():
            row = self.words.listed(min(group, key=lambda item: item.price_mills))
            del row["id"]
            rows.append(row | {"count": len(group)})
        return rows

    def _unix(self) -> str:
        return str(int(self.market.clock.wall().timestamp()))

    def search(self, params: Params) -> Response:
        names = params.get("names")
        wanted = set(map(str, names)) if isinstance(names, list) else set()
        name = printed(params.get("name")) if not wanted else ""
        if not wanted and not name:
            raise Refused(1, "name_or_names_required")
        if any(len(each) < 3 for each in wanted or {name}):
            raise Refused(2, "name_min_length_3")
        is_exact = self.market.options.search_matches == "exact"
        found = []
        if _is_ours(params):
            for item in self.market.items.values():
                is_asked = item.name in wanted or (
                    item.name == name if is_exact or wanted else name.lower() in item.name.lower()
                )
                if item.available and is_asked:
                    found.append(self.words.listed(item))
        return success({"items": found})

    # Purchases

    async def buy(self, request: Request, params: Params) -> Response:
        if self._is_blank(params, "name") and self._is_blank(params, "id"):
            raise Refused(1, "missing_name_and_id")
        if self._is_blank(params, "id") and len(printed(params["name"])) < 3:
            raise Refused(2, "name_min_length_3")
        trade_url = self._recipient(params)
        custom_id = printed(params.get("custom_id"))
        visit = self.desk.visit(request, custom_id, self._item_id(params), trade_url)
        early = await self.desk.before(visit) if not visit.scenario.refuse else None
        if early is not None:
            return early
        order = self._buy_line(params, custom_id, trade_url)
        if order.scenario.called_back_first:
            await self.desk.call_back_first(order)
        else:
            self._announce(order)
        if visit.is_spoiled and visit.scenario.repeat:
            raise Refused(*DUPLICATE)
        return await self.desk.after(visit, success(self.words.bought(order)))

    def _is_blank(self, params: Params, name: str) -> bool:
        return printed(params.get(name)) == ""

    def _recipient(self, params: Params) -> str:
        if self._is_blank(params, "partner") or self._is_blank(params, "token"):
            raise Refused(3, "missing_partner_or_token")
        partner = printed(params["partner"])
        if not re.fullmatch(r"[0-9]{1,20}", partner):
            raise Refused(8, "invalid_partner_value")
        return trade_url_of(partner, printed(params["token"]))

    def _item_id(self, params: Params) -> str:
        if not self._is_blank(params, "id"):
            return printed(params["id"])
        found = self.market.cheapest(printed(params["name"])) if _is_ours(params) else None
        return found.id if found else ""

    def _buy_line(self, params: Params, custom_id: str, trade_url: str) -> Order:
        """Buy one item or raise what is against it; the id of a refused one stays free."""
        existing = self.market.orders.get(custom_id)
        if existing is not None:
            existing.posts += 1
            item_id = printed(params.get("id"))
            if (item_id and item_id != existing.item.id) or trade_url != existing.trade_url:
                existing.conflicts += 1
            raise Refused(*DUPLICATE)
        item_id = self._item_id(params)
        item = self.market.items.get(item_id)
        cap = None if self._is_blank(params, "max_price") else mills_in(params["max_price"])
        has_bad_cap = cap is None and not self._is_blank(params, "max_price")
        scenario = self.market.scenario_for(custom_id, item_id, trade_url)
        why = scenario.refuse or self.market.obstacle(item, -1 if has_bad_cap else cap)
        if why is None:
            order = self.market.buy(custom_id or None, item_id, cap, trade_url=trade_url)
            assert order is not None
            return order
        if self.market.options.refusals_burn_id and custom_id:
            item = item or catalog.missing(item_id, "")
            self.market.enter_refused(custom_id, item, cap, why, trade_url)
        raise Refused(*OBSTACLES.get(why, (13, why)))

    def _announce(self, order: Order) -> None:
        self.courier.announce(order)
        if self.market.options.pushes_balance:
            self.courier.announce(order, "balance")

    def batch_buy(self, params: Params) -> Response:
        trade_url = self._recipient(params)
        lines = params.get("items")
        purchased, unavailable = [], []
        for line in lines if isinstance(lines, list) else []:
            given = line if isinstance(line, dict) else {}
            custom_id = printed(given.get("custom_id"))
            only = {name: given.get(name) for name in ("id", "max_price")}
            try:
                order = self._buy_line({**only, "name": ""}, custom_id, trade_url)
            except Refused as refusal:
                row = {"id": given.get("id"), "error_code": refusal.code, "reason": refusal.name}
                unavailable.append(row | ({"custom_id": custom_id} if custom_id else {}))
            else:
                self._announce(order)
                named = {"custom_id": order.custom_id} if order.custom_id else {}
                purchased.append(self.words.bought(order) | named)
        return success({"purchased": purchased, "unavailable": unavailable})

    # What was bought

    def getinfo(self, params: Params) -> Response:
        buy_ids, custom_ids = params.get("buy_ids"), params.get("custom_ids")
        found: list[Order | None]
        if not self._is_blank(params, "buy_id"):
            one = self._numbered(params["buy_id"])
            if one is None:
                raise Refused(2, "offer_not_found")
            return success(self.words.info(one))
        if isinstance(custom_ids, list):
            found = [self._visible(self.market.orders.get(printed(each))) for each in custom_ids]
            found = [order if order and order.custom_id else None for order in found]
        elif isinstance(buy_ids, list):
            found = [self._numbered(each) for each in buy_ids]
        else:
            raise Refused(1, "missing_one_of_required_params")
        known = [order for order in found if order is not None]
        if len(known) < len(found) and self.market.options.unknown_ids == "error":
            raise Refused(2, "offer_not_found")
        return success({"items": [self.words.info(order) for order in known]})

    def _numbered(self, given: Any) -> Order | None:
        text = printed(given)
        number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
        return self._visible(self.market.orders_numbered.get(number))

    def _visible(self, order: Order | None) -> Order | None:
        """Note the lookup; an order may be hidden for a while."""
        if order is None:
            return None
        now = self.market.clock.now()
        order.note_read(now)
        is_hidden = now - order.started < order.scenario.hidden_s
        return None if order.is_refused or is_hidden else order

    def history(self, params: Params) -> Response:
        bounds = [mills_in(params.get(name, "")) for name in ("starting", "ending")]
        starting, ending = bounds
        if starting is None or ending is None:
            raise Refused(1, "missing_starting_or_ending")
        rows = [
            order
            for order in self.market.orders.values()
            if starting <= unix_date(order) * 1000 <= ending and not order.is_refused
        ]
        offset = max(0, (mills_in(params.get("start_from", 0)) or 0) // 1000)
        page = rows[offset : offset + PAGE]
        fields = {
            "total_count": self.words.loose(str(len(rows))),
            "has_more": offset + len(page) < len(rows),
            "start_from": offset + len(page),
        }
        return success(fields | {"items": [self.words.info(order) for order in page]})

    # The rest

    def status(self, params: Params) -> Response:
        site = self.market.options.site
        if site == "available":
            return success({"available": True})
        return success({"available": False, "reason": site})

    def user_inventory(self, params: Params) -> Response:
        steam_id, token = printed(params.get("steam_id")), printed(params.get("trade_token"))
        if printed(params.get("game")) not in GAMES:
            raise Refused(1, "invalid_game")
        if not re.fullmatch(r"7656[0-9]{13}", steam_id):
            raise Refused(2, "invalid_steam_id")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,16}", token):
            raise Refused(3, "invalid_trade_token")
        self._check_currency(params)
        partner = str(int(steam_id) - int(recipient_of(trade_url_of("0", ""))[2]))
        problem = self.market.problem_of(token, partner, steam_id)
        if problem is not None and problem.check is not None:
            raise Refused(*problem.check)
        items = []
        for item in list(self.market.items.values())[:3] if _is_ours(params) else []:
            row = self.words.listed(item)
            about = {
                "asset_id": item.id,
                "tradable": 1,
                "app_id": 730,
                "icon_url": f"https://cdn.example/{item.class_id}.png",
                "class_id": item.class_id,
            }
            price = {"price": row["price"], "stickers": [], "disabled": False}
            local = {"price_local": row["price"], "multiplied_price_local": row["price"]}
            items.append({"item": about, "name": item.name, **price, **local})
        return success({"data": {"items": items, "currency_local": "usd"}})

    def _check_currency(self, params: Params) -> None:
        def value(name: str) -> Decimal | None:
            mills = mills_in(params.get(name, ""))
            return None if mills is None else Decimal(mills).scaleb(-3)

        given = {n for n in params if not self._is_blank(params, n)}
        if "currency" in given and printed(params["currency"]).lower() not in CURRENCIES:
            raise Refused(4, "invalid_currency")
        if "custom_currency" in given and len(printed(params["custom_currency"])) > 4:
            raise Refused(8, "invalid_custom_currency")
        rate, times = value("custom_currency_rate"), value("custom_multiplier")
        if "custom_currency_rate" in given and (rate is None or rate < Decimal("0.1")):
            raise Refused(9, "invalid_custom_currency_rate")
        if "custom_multiplier" in given and (times is None or not Decimal("0.5") <= times <= 2):
            raise Refused(10, "invalid_custom_multiplier")


def _is_ours(params: Params) -> bool:
    """Say whether the game is the one on sale here; some clients name none."""
    return printed(params.get("game")).lower() in ("", "cs2", "csgo")
