"""The provider-neutral market: items, wallet, orders. Money is counted in mills.

It decides what truly happened and keeps an append-only ledger of it; a dialect only tells it.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import msgspec

from fulfillment.simulator import catalog, scenarios
from fulfillment.simulator.catalog import Item, cents_up
from fulfillment.simulator.options import SimulatorOptions
from fulfillment.simulator.recipients import BY_TOKEN, PROBLEMS, Problem
from fulfillment.simulator.scenarios import Scenario, Step
from fulfillment.simulator.timeline import Timeline

STEAM_ID_BASE = 76_561_197_960_265_728
UNDELIVERED = frozenset({"failed", "cancelled", "expired"})
MESSAGES = {
    "item_unavailable": "item is no longer available",
    "price_changed": "price moved",
    "insufficient_funds": "wallet balance is too low",
    "cancelled": "order was cancelled",
}


def trade_url_of(partner: str, token: str) -> str:
    return f"https://steamcommunity.com/tradeoffer/new/?partner={partner}&token={token}"


def recipient_of(trade_url: str) -> tuple[str, str, str]:
    """Give a trade URL's token, its partner number, and that number as SteamID64."""
    token, partner = (re.search(rf"[?&]{n}=([\w-]+)", trade_url) for n in ("token", "partner"))
    number = partner[1] if partner else ""
    steam_id = str(STEAM_ID_BASE + int(number)) if number.isdecimal() else ""
    return token[1] if token else "", number, steam_id


@dataclass(slots=True)
class Order:
    """One purchase as it truly stands."""

    external_id: str
    number: int  # the provider's own id, where it gives one
    item: Item  # a copy from the moment of purchase
    cap_mills: int | None
    custom_id: str | None  # the client's id, if it gave one
    webhook_url: str | None
    trade_url: str = field(repr=False)
    scenario: Scenario
    accepted_at: str
    started: float
    updated_at: str
    status: str = "accepted"
    amount_mills: int = 0  # agreed charge; 0 if the wallet was never touched
    reserved_mills: int = 0
    charged_mills: int = 0
    refunded_mills: int = 0
    refunded_at: str | None = None
    failure: str | None = None
    is_held: bool = False  # completed, and a trade protection runs
    hold_until: datetime | None = None
    steam_offer_id: str | None = None
    steps: tuple[Step, ...] = ()
    generation: int = 0  # raised when a hand moved the order: its own steps are off
    is_refused: bool = False  # failed at once: kept, where the provider keeps such purchases
    told: str = ""  # the word of the last callback, where only a new word makes one
    posts: int = 1
    conflicts: int = 0
    reads: int = 0
    last_read: float | None = None
    min_read_gap_s: float | None = None
    history: list[tuple[str, str]] = field(default_factory=list)

    @property
    def steam_id(self) -> str:
        """Name the recipient: the trade URL's 32-bit partner, as Steam writes it in full."""
        return recipient_of(self.trade_url)[2]

    def note_read(self, now: float) -> None:
        if self.last_read is not None:
            gap_s = round(now - self.last_read, 3)
            self.min_read_gap_s = min(gap_s, self.min_read_gap_s or gap_s)
        self.last_read = now
        self.reads += 1

    def row(self) -> dict[str, Any]:
        """Tell the ledger's view; never the trade URL."""
        return {
            "externalId": self.external_id,
            "itemId": self.item.id,
            "marketHashName": self.item.name,
            "providerId": str(self.number),
            "expectedPrice": None if self.cap_mills is None else self.cap_mills // 10,
            "price": self.item.price_cents,
            "priceMills": self.item.price_mills,
            "amountCents": cents_up(self.charged_mills),
            "amountMills": self.charged_mills,
            "refundedCents": cents_up(self.refunded_mills),
            "refundedMills": self.refunded_mills,
            "status": self.status,
            "failureCode": self.failure,
            "inHold": self.is_held,
            "scenario": self.scenario.name,
            "createdAt": self.accepted_at,
            "updatedAt": self.updated_at,
            "posts": self.posts,
            "conflictingPosts": self.conflicts,
            "reads": self.reads,
            "minReadGapS": self.min_read_gap_s,
        }


