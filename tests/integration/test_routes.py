"""Routes over three providers: the next account is asked after a definite no, and never before."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fulfillment.errors import CheckoutConflict, InvalidInput
from fulfillment.services import catalog, dispatch, intake, webhooks
from fulfillment.services.context import Context
from fulfillment.services.webhooks import Verdict
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.simulator.skinslink_words import sign
from fulfillment.simulator.skinsnode import signed_headers
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.integration.test_orders_store import assert_rebuilds
from tests.support import (
    FakeClock,
    Simulator,
    again,
    available,
    checkout,
    messages_of,
    path_of,
    receive,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    view,
)

API_KEY = "ak_test_51d0b8"
#: Account -> its provider, and what stands before the provider's paths.
ACCOUNTS = {
    "node": ("skinsnode", ""),
    "back": ("skinsback", "/api.php"),
    "link": ("skinslink", "/api/v1"),
}
PAIRS = [("node", "back"), ("back", "link"), ("link", "node")]
ROUTES = {f"{first}-{second}": (first, second) for first, second in PAIRS}


@pytest.fixture(scope="module")
def simulators() -> Iterator[dict[str, Simulator]]:
    """Run the three providers: the same names and prices under ids of their own."""
    found: dict[str, Simulator] = {}
    options = {
        name: SimulatorOptions(
            provider=provider,  # type: ignore[arg-type]
            client_id=CLIENT_ID,
            client_secret=SECRET,
            api_key=API_KEY,
            port=0,
            items=20,
            reusable_items=True,
            requests_per_minute=0,
            default_scenario="webhooks_lost",
        )
        for name, (provider, _path) in ACCOUNTS.items()
    }
    with (
        running(options["node"]) as node,
        running(options["back"]) as back,
        running(options["link"]) as link,
    ):
        for name, url in (("node", node), ("back", back), ("link", link)):
            found[name] = Simulator(url, CLIENT_ID, SECRET)
        yield found
        for each in found.values():
            each.close()


@dataclass
class Mall:
    """Three accounts at three providers, the routes over them, and the ways to let time pass."""

    simulators: dict[str, Simulator]
    context: Context
    clock: FakeClock

    def event(self, route: str, **overrides: Any) -> dict[str, Any]:
        """Write a checkout of the first item; its id is that of the route's first account."""
        accounts = self.context.settings.routes.get(route, (route,))
        item = self.simulators[accounts[0]].item()
        return checkout(
            account=route,
            catalogItemId=item["id"],
            marketHashName=item["marketHashName"],
            expectedPrice=item["price"],
            **overrides,
        )

    def order(self, route: str, scenarios: dict[str, str] | None = None, **overrides: Any) -> Order:
        """Take a checkout in; `scenarios` are what the accounts' providers do with it."""
        external_id = uuid.uuid4().hex
        for account, scenario in (scenarios or {}).items():
            path = "/scenarios"
            self.simulators[account].ask("POST", path, externalId=external_id, scenario=scenario)
        return receive(self.context, self.event(route, externalId=external_id, **overrides))[0]

    def change_item(self, account: str, **changes: Any) -> None:
        item = self.simulators[account].item()
        self.simulators[account].ask("PUT", f"/items/{item['id']}", **changes)

    def bought_at(self, order: Order) -> list[str]:
        """Name the accounts whose providers have a purchase that did not fail at once."""
        found = {name: each.purchase(order) for name, each in self.simulators.items()}
        return [name for name, row in found.items() if row and row["status"] != "failed"]

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(max(round(seconds / step), 1)):
            self.clock.advance(step)
            for simulator in self.simulators.values():
                simulator.jump(step)
            run_sweep(self.context)
            run_polls(self.context)


@pytest.fixture
def mall(
    simulators: dict[str, Simulator], make_context: MakeContext, clock: FakeClock
) -> Iterator[Mall]:
    accounts = {
        name: {
            "provider": provider,
            "base_url": simulators[name].url + path,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "api_key": API_KEY,
            "request_timeout_s": 0.5,
        }
        for name, (provider, path) in ACCOUNTS.items()
    }
    accounts["dead"] = accounts["node"] | {"base_url": "http://127.0.0.1:9"}
    routes = ROUTES | {"all": ("node", "back", "link"), "dead-back": ("dead", "back")}
    kept = {name: simulator.item() for name, simulator in simulators.items()}
    for simulator in simulators.values():
        simulator.set_balance(1_000_000)
    context = make_context(accounts=accounts, routes=routes)
    yield Mall(simulators, context, clock)
    for name, simulator in simulators.items():
        simulator.ask("DELETE", "/faults")
        item = kept[name]
        path = f"/items/{item['id']}"
        simulator.ask("PUT", path, price=item["price"], available=item["available"])


