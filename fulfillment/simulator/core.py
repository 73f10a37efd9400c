"""The provider-neutral market: items, wallet, orders, and time that can run fast.

It decides what truly happened and keeps an append-only ledger of it; a dialect only tells it.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import msgspec

from fulfillment.clock import Clock
from fulfillment.simulator import catalog, scenarios
from fulfillment.simulator.catalog import Item
from fulfillment.simulator.options import SimulatorOptions
from fulfillment.simulator.scenarios import Scenario, Step

logger = logging.getLogger(__name__)

UNDELIVERED = frozenset({"failed", "cancelled", "expired"})
MESSAGES = {
    "item_unavailable": "item is no longer available",
    "price_changed": "price moved",
    "insufficient_funds": "wallet balance is too low",
    "cancelled": "order was cancelled",
}


class VirtualClock:
    """Durations run `speed` times faster; the times written on messages stay wall time.

    A client judges those by its own clock (signature age, trade deadline): they must not run ahead.
    """

    def __init__(self, clock: Clock, speed: float, offset_s: float = 0.0) -> None:
        self.speed = speed
        self._clock = clock
        self._offset = timedelta(seconds=offset_s)
        self._origin = clock.monotonic()
        self._jumped_s = 0.0

    def now(self) -> float:
        """Give virtual seconds since the start."""
        return self._jumped_s + (self._clock.monotonic() - self._origin) * self.speed

    def jump(self, seconds: float) -> None:
        self._jumped_s += seconds

    def stamp(self, ago_s: float = 0.0) -> str:
        """Write the present (or a past) moment as the providers do: UTC, milliseconds, `Z`."""
        moment = (self._clock.now() + self._offset - timedelta(seconds=ago_s)).astimezone(UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def unix_ms(self) -> int:
        return int(datetime.timestamp(self._clock.now()) * 1000)


class Timeline:
    """One heap of what is due when, run by one task: no task and no timer per order."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()

    def at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), action))
        if self._heap[0][0] == due:
            self._wake.set()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.clock.now() + seconds, action)

    def jump(self, seconds: float) -> None:
        """Let virtual seconds pass at once."""
        self.clock.jump(seconds)
        self._wake.set()

    async def run(self) -> None:
        while True:
            # In small groups, so that requests are answered while thousands fall due together.
            for _ in range(100):
                if not self._heap or self._heap[0][0] > self.clock.now():
                    break
                _, _, action = heapq.heappop(self._heap)
                try:
                    action()
                except Exception:
                    logger.exception("simulator.step_failed")
            else:
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            wait_s = None
            if self._heap:
                wait_s = max(0.0, (self._heap[0][0] - self.clock.now()) / self.clock.speed)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass


