"""What tests share: a clock they own, a provider that fails on request, short ways to act."""

import json
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
import msgspec

from fulfillment.errors import ProviderError
from fulfillment.providers.base import AfterUnknown, BeforeSend
from fulfillment.services import (
    catalog,
    dispatch,
    funds,
    intake,
    invariants,
    operations,
    reconciliation,
    sharing,
    submission,
    sweep,
    watchdog,
    webhooks,
)
from fulfillment.services.context import Context
from fulfillment.store import ledger, orders
from fulfillment.store.models import Attempt, Order
from schemas.enums import OrderStatus
from schemas.messages import Batch
from schemas.orders import OrderView
from schemas.provider import (
    OrderReport,
    PurchaseCommand,
    Quote,
    Quotes,
    ReportState,
    Want,
    WebhookNotice,
)

T = TypeVar("T")

TOKEN = "Kq7-x_2z"
TRADE_URL = f"https://steamcommunity.com/tradeoffer/new/?partner=123456789&token={TOKEN}"
ITEM = "0b0f4f0e-7c1e-4d0e-9a51-0d6c5a6c7f10"
NAME = "AWP | Atheris (Field-Tested)"
PRICE_CENTS = 612
WAIT_S = 20.0


class FakeClock:
    """Time that passes only when a test says so; safe to read from several threads."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime.now(UTC)
        self._monotonic_s = 1000.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic_s

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic_s += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone: it is set, or the machine was suspended."""
        with self._lock:
            self._now += timedelta(seconds=seconds)


def fixed_jitter() -> float:
    """Take the shortest of every jittered time, so that tests can name it."""
    return 0.0


class FakeProvider:
    """A provider in memory that is told how to fail; where nothing has to fail, use the simulator.

    `purchase_script` is used up first: an error is raised after the order was made if `is_made`
    says so, as when an answer is lost on its way.
    """

    after_unknown = AfterUnknown.REPLAY
    signs_what_it_is_about = True
    pushes_offers = True
    lookup_limit = 1
    #: How many of the orders that one lookup asks for are answered; the others are left out.
    told_at_once = 1_000
    requests_per_purchase = 1
    #: Whether a quote is of a list of everything, as SkinsNode's.
    lists_all = False

    def __init__(self) -> None:
        self.prices: dict[str, int] = {ITEM: PRICE_CENTS * 10}
        self.balance_mills = 10_000_000
        self.orders: dict[str, OrderReport] = {}
        self.bodies: list[bytes] = []
        self.purchase_script: deque[tuple[ProviderError | None, bool]] = deque()
        self.read_error: ProviderError | None = None
        self.on_purchase: Callable[[dict[str, Any]], None] = lambda fields: None
        self.on_read: Callable[[str], None] = lambda what: None
        self.notice: WebhookNotice | None = None
        self.reads: list[str] = []
        self._lock = threading.Lock()

    def fail_purchase(self, error: ProviderError, *, is_made: bool = False) -> None:
        """Let one more of the next purchases end with this error."""
        self.purchase_script.append((error, is_made))

    def reads_fail(self, error: ProviderError | None) -> None:
        """Let every read fail from now on; None heals it."""
        self.read_error = error

    def _read(self, what: str) -> None:
        with self._lock:
            self.reads.append(what)
        self.on_read(what)
        if self.read_error is not None:
            raise self.read_error

    def quote(self, wants: Sequence[Want]) -> Quotes:
        self._read("catalog")
        found = {
            want: Quote(want.catalog_item_id, NAME, self.prices[want.catalog_item_id])
            for want in wants
            if want.catalog_item_id in self.prices
        }
        names = {want.market_hash_name or want.catalog_item_id: want in found for want in wants}
        searched = {} if self.lists_all else names
        return Quotes(found, len(self.prices), is_whole=self.lists_all, searched=searched)

    def wallet_mills(self) -> int:
        self._read("wallet")
        return self.balance_mills

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        return msgspec.json.encode(command)

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        if before_send is not None:
            before_send()
        fields = msgspec.json.decode(body)
        self.on_purchase(fields)
        with self._lock:
            self.bodies.append(body)
            error, is_made = (
                self.purchase_script.popleft() if self.purchase_script else (None, True)
            )
            external_id = fields["external_id"]
            if is_made and external_id not in self.orders:
                self.orders[external_id] = report(ReportState.ACCEPTED, external_id)
                self.balance_mills -= fields["price_mills"]
            if error is not None:
                raise error
            return self.orders[external_id]

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        self._read(f"order {' '.join(external_ids)}")
        told = external_ids[: self.told_at_once]
        return {name: self.orders[name] for name in told if name in self.orders}

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookNotice:
        assert self.notice is not None
        return self.notice

    def says(self, external_id: str, state: ReportState, **details: Any) -> None:
        """Let the provider report this state of an order from now on."""
        self.orders[external_id] = report(state, external_id, **details)

    def healthy(self) -> bool:
        return self.read_error is None

    def close(self) -> None:
        pass