def attempts(context: Context, order: Order) -> list[tuple[str, str, bool]]:
    """Give the order's attempts, oldest first: account, state, whether money is held."""
    query = "SELECT * FROM attempts WHERE order_id = %(id)s ORDER BY id"
    found = rows(context, query, id=order.id)
    return [(row["account"], row["state"], row["hold_closed_at"] is None) for row in found]


def money(context: Context, order: Order) -> list[tuple[str, str]]:
    query = "SELECT account, kind FROM wallet_entries WHERE order_id = %(id)s ORDER BY id"
    return [(row["account"], row["kind"]) for row in rows(context, query, id=order.id)]


def notes(context: Context, order: Order) -> str:
    return "\n".join(entry.note for entry in view(context, order).timeline)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_what_is_gone_at_the_first_is_bought_by_its_name_at_the_second(
    mall: Mall, first: str, second: str
) -> None:
    mall.change_item(first, available=False)
    order = mall.order(f"{first}-{second}")
    batch = dispatch.dispatch(mall.context, first)
    assert batch is not None

    outcome = catalog.refresh_catalog(mall.context, batch)
    on_its_way = again(mall.context, order)
    mall.pass_time(120, step=31)

    order = again(mall.context, order)
    shown = view(mall.context, order)
    assert (outcome.goes_on, outcome.rerouted_to) == (False, (second,))
    assert (on_its_way.status, on_its_way.account) == (S.RECEIVED, second)
    assert (order.status, order.account, order.fallbacks) == (S.COMPLETED, second, ())
    assert (shown.account, shown.route) == (second, f"{first}-{second}")
    assert mall.bought_at(order) == [second]
    assert attempts(mall.context, order) == [(second, "completed", False)]
    assert f"{first}: item_unavailable" in notes(mall.context, order)
    assert f"trying {second}" in notes(mall.context, order)
    assert_rebuilds(mall.context, order)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_refused_purchase_is_made_at_the_second_and_the_order_stays_submitting(
    mall: Mall, first: str, second: str
) -> None:
    order = mall.order(f"{first}-{second}", {first: "item_gone"})
    price_mills = order.expected_price_cents * 10

    run_chain(mall.context, first)
    between = again(mall.context, order)
    held_between = [held for *_rest, held in attempts(mall.context, order)]
    free_again = available(mall.context, first)
    mall.pass_time(120, step=31)

    order = again(mall.context, order)
    assert (between.status, between.account) == (S.SUBMITTING, second)
    assert held_between == [False]
    assert mall.bought_at(order) == [second]
    assert path_of(mall.context, order)[:5] == [
        *("received", "quoted", "reserved", "submitting"),
        path_of(mall.context, order)[4],
    ]
    assert path_of(mall.context, order).count("submitting") == 1
    assert path_of(mall.context, order)[-1] == "completed"
    assert attempts(mall.context, order) == [
        (first, "refused", False),
        (second, "completed", False),
    ]
    assert money(mall.context, order) == [
        (first, "hold"),
        (first, "release"),
        (second, "hold"),
        (second, "settle"),
    ]
    assert free_again == 10_000_000
    assert order.charged_mills == price_mills
    told = [message["order"]["account"] for message in messages_of(mall.context, order)]
    assert told == sorted(told, key=[first, second].index)  # the store hears of the change
    assert_rebuilds(mall.context, order)


def test_a_provider_that_is_down_for_now_is_passed_over(mall: Mall) -> None:
    order = mall.order("link-node", {"link": "refused_unavailable"})
    run_chain(mall.context, "link")
    mall.pass_time(3)

    assert mall.bought_at(order) == ["node"]
    assert "link: provider_unavailable" in notes(mall.context, order)


def test_a_token_that_only_one_provider_refuses_is_tried_at_the_next(mall: Mall) -> None:
    url = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=Ab3dEf"
    order = mall.order("link-node", tradeUrl=url)
    alone = mall.order("link", tradeUrl=url)
    run_chain(mall.context, "link")
    mall.pass_time(3)

    assert mall.bought_at(order) == ["node"]
    assert mall.simulators["link"].purchase(order) is None
    assert again(mall.context, alone).failure_code == "invalid_trade_url"


def test_a_recipient_that_a_provider_refuses_is_final(mall: Mall) -> None:
    url = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=TradeBan"
    order = mall.order("link-node", tradeUrl=url)
    run_chain(mall.context, "link")
    mall.pass_time(3)

    order = again(mall.context, order)
    assert (order.status, order.account, order.failed_by) == (S.FAILED, "link", "provider")
    assert mall.bought_at(order) == []


