"""Whatever is done over the public API in whatever order, what a store may rely on holds.

Hypothesis chooses the calls; the model is what has been sent, and how far each order was seen.
"""

import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fulfillment.providers.skinsnode import webhook
from fulfillment.services import webhooks
from fulfillment.services.context import Context, register_accounts
from fulfillment.states import FINAL, RANK, UNFULFILLED
from schemas.enums import OrderStatus as S
from schemas.money import cents_to_mills
from schemas.provider import ReportState, WebhookNotice
from tests.conftest import MakeContext, empty_tables
from tests.integration.web_client import (
    CLIENT_SECRET,
    TWO_ACCOUNTS,
    Store,
    error_of,
    explored,
    serving,
    signed,
)
from tests.support import (
    ITEM,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    checkout,
    run_chain,
    run_polls,
    run_sweep,
)

IDS = [f"o{number}" for number in range(8)]
GONE = "00000000-7c1e-4d0e-9a51-0d6c5a6c7f10"
EVENTS = st.builds(
    lambda name, price, item, account: checkout(
        externalId=name, expectedPrice=price, catalogItemId=item, account=account
    ),
    st.sampled_from(IDS),
    st.sampled_from([PRICE_CENTS, PRICE_CENTS, PRICE_CENTS - 1]),  # the last is too little
    st.sampled_from([ITEM, ITEM, GONE]),
    st.sampled_from(["main", "second"]),
)
WRONG = st.sampled_from(
    [
        ("externalId", "a/b"),
        ("expectedPrice", 6.12),
        ("expectedPrice", -1),
        ("tradeUrl", "https://steamcommunity.com/"),
        ("account", "nobody"),
        ("catalogItemId", ""),
    ]
)
#: The words in the order in which a provider says them; each may be followed by any later one.
WORDS = ["accepted", "queued", "pending", "sent", "completed", "failed", "cancelled", "expired"]


class NodeProvider(FakeProvider):
    """The provider in memory, whose webhooks are truly verified and read."""

    def read_webhook(self, headers: Any, body: bytes) -> WebhookNotice:
        return webhook.read(headers, body, [CLIENT_SECRET])