def report(state: ReportState, external_id: str = "order_1", **details: Any) -> OrderReport:
    """Write what a provider says of an order."""
    return OrderReport(external_id, state, **{"raw_status": state.value, **details})


def checkout(**overrides: Any) -> dict[str, Any]:
    """Write a checkout event as it comes over the wire; overrides have the event's own names."""
    return {
        "externalId": f"order_{uuid.uuid4().hex[:12]}",
        "catalogItemId": ITEM,
        "expectedPrice": PRICE_CENTS,
        "tradeUrl": TRADE_URL,
        **overrides,
    }


def some_order(**overrides: Any) -> Order:
    """Make an order as the store would give it, without a database."""
    now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    values: dict[str, Any] = dict.fromkeys(Order.__struct_fields__)
    values |= {
        "id": 1,
        "external_id": "order_1",
        "account": "main",
        "fallbacks": (),
        "contradictions": (),
        "between_attempts": False,
        "fingerprint": "k:0",
        "catalog_item_id": ITEM,
        "expected_price_cents": PRICE_CENTS,
        "submit_by": now + timedelta(hours=1),
        "status": OrderStatus.RECEIVED,
        "overdue": False,
        "polls": 0,
        "failed_polls": 0,
        "sequence": 1,
        "created_at": now,
        "updated_at": now,
    }
    return Order(**values | overrides)


def receive(context: Context, *raws: dict[str, Any]) -> list[Order]:
    """Take checkouts in, and give their orders; each must be accepted."""
    results = intake.receive_raw(context, list(raws) or [checkout()])
    errors = [result.error for result in results if result.error]
    assert not errors, errors
    return [read(context, str(result.external_id)) for result in results]


def receive_one(context: Context, **overrides: Any) -> Order:
    return receive(context, checkout(**overrides))[0]


def read(context: Context, external_id: str) -> Order:
    with context.database.transaction() as session:
        return orders.find(session, [external_id])[external_id]


def again(context: Context, order: Order) -> Order:
    """Give the order as it is now."""
    return read(context, order.external_id)


def attempt_of(context: Context, order: Order) -> Attempt:
    with context.database.transaction() as session:
        return ledger.attempts_of(session, [order.id])[order.id]


def view(context: Context, order: Order) -> OrderView:
    return operations.show(context, order.external_id)


def path_of(context: Context, order: Order) -> list[str]:
    """Give the statuses that the order went through, each change once."""
    entries = view(context, order).timeline
    return [entry.to.value for entry in entries if entry.from_ is not entry.to]


def available(context: Context, account: str = "main") -> int:
    """Give what may be committed now, in mills."""
    with context.database.transaction() as session:
        return ledger.available_mills(session, account)


def rows(context: Context, query: str, **parameters: Any) -> list[dict[str, Any]]:
    """Read the database past the store."""
    with context.database.transaction() as session:
        return [row._asdict() for row in session.execute(query, parameters)]


def entries(context: Context, order: Order) -> list[tuple[str, int]]:
    """Give the money log of one order: kind and mills."""
    query = "SELECT kind, amount_mills FROM wallet_entries WHERE order_id = %(id)s ORDER BY id"
    return [(row["kind"], row["amount_mills"]) for row in rows(context, query, id=order.id)]


def messages_of(context: Context, order: Order) -> list[dict[str, Any]]:
    """Give what the store is told of one order, oldest first."""
    query = "SELECT body FROM outbox_messages WHERE order_id = %(id)s ORDER BY id"
    return [json.loads(row["body"]) for row in rows(context, query, id=order.id)]


def gather(context: Context, account: str = "main") -> Batch | None:
    """Run the chain up to the held money; None where nothing goes on to be submitted."""
    batch = dispatch.dispatch(context, account)
    if batch is None or not catalog.refresh_catalog(context, batch).goes_on:
        return None
    return batch if funds.check_wallet(context, batch).goes_on else None