def test_the_price_cap_holds_over_all_and_the_timeline_names_each_no(mall: Mall) -> None:
    order = mall.order("all", {"link": "refused_funds"})
    mall.change_item("node", price=order.expected_price_cents + 1)
    mall.change_item("back", available=False)

    run_chain(mall.context, "node")
    mall.pass_time(3)

    order = again(mall.context, order)
    assert (order.status, order.failure_code) == (S.FAILED, "insufficient_funds")
    assert (order.failed_by, order.account) == ("provider", "link")
    assert mall.bought_at(order) == []
    told = notes(mall.context, order)
    for part in ("node: price_changed", "back: item_unavailable", "trying link", "nothing was"):
        assert part in told
    assert_rebuilds(mall.context, order)


def test_each_account_has_its_own_limit_of_the_price(make_context: MakeContext, mall: Mall) -> None:
    accounts = {
        name: account.model_dump() for name, account in mall.context.settings.accounts.items()
    }
    accounts["back"]["slippage_cents"] = 1
    mall.context = make_context(accounts=accounts, routes=mall.context.settings.routes)
    order = mall.order("node-back")
    for account in ("node", "back"):
        mall.change_item(account, price=order.expected_price_cents + 1)

    run_chain(mall.context, "node")
    mall.pass_time(1)

    assert mall.bought_at(order) == ["back"]


def test_short_of_funds_the_second_buys_and_only_the_last_waits(mall: Mall) -> None:
    mall.simulators["node"].set_balance(0)
    rich = mall.order("node-back")
    run_chain(mall.context, "node")
    mall.pass_time(1)
    mall.simulators["back"].set_balance(0)
    poor = mall.order("node-back")
    run_chain(mall.context, "node")
    mall.pass_time(1)
    waiting = again(mall.context, poor)

    mall.simulators["back"].set_balance(1_000_000)
    mall.pass_time(40, step=10)

    assert mall.bought_at(rich) == ["back"]
    assert "node: insufficient_funds" in notes(mall.context, rich)
    assert (waiting.status, waiting.account) == (S.AWAITING_FUNDS, "back")
    assert mall.bought_at(poor) == ["back"]
    assert_rebuilds(mall.context, poor)


def test_short_of_funds_after_a_submit_it_waits_submitting_and_by_arrival(mall: Mall) -> None:
    order = mall.order("node-back", {"node": "item_gone"})
    run_chain(mall.context, "node")
    mall.simulators["back"].set_balance(0)
    mall.pass_time(1)
    waiting = again(mall.context, order)
    later = mall.order("back")
    run_chain(mall.context, "back")

    mall.simulators["back"].set_balance(order.expected_price_cents)
    mall.pass_time(40, step=10)

    assert (waiting.status, waiting.account) == (S.SUBMITTING, "back")
    assert waiting.funds_deadline_at is not None
    assert mall.bought_at(order) == ["back"]
    assert again(mall.context, later).status is S.AWAITING_FUNDS
    assert again(mall.context, order).funds_deadline_at is None
    assert_rebuilds(mall.context, order)


def test_it_waits_for_the_last_account_no_longer_than_any_order(mall: Mall) -> None:
    order = mall.order("node-back", {"node": "item_gone"})
    run_chain(mall.context, "node")
    mall.simulators["back"].set_balance(0)

    mall.pass_time(1000, step=100)

    order = again(mall.context, order)
    assert (order.status, order.failure_code) == (S.FAILED, "insufficient_funds")
    assert attempts(mall.context, order) == [("node", "refused", False)]


@pytest.mark.parametrize("scenario", ["timeout_after_accept", "dropped_after_accept"])
def test_what_the_first_bought_unheard_is_never_bought_at_the_second(
    mall: Mall, scenario: str
) -> None:
    order = mall.order("node-back", {"node": scenario})
    run_chain(mall.context, "node")
    lost = again(mall.context, order)
    mall.pass_time(60, step=5)

    assert (lost.status, lost.account) == (S.SUBMITTING, "node")
    assert mall.bought_at(order) == ["node"]
    assert mall.simulators["back"].purchase(order) is None
    assert [account for account, *_rest in attempts(mall.context, order)] == ["node"]


def test_while_the_first_is_unknown_the_second_is_not_asked(mall: Mall) -> None:
    order = mall.order("node-back", {"node": "dropped_before_accept"})
    run_chain(mall.context, "node")
    mall.change_item("node", available=False)  # the repetition is refused from now on
    seen = []
    for _ in range(60):
        mall.pass_time(1)
        seen.append((again(mall.context, order).account, mall.bought_at(order)))
        if seen[-1][0] == "back":
            break

    assert seen[0] == ("node", [])
    # Believed only when a lookup past the provider's cache knows nothing either.
    assert len(seen) > mall.context.cache_time.total_seconds()
    mall.pass_time(2)
    assert mall.bought_at(order) == []
    mall.pass_time(110)  # it is asked once more, when no answer can be older than the last request
    assert mall.bought_at(order) == ["back"]
    assert attempts(mall.context, order)[0] == ("node", "refused", False)


