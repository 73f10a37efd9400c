"""SkinsBack and Skinslink from checkout to settlement, over their simulated dialects."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fulfillment.providers.http import HTTPClient
from fulfillment.providers.signing import hmac_hex
from fulfillment.providers.skinsback.client import SkinsBack
from fulfillment.providers.transport import KeptTransport
from fulfillment.services import brakes, operations, webhooks
from fulfillment.services.context import Context
from fulfillment.services.webhooks import Verdict
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.simulator.skinslink_words import sign
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import PurchaseCommand
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.support import (
    FakeClock,
    Simulator,
    again,
    entries,
    gather,
    messages_of,
    path_of,
    receive,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    submit,
    view,
)

API_KEY = "ak_test_51d0b8"
PATHS = {"skinsback": "/api.php", "skinslink": "/api/v1"}


@pytest.fixture(scope="module", params=sorted(PATHS))
def dialect(request: pytest.FixtureRequest) -> Iterator[tuple[str, Simulator]]:
    options = SimulatorOptions(
        provider=request.param,
        client_id=CLIENT_ID,
        client_secret=SECRET,
        api_key=API_KEY,
        port=0,
        items=20,
        reusable_items=True,
        requests_per_minute=0,
        balance_cents=100_000_000,
    )
    with running(options) as url:
        simulator = Simulator(url, CLIENT_ID, SECRET)
        yield request.param, simulator
        simulator.close()


@dataclass
class Shop:
    """One account at a dialect, and the ways to let time pass."""

    name: str
    simulator: Simulator
    context: Context
    clock: FakeClock

    def buy(self, scenario: str, **overrides: Any) -> Order:
        item = self.simulator.item()
        event = self.simulator.checkout(scenario, marketHashName=item["marketHashName"])
        (order,) = receive(self.context, event | overrides)
        run_chain(self.context)
        return again(self.context, order)

    def pass_time(self, seconds: float, step: float = 31.0) -> None:
        for _ in range(max(round(seconds / step), 1)):
            self.simulator.jump(step)
            self.clock.advance(step)
            run_sweep(self.context)
            run_polls(self.context)

    def send(self, order: Order, status: str, secret: str = SECRET, **changes: Any) -> Any:
        """Send a webhook as the provider would."""
        reference = again(self.context, order).provider_reference
        if self.name == "skinsback":
            data = {"buy_id": reference, "offer_status": status, "custom_id": order.external_id}
            body = json.dumps({"event": "status_change", "data": {**data, **changes}}).encode()
            return webhooks.take(self.context, "main", {"signature": hmac_hex(secret, body)}, body)
        number = int(reference or 0)
        hint = {"sign": sign(number, secret), "status": status, "purchase_id": number}
        return webhooks.take(self.context, "main", {}, json.dumps({**hint, **changes}).encode())


@pytest.fixture
def shop(
    dialect: tuple[str, Simulator], make_context: MakeContext, clock: FakeClock
) -> Iterator[Shop]:
    name, simulator = dialect
    switches = simulator.ask("GET", "/options")
    main = {"provider": name, "api_key": API_KEY, "request_timeout_s": 0.5}
    context = make_context(base_url=simulator.url + PATHS[name], main=main)
    yield Shop(name, simulator, context, clock)
    simulator.ask("DELETE", "/faults")
    simulator.ask("POST", "/options", **switches)


def test_a_checkout_is_bought_followed_and_booked(shop: Shop) -> None:
    order = shop.buy("delivered")
    shop.pass_time(120)

    purchase = shop.simulator.purchase(order)
    assert purchase is not None
    order = again(shop.context, order)
    assert order.status is S.COMPLETED
    assert order.provider_reference == purchase["providerId"]
    assert order.reversible_until is not None
    assert entries(shop.context, order)[-1] == ("settle", purchase["amountMills"])


def test_a_hold_is_settled(shop: Shop) -> None:
    order = shop.buy("hold_settles")
    shop.pass_time(60)
    held = again(shop.context, order)
    shop.pass_time(600)

    settled = again(shop.context, order)
    assert (held.status, settled.status) == (S.COMPLETED, S.COMPLETED)
    assert held.reversible_until is not None
    assert settled.reversible_until is None
    assert settled.next_poll_at is None
    assert [kind for kind, _ in entries(shop.context, order)] == ["hold", "settle"]


@pytest.mark.parametrize("scenario", ["rollback_user", "rollback_supplier"])
def test_an_undone_trade_is_reversed_with_an_alarm(shop: Shop, scenario: str) -> None:
    order = shop.buy(scenario)
    shop.pass_time(600)

    types = [message["type"] for message in messages_of(shop.context, order)]
    assert path_of(shop.context, order)[-1] == "reversed"
    assert "order.needs_review" in types
    assert "refund" not in [kind for kind, _ in entries(shop.context, order)]


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("refused_funds", "insufficient_funds"),
        ("refused_price", "price_changed"),
        ("refused_item", "item_unavailable"),
    ],
)
def test_a_refusal_frees_the_money_at_once(shop: Shop, scenario: str, code: str) -> None:
    order = shop.buy(scenario)

    assert (order.status, order.failure_code, order.failed_by) == (S.FAILED, code, "provider")
    assert [kind for kind, _ in entries(shop.context, order)] == ["hold", "release"]


@pytest.mark.parametrize("scenario", ["timeout_after_accept", "error_after_accept", "duplicate_id"])
def test_a_lost_answer_is_adopted_and_bought_once(shop: Shop, scenario: str) -> None:
    order = shop.buy(scenario)
    lost = order.status
    shop.pass_time(4, step=2)

    purchase = shop.simulator.purchase(order)
    assert purchase is not None
    assert lost is S.SUBMITTING
    assert again(shop.context, order).status not in (S.SUBMITTING, S.FAILED, S.NEEDS_REVIEW)
    assert purchase["conflictingPosts"] == 0


@pytest.mark.parametrize("scenario", ["error_after_accept", "html_answer", "timeout_after_accept"])
def test_a_purchase_that_met_an_outage_pauses_the_account(shop: Shop, scenario: str) -> None:
    order = shop.buy(scenario)

    (wallet,) = operations.wallets(shop.context)
    assert order.status is S.SUBMITTING
    assert (wallet.paused_until is not None) is (scenario != "timeout_after_accept")


def test_maintenance_is_told_as_an_answer_and_not_as_nothing_sent(shop: Shop) -> None:
    if shop.name != "skinsback":
        pytest.skip("skinslink.md: its maintenance is a 5xx, an unknown outcome")
    item = shop.simulator.item()
    (order,) = receive(
        shop.context,
        shop.simulator.checkout("delivered", marketHashName=item["marketHashName"]),
    )
    batch = gather(shop.context)
    assert batch is not None
    shop.simulator.ask("POST", "/faults", fault="maintenance", times=1)
    submit(shop.context, batch)

    note = view(shop.context, order).timeline[-1].note
    assert note.startswith("nothing was bought yet: market_buy: error -9")


def test_an_id_that_was_used_for_another_item_is_not_adopted(shop: Shop) -> None:
    other, item = shop.simulator.item(1), shop.simulator.item()
    event = shop.simulator.checkout("delivered", marketHashName=item["marketHashName"])
    provider = shop.context.provider("main")
    command = PurchaseCommand(
        event["externalId"],
        other["id"],
        other["marketHashName"],
        other["priceMills"],
        event["tradeUrl"],
        "",
    )
    provider.purchase(provider.purchase_body(command))

    (order,) = receive(shop.context, event)
    run_chain(shop.context)
    shop.pass_time(120, step=5)

    notes = [entry.note for entry in view(shop.context, order).timeline]
    assert other["marketHashName"] != item["marketHashName"]
    assert again(shop.context, order).status is S.NEEDS_REVIEW
    assert any(repr(other["marketHashName"]) in note for note in notes)
    assert [kind for kind, _ in entries(shop.context, order)] == ["hold"]


def test_what_was_lost_before_it_was_made_ends_as_the_contract_allows(shop: Shop) -> None:
    order = shop.buy("dropped_before_accept")
    shop.pass_time(100, step=5)
    after_minutes = again(shop.context, order).status
    shop.pass_time(700, step=10)

    bought = shop.simulator.purchase(order)
    if shop.name == "skinsback":  # posted again under the same id after two empty lookups
        assert after_minutes is not S.SUBMITTING
        assert bought is not None
    else:  # never posted again by itself
        assert after_minutes is S.SUBMITTING
        assert again(shop.context, order).status is S.NEEDS_REVIEW
        assert bought is None


def test_a_webhook_only_asks(shop: Shop) -> None:
    order = shop.buy("stuck")
    status = "accepted" if shop.name == "skinsback" else "completed"

    taken = shop.send(order, status)
    webhooks.apply_deliveries(shop.context)

    after = again(shop.context, order)
    assert taken.verdict is Verdict.STORED
    assert after.status is order.status  # whatever the body claims
    assert after.next_poll_at is not None
    assert after.next_poll_at <= shop.clock.now()

    shop.send(order, status)
    webhooks.apply_deliveries(shop.context)
    assert len(rows(shop.context, "SELECT 1 FROM webhook_deliveries")) == 1
    assert again(shop.context, order).status is order.status


@pytest.mark.parametrize("pending_s", [690, 1040, 1560])
def test_an_offer_that_no_webhook_tells_of_is_heard_of_while_its_customer_can_be_reminded(
    shop: Shop, pending_s: int
) -> None:
    if shop.name != "skinslink":
        pytest.skip("skinsback.md 8: `status_change` tells that an offer is out")
    order, *others = (shop.buy("stuck") for _ in range(9))
    shop.simulator.ask("POST", f"/orders/{order.external_id}/advance", status="pending")
    words = ("hold", "completed", "failed", "canceled", "reverted")
    news = iter([(other, word) for word in words for other in others])

    def pass_time(seconds: int) -> None:
        for second in range(0, seconds, 5):
            if second % 60 == 0:  # of other purchases there is news, as in any busy store
                shop.send(*next(news))
                webhooks.apply_deliveries(shop.context)
            shop.pass_time(5, step=5)

    pass_time(pending_s)
    shop.simulator.ask("POST", f"/orders/{order.external_id}/advance", status="sent")
    pass_time(125)  # of 600

    assert again(shop.context, order).status is S.SENT


def test_a_webhook_finds_its_order_by_the_providers_own_id(shop: Shop) -> None:
    order, other = shop.buy("stuck"), shop.buy("stuck")
    name = "custom_id" if shop.name == "skinsback" else "merchant_tx_id"

    taken = shop.send(order, "canceled", **{name: other.external_id})

    assert taken.external_id == order.external_id


def test_a_webhook_about_a_stranger_stores_nothing(shop: Shop) -> None:
    order = shop.buy("stuck")
    name = "buy_id" if shop.name == "skinsback" else "merchant_tx_id"
    rows(shop.context, "UPDATE orders SET provider_reference = NULL RETURNING 1")

    changes = {name: "999", "custom_id": f"x{uuid.uuid4().hex}"}
    assert shop.send(order, "canceled", **changes).verdict is Verdict.UNKNOWN_ORDER


def test_a_debit_in_another_currency_is_not_booked_and_alarmed(shop: Shop) -> None:
    if shop.name != "skinsback":
        pytest.skip("skinsback.md 3: only its examples have such sums")
    shop.simulator.ask("POST", "/options", old_currency=True)
    order = shop.buy("delivered")
    shop.pass_time(120)

    purchase = shop.simulator.purchase(order)
    assert purchase is not None
    types = [message["type"] for message in messages_of(shop.context, order)]
    assert again(shop.context, order).charged_mills == purchase["priceMills"]
    assert types.count("order.needs_review") == 1


def test_many_orders_are_polled_with_one_request(shop: Shop) -> None:
    if shop.name != "skinsback":
        pytest.skip("skinslink.md 4.5: there is no bulk lookup")
    for _ in range(6):
        shop.buy("stuck")

    def count() -> int:
        requests: dict[str, int] = shop.simulator.ask("GET", "/ledger")["requests"]
        return requests.get("market_getinfo", 0)

    before = count()
    shop.clock.advance(60)
    run_polls(shop.context)

    assert count() - before == 1


class _Moment(KeptTransport):
    """Has something happen while a request of one method is under way."""

    def __init__(self, method: str, happens: Callable[[], None]) -> None:
        super().__init__()
        self._method = method.encode()
        self._happens = happens

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if self._method in request.content:
            self._happens()
        return response


@pytest.mark.parametrize(
    "seconds", [31, 6, None], ids=["the claim's time", "the order's time", "the kill switch"]
)
def test_what_passes_while_the_recipient_is_checked_stops_the_purchase(
    shop: Shop, make_context: MakeContext, seconds: float | None
) -> None:
    def happens() -> None:
        if seconds is None:
            brakes.stop(context, "main", "odd prices", "anna@host")
        else:
            shop.clock.advance(seconds)

    if shop.name != "skinsback":
        pytest.skip("skinslink.md: nothing is asked before a purchase")
    main = {"provider": shop.name, "check_recipient": True}
    context = make_context(base_url=shop.simulator.url + PATHS[shop.name], main=main)
    (order,) = receive(context, shop.simulator.checkout("delivered"))
    if seconds == 6:
        rows(context, "UPDATE orders SET submit_by = created_at + interval '5 s' RETURNING 1")
    moment = _Moment("user_inventory", happens)
    with closing(HTTPClient(context.account("main").url, transport=moment)) as wire:
        provider = SkinsBack(wire, CLIENT_ID, SECRET, [SECRET], is_checking_recipient=True)
        context._providers["main"] = provider
        run_chain(context)

    assert shop.simulator.purchase(order) is None
    assert again(context, order).status in {S.RESERVED, S.SUBMITTING}


def test_a_recipient_who_cannot_trade_is_refused(shop: Shop, make_context: MakeContext) -> None:
    main = {
        "provider": shop.name,
        "api_key": API_KEY,
        "check_recipient": True,
        "request_timeout_s": 0.5,
    }
    shop.context = make_context(base_url=shop.simulator.url + PATHS[shop.name], main=main)
    url = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=TradeBan"

    order = shop.buy("delivered", tradeUrl=url)

    assert (order.status, order.failure_code) == (S.FAILED, "recipient_cannot_trade")
    assert shop.simulator.purchase(order) is None
    assert view(shop.context, order).failure