def run_chain(context: Context, account: str = "main") -> Batch | None:
    """Do what one `checkout.dispatch` sets going, step after step."""
    batch = gather(context, account)
    if batch is not None:
        submit(context, batch)
    return batch


def submit(context: Context, batch: Batch) -> None:
    if submission.submit_orders(context, batch):
        reconciliation.schedule_reconciliation(context, batch)


def run_sweep(context: Context) -> None:
    """Do what one `sweep.resume_stuck` sets going."""
    found = sweep.resume_stuck(context)
    for account in found.accounts:
        run_chain(context, account)
    for batch in found.batches:
        mine, others = sharing.share_out(context, batch, is_new=False)
        for part in (mine, *others):
            submit(context, part)
    if found.has_webhooks:
        webhooks.apply_deliveries(context)


def accepted(context: Context) -> Order:
    """Give an order that the provider has."""
    order = receive_one(context)
    run_chain(context)
    found = again(context, order)
    assert found.status is OrderStatus.ACCEPTED
    return found


def run_polls(context: Context) -> None:
    """Do what one `reconcile.poll_due` sets going."""
    for batch in reconciliation.poll_due(context):
        reconciliation.poll_orders(context, batch["account"], batch["ids"])


def run_ticks(context: Context) -> None:
    """Do what every periodic task does, once."""
    run_sweep(context)
    run_polls(context)
    watchdog.watch_trade_windows(context)


def hear(
    context: Context, main: FakeProvider, external_id: str, state: ReportState, **told: object
) -> None:
    """Take and apply a signed webhook of the account `main`."""
    main.notice = WebhookNotice(external_id, context.now(), report(state, external_id, **told))
    webhooks.take(context, "main", {}, state.encode())
    webhooks.apply_deliveries(context)


def take_figure(context: Context) -> None:
    """Read the wallet now, outside any batch."""
    funds.refresh_wallet(context, "main")


def assert_invariants(context: Context) -> None:
    """Check all that must always hold, but that the store hears of it: no relay runs here."""
    found = [each for each in invariants.violations(context) if each.invariant != "outbox_waits"]
    assert not found, found


def in_threads(count: int, act: Callable[[int], T]) -> list[T]:
    """Run `act` in so many threads that start together; give the answers, raise what they raise."""
    barrier = threading.Barrier(count)

    def start(place: int) -> T:
        barrier.wait()
        return act(place)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(start, range(count)))


def until(condition: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    """Await a condition and give what it gave."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the awaited condition did not come true"
        time.sleep(0.01)
    return found


@dataclass
class Simulator:
    """A running simulator's side door: the provider's truth, and the means to bend it."""

    url: str
    client_id: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        self._client = httpx.Client(base_url=f"{self.url}/_sim", trust_env=False, timeout=WAIT_S)

    def ask(self, method: str, path: str, /, **content: Any) -> Any:
        response = self._client.request(method, path, json=content or None)
        response.raise_for_status()
        return response.json()

    def item(self, place: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/items?limit=100")["items"][place]
        return found

    def checkout(self, scenario: str, place: int = 0, **overrides: Any) -> dict[str, Any]:
        """Write a checkout of an item on sale; the scenario is what the provider does with it."""
        item = self.item(place)
        event = checkout(catalogItemId=item["id"], expectedPrice=item["price"], **overrides)
        return event | {"externalId": f"{uuid.uuid4().hex[:16]}.{scenario}"}

    def purchase(self, order: Order) -> dict[str, Any] | None:
        """Give the provider's own record of the order, None where it has none."""
        rows = self.ask("GET", "/ledger")["purchases"]
        return next((row for row in rows if row["externalId"] == order.external_id), None)

    def jump(self, seconds: float) -> None:
        self.ask("POST", "/clock", advanceS=seconds)

    def set_balance(self, cents: int) -> None:
        """Make this the wallet's balance, and let no cached one be read."""
        wallet = self.ask("GET", "/ledger")["wallet"]
        if cents != wallet["balance"]:
            self.ask("POST", "/wallet", deltaCents=cents - wallet["balance"])
        self.jump(31)

    def until_status(self, order: Order, status: str) -> None:
        until(lambda: self.ask("GET", f"/orders/{order.external_id}")["status"] == status)

    def close(self) -> None:
        self._client.close()


def shuffled(values: Iterable[T], seed: int) -> list[T]:
    """Give the values in another order, the same one for the same seed."""
    found = list(values)
    random.Random(seed).shuffle(found)
    return found