class PublicAPI(RuleBasedStateMachine):
    """A store, its provider, and somebody who forges."""

    store: Store
    context: Context
    provider: NodeProvider
    clock: FakeClock

    @initialize()
    def begin(self) -> None:
        empty_tables(self.context.database)
        register_accounts(self.context)
        self.provider.orders.clear()
        self.provider.bodies.clear()
        self.sent: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, S] = {}
        self.send_a_batch([checkout(externalId=name, account="main") for name in IDS[:4]])
        self.work()

    # The store

    @rule(event=EVENTS)
    def send(self, event: dict[str, Any]) -> None:
        answer = self.store.post(event)
        assert answer.status_code == self.expected(event), answer.text
        if answer.status_code == 202:
            assert answer.json() == {"externalId": event["externalId"], "status": "received"}
        self.remember(event)

    def expected(self, event: dict[str, Any]) -> int:
        known = self.sent.get(event["externalId"])
        return 202 if known is None else 200 if known == event else 409

    def remember(self, event: dict[str, Any]) -> None:
        self.sent.setdefault(event["externalId"], event)

    @rule(event=EVENTS, wrong=WRONG)
    def send_something_wrong(self, event: dict[str, Any], wrong: tuple[str, Any]) -> None:
        field, value = wrong
        assert error_of(self.store.post(event | {field: value}), 422)["field"] == field

    @rule(events=st.lists(st.one_of(EVENTS, st.just({"externalId": 7})), min_size=1, max_size=5))
    def send_a_batch(self, events: list[dict[str, Any]]) -> None:
        answer = self.store.post(events, "/v1/checkouts/batch")
        assert answer.status_code == 200, answer.text
        for event, result in zip(events, answer.json()["results"], strict=True):
            if event["externalId"] == 7:
                assert result["error"]["field"] == "externalId"
                continue
            assert ("status" in result) is (self.expected(event) != 409)
            self.remember(event)

    @rule(name=st.sampled_from(IDS))
    def read(self, name: str) -> None:
        answer = self.store.get(f"/v1/orders/{name}")
        if name not in self.sent:
            assert answer.status_code == 404
            return
        order, event = answer.json(), self.sent[name]
        assert {key: order[key] for key in event if key != "tradeUrl"} == {
            key: value for key, value in event.items() if key != "tradeUrl"
        }
        assert order["timeline"][0]["to"] == "received"
        assert order["timeline"][-1]["to"] == order["status"]
        moves = [entry for entry in order["timeline"] if entry["from"] != entry["to"]]
        assert all(a["to"] == b["from"] for a, b in itertools.pairwise(moves))

    @rule(limit=st.integers(1, 4), account=st.sampled_from([None, "main", "second"]))
    def list_all(self, limit: int, account: str | None) -> None:
        wanted = {} if account is None else {"account": account}
        found: list[str] = []
        cursor: dict[str, Any] = {}
        is_last = False
        while not is_last:
            page = self.store.get("/v1/orders", limit=limit, **wanted, **cursor).json()
            found += [order["externalId"] for order in page["orders"]]
            assert len(page["orders"]) <= limit
            cursor = {"cursor": page["nextCursor"]}
            is_last = page["nextCursor"] is None
        newest_first = [n for n, e in self.sent.items() if account in (None, e["account"])][::-1]
        assert found == newest_first

    @rule(path=st.sampled_from(["/v1/orders", "/v1/orders/o1", "/v1/wallets"]))
    def come_without_a_token(self, path: str) -> None:
        error_of(self.store.client.get(path, headers={"Authorization": "Bearer no"}), 401)

    # Our workers and the provider

    @rule()
    def work(self) -> None:
        for account in ("main", "second"):
            run_chain(self.context, account)
        run_sweep(self.context)

    @rule(seconds=st.sampled_from([1, 31, 700]))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.advance(seconds)
        run_sweep(self.context)
        run_polls(self.context)

    @precondition(lambda self: self.provider.orders)
    @rule(data=st.data(), is_told=st.booleans())
    def the_provider_goes_on(self, data: st.DataObject, is_told: bool) -> None:
        open_ones = [n for n, r in self.provider.orders.items() if S(r.state.value) not in FINAL]
        if not open_ones:
            return
        name = data.draw(st.sampled_from(open_ones))
        rank = RANK[S(self.provider.orders[name].state.value)]
        word = data.draw(st.sampled_from([word for word in WORDS if RANK[S(word)] > rank]))
        self.provider.says(name, ReportState(word), charged_mills=cents_to_mills(PRICE_CENTS))
        if is_told:
            answer = self.deliver(name, word)
            assert answer == "stored", answer
            webhooks.apply_deliveries(self.context)
            status = S(self.store.get(f"/v1/orders/{name}").json()["status"])
            assert RANK[status] >= RANK[S(word)]

    def deliver(self, name: str, word: str, late_s: float = 0, account: str = "") -> str:
        at = self.clock.now() - timedelta(seconds=late_s)
        body = self.body(name, word)
        account = account or self.sent.get(name, {}).get("account", "main")
        answer = self.store.deliver(body, account, **signed(body, at))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["status"])

    def body(self, name: str, word: str) -> bytes:
        moment = self.clock.now().isoformat().replace("+00:00", "Z")
        fields = {"externalId": name, "status": word, "amount": str(PRICE_CENTS)}
        times = {"updatedAt": moment}
        return json.dumps({**fields, "currency": "USD", "timestamps": times}).encode()

    # Somebody else

    @rule(name=st.sampled_from(IDS), word=st.sampled_from(WORDS), key=st.sampled_from(["", "x"]))
    def forge(self, name: str, word: str, key: str) -> None:
        body = self.body(name, word)
        error_of(self.store.deliver(body, **signed(body, self.clock.now(), key)), 401)

    @rule(name=st.sampled_from(IDS), late_s=st.sampled_from([4000, -4000, 10**7]))
    def replay_what_is_stale(self, name: str, late_s: float) -> None:
        before = self.seen.get(name)
        verdict = self.deliver(name, "completed", late_s)
        webhooks.apply_deliveries(self.context)
        assert verdict in (("stored", "known") if name in self.sent else ("unknown_order",))
        if name in self.sent and before is not None:
            assert self.store.get(f"/v1/orders/{name}").json()["status"] == before

    @rule(name=st.sampled_from(IDS))
    def tell_of_another_accounts_order(self, name: str) -> None:
        owner = self.sent.get(name, {}).get("account", "main")
        other = "second" if owner == "main" else "main"
        assert self.deliver(name, "completed", account=other) == "unknown_order"

    # What must hold

    @invariant()
    def statuses_only_go_forward(self) -> None:
        orders = self.store.get("/v1/orders").json()["orders"]
        assert {order["externalId"] for order in orders} == set(self.sent)
        for order in orders:
            name, status = order["externalId"], S(order["status"])
            before = self.seen.get(name, status)
            is_waiting = {before, status} <= {S.QUOTED, S.AWAITING_FUNDS}
            assert is_waiting or RANK[status] >= RANK[before], (name, before, status)
            assert before not in FINAL or status is before, (name, before, status)
            assert (order["failure"] is not None) is (status in UNFULFILLED), order
            self.seen[name] = status

    @invariant()
    def each_is_bought_at_most_once_and_for_no_more_than_agreed(self) -> None:
        bought = [json.loads(body) for body in self.provider.bodies]
        names = [command["external_id"] for command in bought]
        assert len(names) == len(set(names))
        for command in bought:
            agreed = self.sent[command["external_id"]]["expectedPrice"]
            assert command["price_mills"] <= cents_to_mills(agreed)

    @invariant()
    def what_is_under_way_is_held(self) -> None:
        wallets = {w["account"]: w for w in self.store.get("/v1/wallets").json()["wallets"]}
        for account, wallet in wallets.items():
            delivered = [n for n, s in self.seen.items() if s is S.COMPLETED]
            own = [n for n, e in self.sent.items() if e["account"] == account]
            assert wallet["settled"] == PRICE_CENTS * len(set(own) & set(delivered))
            under_way = [n for n in own if 3 <= RANK[self.seen.get(n, S.RECEIVED)] <= 7]
            assert wallet["held"] >= PRICE_CENTS * len(under_way)


@pytest.fixture
def machine(make_context: MakeContext, clock: FakeClock) -> Iterator[type[PublicAPI]]:
    provider = NodeProvider()
    context = make_context(
        provider, **TWO_ACCOUNTS, web_failures_per_s=10**6, web_calls_per_s=10**6
    )
    with serving(context) as store:
        parts = {"store": store, "context": context, "provider": provider, "clock": clock}
        yield type("Machine", (PublicAPI,), parts)


def test_whatever_is_done_in_whatever_order_the_promises_hold(machine: type[PublicAPI]) -> None:
    run_state_machine_as_test(
        machine,
        settings=explored(stateful_step_count=20),
    )