def test_an_account_that_cannot_be_reached_is_passed_over_at_once(mall: Mall) -> None:
    item = mall.simulators["node"].item()
    name, price = item["marketHashName"], item["price"]
    event = checkout(
        account="dead-back", catalogItemId=item["id"], marketHashName=name, expectedPrice=price
    )
    (order,) = receive(mall.context, event)
    batch = dispatch.dispatch(mall.context, "dead")
    assert batch is not None

    outcome = catalog.refresh_catalog(mall.context, batch)
    run_chain(mall.context, "back")

    assert (outcome.goes_on, outcome.rerouted_to) == (False, ("back",))
    assert mall.bought_at(order) == ["back"]
    assert "dead: cannot be asked" in notes(mall.context, order)


def test_too_late_is_too_late_on_a_route_as_well(mall: Mall) -> None:
    until = mall.clock.now().replace(microsecond=0)
    mall.clock.advance(-60)
    order = mall.order("node-back", {"node": "item_gone"}, submitBy=until.isoformat())
    run_chain(mall.context, "node")

    mall.clock.advance(61)
    run_chain(mall.context, "back")

    order = again(mall.context, order)
    assert (order.status, order.failure_code, order.account) == (S.FAILED, "too_late", "back")
    assert mall.bought_at(order) == []


def webhook(mall: Mall, order: Order, status: str) -> webhooks.Taken:
    """Send a webhook of SkinsNode's about the order."""
    body = json.dumps({"externalId": order.external_id, "status": status, "timestamps": {}})
    stamp = mall.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = signed_headers(SECRET, stamp, "d-1", body.encode())
    return webhooks.take(mall.context, "node", headers, body.encode())


def test_a_late_webhook_of_the_first_is_alarmed_once_and_looked_into(mall: Mall) -> None:
    order = mall.order("node-back", {"node": "item_gone"})
    run_chain(mall.context, "node")
    before_second = again(mall.context, order)

    taken = webhook(mall, order, "sent")
    repeated = webhook(mall, order, "sent")
    webhooks.apply_deliveries(mall.context)
    after = again(mall.context, order)
    mall.pass_time(60, step=31)

    assert (taken.verdict, repeated.verdict) == (Verdict.STORED, Verdict.KNOWN)
    assert (after.status, after.account) == (before_second.status, "back")
    assert after.next_attempt_at == before_second.next_attempt_at
    assert mall.bought_at(order) == []
    mall.pass_time(120, step=31)
    assert again(mall.context, order).status is S.COMPLETED
    assert mall.bought_at(order) == ["back"]
    types = [message["type"] for message in messages_of(mall.context, order)]
    assert types.count("order.needs_review") == 1
    assert notes(mall.context, order).count("node reports 'sent' of this order") == 1


def test_a_late_failure_at_the_first_is_noted_without_an_alarm(mall: Mall) -> None:
    order = mall.order("link-node", {"link": "refused_item"})
    run_chain(mall.context, "link")
    purchase = mall.simulators["link"].purchase(order)
    assert purchase is not None
    number = int(purchase["providerId"])

    # Its body is not signed: the provider is asked, and it knows a purchase that failed at once.
    said = {"sign": sign(number, SECRET), "status": "active", "purchase_id": number}
    body = json.dumps(said | {"merchant_tx_id": order.external_id}).encode()
    taken = webhooks.take(mall.context, "link", {}, body)
    webhooks.apply_deliveries(mall.context)

    types = [message["type"] for message in messages_of(mall.context, order)]
    assert taken.verdict is Verdict.STORED
    assert "link reports 'failed' of this order" in notes(mall.context, order)
    assert "order.needs_review" not in types


def test_a_webhook_of_an_account_that_was_never_tried_is_a_strangers(mall: Mall) -> None:
    order = mall.order("back-link")
    assert webhook(mall, order, "sent").verdict is Verdict.UNKNOWN_ORDER


def test_the_route_is_part_of_the_checkouts_content(mall: Mall) -> None:
    event = mall.event("node-back")
    first, repeated, other = intake.receive_raw(
        mall.context, [event, event, event | {"account": "node"}]
    )

    assert (first.account, first.is_new, repeated.is_new) == ("node", True, False)
    assert isinstance(other.error, CheckoutConflict)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"marketHashName": None}, "marketHashName"), ({"account": "elsewhere"}, "account")],
)
def test_a_checkout_that_its_route_cannot_buy_is_refused(
    mall: Mall, changes: dict[str, Any], field: str
) -> None:
    (result,) = intake.receive_raw(mall.context, [mall.event("node-back") | changes])

    assert isinstance(result.error, InvalidInput)
    assert result.error.field == field