@dataclass(slots=True)
class Order:
    """One purchase as it truly stands."""

    external_id: str
    item: Item  # a copy from the moment of purchase
    expected_cents: int
    webhook_url: str | None
    trade_url: str = field(repr=False)
    scenario: Scenario
    accepted_at: str
    started: float
    updated_at: str
    status: str = "accepted"
    amount_cents: int = 0  # agreed charge; 0 if the wallet was never touched
    reserved_cents: int = 0
    charged_cents: int = 0
    refunded_cents: int = 0
    refunded_at: str | None = None
    failure: str | None = None
    steam_offer_id: str | None = None
    steps: tuple[Step, ...] = ()
    generation: int = 0  # raised when a hand moved the order: its own steps are off
    posts: int = 1
    conflicts: int = 0
    reads: int = 0
    last_read: float | None = None
    min_read_gap_s: float | None = None
    history: list[tuple[str, str]] = field(default_factory=list)

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
            "expectedPrice": self.expected_cents,
            "price": self.item.price_cents,
            "amountCents": self.charged_cents,
            "refundedCents": self.refunded_cents,
            "status": self.status,
            "failureCode": self.failure,
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
            for item in catalog.build(options.items, options.prices_file, options.seed)
        }
        self.orders: dict[str, Order] = {}
        self.balance_cents = options.balance_cents
        self.reserved_cents = 0  # only used where the wallet is debited at the end
        self.movements: list[dict[str, Any]] = []
        self.scenario_of_id: dict[str, Scenario] = {}
        self.scenario_of_item: dict[str, Scenario] = {}
        self.on_order: list[Callable[[Order], None]] = []
        self.on_item: list[Callable[[Item], None]] = []
        self._offers = itertools.count(7_193_849_201)
        path = options.ledger_file
        self._file = path.open("ab", buffering=0) if path else None

    def scenario_for(self, external_id: str, item_id: str) -> Scenario:
        return (
            self.scenario_of_id.get(external_id)
            or scenarios.named_by(external_id)
            or self.scenario_of_item.get(item_id)
            or scenarios.SCENARIOS[self.options.default_scenario]
        )

    def buy(
        self,
        external_id: str,
        item_id: str,
        expected_cents: int,
        *,
        trade_url: str,
        webhook_url: str | None,
    ) -> Order | None:
        """Take an order in, or give None if the item is not on sale."""
        item = self.items.get(item_id)
        if item is None or not item.available:
            return None
        scenario = self.scenario_for(external_id, item_id)
        now = self.clock.stamp()
        order = Order(
            external_id=external_id,
            item=replace(item),
            expected_cents=expected_cents,
            webhook_url=webhook_url,
            trade_url=trade_url,
            scenario=scenario,
            accepted_at=now,
            started=self.clock.now(),
            updated_at=now,
            history=[(now, "accepted")],
        )
        self.orders[external_id] = order
        self._settle_price(order)
        if not self.options.reusable_items:
            self.change_item(item, available=False)
        self._write("purchase", order.row())
        self._schedule(order, 0)
        return order

    def _settle_price(self, order: Order) -> None:
        price = order.item.price_cents + order.scenario.extra_cents
        order.steps = order.scenario.steps
        # An order that cannot be bought is accepted all the same and fails a moment later.
        if order.item.price_cents > order.expected_cents:
            order.steps = scenarios.refusal("price_changed")
        elif self.balance_cents - self.reserved_cents < price:
            order.steps = scenarios.refusal("insufficient_funds")
        else:
            order.amount_cents = price
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
        was_undelivered = order.status in UNDELIVERED
        order.status = status
        order.failure = failure
        order.updated_at = self.clock.stamp()
        order.history.append((order.updated_at, status))
        if status in ("sent", "completed") and order.steam_offer_id is None:
            order.steam_offer_id = str(next(self._offers))
        if status == "completed":
            if order.amount_cents and order.charged_cents == order.refunded_cents:
                self._charge(order)
        elif (status in UNDELIVERED or status == "reversed") and refund:
            self._give_back(order)
        if status in UNDELIVERED and not was_undelivered and failure != "item_unavailable":
            self.change_item(self.items[order.item.id], available=True)
        self._write("status", order.row())
        for listener in () if quiet else self.on_order:
            listener(order)

    def _reserve(self, order: Order, cents: int) -> None:
        self.reserved_cents += cents - order.reserved_cents
        order.reserved_cents = cents

    def _charge(self, order: Order) -> None:
        self._reserve(order, 0)
        order.charged_cents += order.amount_cents
        self.move_money("charge", -order.amount_cents, order.external_id)

    def _give_back(self, order: Order) -> None:
        self._reserve(order, 0)
        owed = order.charged_cents - order.refunded_cents
        if owed:
            order.refunded_cents += owed
            self.move_money("refund", owed, order.external_id)
        if order.amount_cents:
            order.refunded_at = order.updated_at

    def move_money(self, kind: str, cents: int, external_id: str | None = None) -> None:
        self.balance_cents += cents
        movement = {
            "at": self.clock.stamp(),
            "externalId": external_id,
            "kind": kind,
            "amountCents": cents,
            "balanceAfter": self.balance_cents,
        }
        self.movements.append(movement)
        self._write("movement", movement)

    def change_item(
        self, item: Item, *, price_cents: int | None = None, available: bool | None = None
    ) -> None:
        item.price_cents = item.price_cents if price_cents is None else price_cents
        item.available = item.available if available is None else available
        for listener in self.on_item:
            listener(item)

    def ledger(self) -> dict[str, Any]:
        """Tell everything that was bought and every cent that moved."""
        return {
            "purchases": [order.row() for order in self.orders.values()],
            "wallet": {
                "opening": self.options.balance_cents,
                "balance": self.balance_cents,
                "reserved": self.reserved_cents,
                "movements": self.movements,
            },
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, kind: Literal["purchase", "status", "movement"], row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode({"event": kind, **row}) + b"\n")