class Market:
    """Items, wallet and orders of one account at one provider."""

    def __init__(self, options: SimulatorOptions, timeline: Timeline) -> None:
        self.options = options
        self.timeline = timeline
        self.clock = timeline.clock
        self.items = {
            item.id: item
            for item in catalog.build(
                options.items,
                options.prices_file,
                options.seed,
                options.provider,
                three_decimals=options.three_decimals,
            )
        }
        self.items_named: dict[str, list[Item]] = {}
        for item in self.items.values():
            self.items_named.setdefault(item.name, []).append(item)
        self.orders: dict[str, Order] = {}
        self.orders_numbered: dict[int, Order] = {}
        self.recipients: dict[str, str] = {}  # token, partner or steam id -> problem
        self.balance_mills = options.balance_cents * 10
        self.reserved_mills = 0  # only used where the wallet is debited at the end
        self.movements: list[dict[str, Any]] = []
        self.scenario_of_id: dict[str, Scenario] = {}
        self.scenario_of_item: dict[str, Scenario] = {}
        self.on_order: list[Callable[[Order], None]] = []
        self.on_item: list[Callable[[Item], None]] = []
        self._offers = itertools.count(7_193_849_201)
        self._numbers = itertools.count(5501)
        path = options.ledger_file
        self._file = path.open("ab", buffering=0) if path else None

    def problem_of(self, token: str, *accounts: str) -> Problem | None:
        """Find what is wrong with a recipient, by his token, partner number or SteamID64."""
        set_by_api = next(
            (self.recipients[k] for k in (token, *accounts) if k in self.recipients), ""
        )
        return PROBLEMS.get(set_by_api) or BY_TOKEN.get(token)

    def scenario_for(self, external_id: str, item_id: str, trade_url: str) -> Scenario:
        problem = self.problem_of(*recipient_of(trade_url))
        if problem is not None:
            return scenarios.SCENARIOS[f"recipient_{problem.name}"]
        return (
            self.scenario_of_id.get(external_id)
            or scenarios.named_by(external_id)
            or self.scenario_of_item.get(item_id)
            or scenarios.SCENARIOS[self.options.default_scenario]
        )

    def cheapest(self, name: str) -> Item | None:
        """Find the cheapest item on sale under this very name."""
        found = [item for item in self.items_named.get(name, ()) if item.available]
        return min(found, key=lambda item: item.price_mills, default=None)

    def obstacle(self, item: Item | None, cap_mills: int | None) -> str | None:
        """Say why this cannot be bought now, for providers that refuse at once."""
        if item is None or not item.available:
            return "item_unavailable"
        if cap_mills is not None and item.price_mills > cap_mills:
            return "price_changed"
        if self.balance_mills - self.reserved_mills < item.price_mills:
            return "insufficient_funds"
        return None

    def buy(
        self,
        external_id: str | None,
        item_id: str,
        cap_mills: int | None,
        *,
        trade_url: str,
        webhook_url: str | None = None,
    ) -> Order | None:
        """Take an order in, or give None if the item is not on sale."""
        item = self.items.get(item_id)
        if item is None or not item.available:
            return None
        order = self._enter(external_id, item, cap_mills, trade_url, webhook_url)
        self._settle_price(order)
        if not self.options.reusable_items:
            self.change_item(item, available=False)
        self._write("purchase", order.row())
        self._schedule(order, 0)
        return order

    def enter_refused(
        self, external_id: str | None, item: Item, cap_mills: int | None, code: str, trade_url: str
    ) -> Order:
        """Keep a purchase that failed at once: nothing was sold and no money moved."""
        order = self._enter(external_id, item, cap_mills, trade_url, None)
        order.status, order.failure, order.is_refused = "failed", code, True
        order.history = [(order.accepted_at, "failed")]
        self._write("purchase", order.row())
        return order

    def next_number(self) -> int:
        return next(self._numbers)

    def _enter(
        self,
        external_id: str | None,
        item: Item,
        cap_mills: int | None,
        trade_url: str,
        webhook_url: str | None,
    ) -> Order:
        number, now = self.next_number(), self.clock.stamp()
        # An order without an id of the client's is known by the provider's number alone.
        key = external_id or f"#{number}"
        order = Order(
            external_id=key,
            number=number,
            item=replace(item),
            cap_mills=cap_mills,
            custom_id=external_id,
            webhook_url=webhook_url,
            trade_url=trade_url,
            scenario=self.scenario_for(key, item.id, trade_url),
            accepted_at=now,
            started=self.clock.now(),
            updated_at=now,
            history=[(now, "accepted")],
        )
        self.orders[key] = self.orders_numbered[number] = order
        return order

    def _settle_price(self, order: Order) -> None:
        price = order.item.price_mills + order.scenario.extra_cents * 10
        order.steps = order.scenario.steps
        # An order that cannot be bought is accepted all the same and fails a moment later.
        if order.cap_mills is not None and order.item.price_mills > order.cap_mills:
            order.steps = scenarios.refusal("price_changed")
        elif self.balance_mills - self.reserved_mills < price:
            order.steps = scenarios.refusal("insufficient_funds")
        else:
            order.amount_mills = price
            if self.options.debits_at == "accept":
                self._charge(order)
            else:
                self._reserve(order, price)

    def _schedule(self, order: Order, index: int) -> None:
        if index < len(order.steps):
            step = order.steps[index]
            due = order.started + step.due_s(self.options.window_s)
            self.timeline.at(due, partial(self._take_step, order, index, order.generation))

    def _take_step(self, order: Order, index: int, generation: int) -> None:
        if order.generation == generation:
            step = order.steps[index]
            self.move(order, step.status, step.failure, refund=step.refund)
            self._schedule(order, index + 1)

    def force(self, order: Order, status: str, failure: str | None, *, refund: bool) -> None:
        """Move an order by hand and take it off its scenario."""
        order.generation += 1
        self.move(order, status, failure, refund=refund)

    def move(
        self,
        order: Order,
        status: str,
        failure: str | None = None,
        *,
        refund: bool = True,
        quiet: bool = False,
    ) -> None:
        """Change an order's status with all that follows: money, item, ledger, callbacks."""
        if status == "settled":
            self._settle(order)
            return
        was_undelivered = order.status in UNDELIVERED
        order.status = status
        order.failure = failure
        order.updated_at = self.clock.stamp()
        order.history.append((order.updated_at, status))
        if status in ("sent", "completed") and order.steam_offer_id is None:
            order.steam_offer_id = str(next(self._offers))
        order.is_held = False
        if status == "completed":
            if order.amount_mills and order.charged_mills == order.refunded_mills:
                self._charge(order)
            self._hold(order)
        elif (status in UNDELIVERED or status == "reversed") and refund:
            self._give_back(order)
        if status in UNDELIVERED and not was_undelivered and failure != "item_unavailable":
            self.change_item(self.items[order.item.id], available=True)
        self._write("status", order.row())
        for listener in () if quiet else self.on_order:
            listener(order)

    def _hold(self, order: Order) -> None:
        """Put the trade protection on what was delivered; its end settles the order."""
        hold_s = self.options.hold_duration_s
        if hold_s > 0:
            order.is_held = True
            order.hold_until = self.clock.wall() + timedelta(seconds=hold_s / self.clock.speed)
            self.timeline.after(hold_s, partial(self._settle, order))

    def _settle(self, order: Order) -> None:
        if order.is_held:
            order.is_held = False
            order.updated_at = self.clock.stamp()
            order.history.append((order.updated_at, "settled"))
            self._write("status", order.row())
            for listener in self.on_order:
                listener(order)

    def _reserve(self, order: Order, mills: int) -> None:
        self.reserved_mills += mills - order.reserved_mills
        order.reserved_mills = mills

    def _charge(self, order: Order) -> None:
        self._reserve(order, 0)
        order.charged_mills += order.amount_mills
        self.move_money("charge", -order.amount_mills, order.external_id)

    def _give_back(self, order: Order) -> None:
        self._reserve(order, 0)
        owed = order.charged_mills - order.refunded_mills
        if owed:
            order.refunded_mills += owed
            self.move_money("refund", owed, order.external_id)
        if order.amount_mills:
            order.refunded_at = order.updated_at

    def move_money(self, kind: str, mills: int, external_id: str | None = None) -> None:
        self.balance_mills += mills
        movement = {
            "at": self.clock.stamp(),
            "externalId": external_id,
            "kind": kind,
            "amountCents": cents_up(mills),
            "amountMills": mills,
            "balanceAfter": self.balance_mills // 10,
            "balanceAfterMills": self.balance_mills,
        }
        self.movements.append(movement)
        self._write("movement", movement)

    def change_item(
        self, item: Item, *, price_mills: int | None = None, available: bool | None = None
    ) -> None:
        item.price_mills = item.price_mills if price_mills is None else price_mills
        item.available = item.available if available is None else available
        for listener in self.on_item:
            listener(item)

    def ledger(self) -> dict[str, Any]:
        """Tell everything that was bought and every mill that moved."""
        return {
            "purchases": [order.row() for order in self.orders.values()],
            "wallet": {
                "opening": self.options.balance_cents,
                "balance": self.balance_mills // 10,
                "balanceMills": self.balance_mills,
                "reserved": cents_up(self.reserved_mills),
                "reservedMills": self.reserved_mills,
                "movements": self.movements,
            },
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, kind: Literal["purchase", "status", "movement"], row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode({"event": kind, **row}) + b"\n")
