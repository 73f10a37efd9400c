"""The harness's side door under `/_sim`: the truth, and the means to bend it.

It asks for no login, so it must never be bound beyond loopback or a private test network.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fulfillment.simulator import scenarios
from fulfillment.simulator.catalog import Item
from fulfillment.simulator.core import Market, Order
from fulfillment.simulator.faults import FAULTS, ActiveFault, Gate, answer_json, problem
from fulfillment.simulator.recipients import PROBLEMS
from fulfillment.simulator.webhooks import TAMPERS, Courier

T = TypeVar("T")


class Dialect(Protocol):
    """What the control API needs of whichever provider is played."""

    market: Market
    courier: Courier
    gate: Gate

    def routes(self) -> list[BaseRoute]: ...

    def word(self, order: Order) -> str:
        """Give the order's status in the provider's words."""


class WalletChange(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    delta_cents: int = 0
    delta_mills: int = 0
    kind: str | None = None


class ScenarioChoice(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    scenario: str | None = None
    external_id: str | None = None
    item_id: str | None = None
    default: str | None = None


class ItemChange(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    price: int | None = None  # cents
    price_mills: int | None = None
    available: bool | None = None


class Advance(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    status: str
    failure_code: str | None = None
    refund: bool = True


class FaultChoice(msgspec.Struct, forbid_unknown_fields=True):
    fault: str
    path: str = "/"
    method: str | None = None
    call: str | None = None
    times: int | None = None
    seconds: float = 0.0
    after: bool = False


class RecipientChange(msgspec.Struct, forbid_unknown_fields=True):
    recipient: str  # a token, a partner number or a SteamID64
    problem: str | None = None  # None: nothing is wrong any more


class Jump(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    advance_s: float


class Missing(Exception):
    """The thing named in the path or body is not here."""


class Control:
    """Handlers of the side door; each is listed once, in `routes`."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.market = dialect.market
        self.courier = dialect.courier
        self.gate = dialect.gate

    def routes(self) -> list[BaseRoute]:
        table: tuple[tuple[str, str, Callable[[Request], Awaitable[Any]]], ...] = (
            ("GET", "/healthz", self.healthz),
            ("GET", "/ledger", self.ledger),
            ("POST", "/wallet", self.change_wallet),
            ("GET", "/scenarios", self.list_scenarios),
            ("POST", "/scenarios", self.choose_scenario),
            ("GET", "/items", self.list_items),
            ("PUT", "/items/{id}", self.change_item),
            ("GET", "/orders/{id}", self.read_order),
            ("POST", "/orders/{id}/advance", self.advance_order),
            ("GET", "/faults", self.list_faults),
            ("POST", "/faults", self.lay_fault),
            ("DELETE", "/faults", self.clear_faults),
            ("GET", "/recipients", self.list_recipients),
            ("POST", "/recipients", self.change_recipient),
            ("GET", "/deliveries", self.list_deliveries),
            ("GET", "/options", self.read_options),
            ("POST", "/options", self.change_options),
            ("POST", "/clock", self.jump),
        )
        return [
            Route("/_sim" + path, self._answering(handler), methods=[method])
            for method, path, handler in table
        ]

    def _answering(
        self, handler: Callable[[Request], Awaitable[Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return answer_json(200, await handler(request))
            except Missing as error:
                return problem(404, "not_found", str(error))
            except ValueError as error:  # msgspec's errors are of this kind
                return problem(422, "validation_failed", str(error))

        return answer

    async def healthz(self, request: Request) -> Any:
        return {"status": "ok", "orders": len(self.market.orders), "items": len(self.market.items)}

    async def ledger(self, request: Request) -> Any:
        ledger = self.market.ledger()
        orders = self.market.orders.values()
        for row, order in zip(ledger["purchases"], orders, strict=True):
            row["providerStatus"] = self.dialect.word(order)
        return {
            **ledger,
            "requests": dict(self.gate.requests),
            "requestsLimited": self.gate.limited,
            "peakRequestsPerMinute": self.gate.peak_per_minute,
        }

    async def change_wallet(self, request: Request) -> Any:
        change = await _read(request, WalletChange)
        mills = change.delta_cents * 10 + change.delta_mills
        kind = change.kind or ("top_up" if mills > 0 else "foreign_spending")
        self.market.move_money(kind, mills)
        balance = self.market.balance_mills
        return {"balanceCents": balance // 10, "balanceMills": balance}

    async def list_scenarios(self, request: Request) -> Any:
        return {
            "scenarios": dict(scenarios.describe()),
            "faults": {name: fault.description for name, fault in FAULTS.items()},
            "tampers": TAMPERS,
            "recipients": {name: p.description for name, p in PROBLEMS.items()},
        }

    async def choose_scenario(self, request: Request) -> Any:
        choice = await _read(request, ScenarioChoice)
        name = choice.default or choice.scenario
        scenario = scenarios.SCENARIOS.get(name or "")
        if scenario is None:
            raise ValueError(f"expected the name of a scenario, found {name!r}")
        if choice.default:
            options = self.market.options.switched({"default_scenario": scenario.name})
            self.market.options = options
        elif choice.external_id:
            self.market.scenario_of_id[choice.external_id] = scenario
        elif choice.item_id:
            self.market.scenario_of_item[choice.item_id] = scenario
        else:
            raise ValueError("expected externalId, itemId or default")
        return {"scenario": scenario.name}

    async def list_items(self, request: Request) -> Any:
        query = request.query_params
        limit = int(query.get("limit", "100"))
        available = query.get("available")
        wanted = None if available is None else available in ("true", "1")
        found = [i for i in self.market.items.values() if wanted in (None, i.available)]
        return {"items": [_item_row(item) for item in found[:limit]], "total": len(found)}

    async def change_item(self, request: Request) -> Any:
        item = self.market.items.get(request.path_params["id"])
        if item is None:
            raise Missing("no such item")
        change = await _read(request, ItemChange)
        mills = change.price_mills if change.price is None else change.price * 10
        self.market.change_item(item, price_mills=mills, available=change.available)
        return _item_row(item)

    async def read_order(self, request: Request) -> Any:
        order = self._order(request)
        return {
            **order.row(),
            "providerStatus": self.dialect.word(order),
            "steamOfferId": order.steam_offer_id,
            "holdUntil": order.hold_until,
            "history": order.history,
        }

    async def advance_order(self, request: Request) -> Any:
        order, step = self._order(request), await _read(request, Advance)
        self.market.force(order, step.status, step.failure_code, refund=step.refund)
        return order.row()

    def _order(self, request: Request) -> Order:
        order = self.market.orders.get(request.path_params["id"])
        if order is None:
            raise Missing("no such order")
        return order

    async def list_faults(self, request: Request) -> Any:
        return {"active": self.gate.active}

    async def lay_fault(self, request: Request) -> Any:
        choice = await _read(request, FaultChoice)
        if choice.fault not in FAULTS:
            raise ValueError(f"expected one of {', '.join(FAULTS)}, found {choice.fault!r}")
        self.gate.active.append(ActiveFault(**msgspec.structs.asdict(choice)))
        return {"active": self.gate.active}

    async def clear_faults(self, request: Request) -> Any:
        fired = sum(active.fired for active in self.gate.active)
        self.gate.active.clear()
        return {"active": [], "fired": fired}

    async def list_recipients(self, request: Request) -> Any:
        tokens = {problem.token: problem.name for problem in PROBLEMS.values()}
        return {"byToken": tokens, "set": self.market.recipients}

    async def change_recipient(self, request: Request) -> Any:
        change = await _read(request, RecipientChange)
        if change.problem is None:
            self.market.recipients.pop(change.recipient, None)
        elif change.problem in PROBLEMS:
            self.market.recipients[change.recipient] = change.problem
        else:
            raise ValueError(f"expected one of {', '.join(PROBLEMS)}, found {change.problem!r}")
        return {"set": self.market.recipients}

    async def list_deliveries(self, request: Request) -> Any:
        query = request.query_params
        wanted = query.get("externalId")
        rows = [d.row() for d in self.courier.deliveries if wanted in (None, d.external_id)]
        return {
            "deliveries": rows[-int(query.get("limit", "1000")) :],
            "outcomes": self.courier.outcomes,
        }

    async def read_options(self, request: Request) -> Any:
        return self.market.options.switches()

    async def change_options(self, request: Request) -> Any:
        changes = msgspec.json.decode(await request.body(), type=dict[str, Any])
        self.market.options = self.market.options.switched(changes)
        return self.market.options.switches()

    async def jump(self, request: Request) -> Any:
        self.market.timeline.jump((await _read(request, Jump)).advance_s)
        return {"nowS": self.market.clock.now()}


async def _read(request: Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.body(), type=kind)


def _item_row(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "marketHashName": item.name,
        "price": item.price_cents,
        "priceMills": item.price_mills,
        "available": item.available,
    }
