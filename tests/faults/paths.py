"""The ways that an order may go, as data; a crash at each point is tried on each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fulfillment.services.operations import Resolution
from fulfillment.simulator.options import SimulatorOptions
from fulfillment.simulator.scenarios import SCENARIOS, Scenario
from schemas.enums import ProviderName
from tests.faults.plan import API_KEY, CLIENT_ID, PUBLIC_URL, ROUTE, SECRET, Plan, PlannedOrder

NODE, BACK, LINK = ProviderName.SKINSNODE, ProviderName.SKINSBACK, ProviderName.SKINSLINK
_PATHS = {NODE: "", BACK: "/api.php", LINK: "/api/v1"}
#: The catalog's length.
ITEMS = 20
DELIVERED = frozenset({"completed"})
FAILED = frozenset({"failed"})


@dataclass(frozen=True)
class Path:
    """One way that orders go, and how they end, crash or not."""

    name: str
    #: Accounts in the order in which they are tried; more than one make a route.
    providers: tuple[ProviderName, ...]
    ends: frozenset[str]
    #: What the provider does with the order, at each account.
    scenarios: tuple[Scenario, ...] = (SCENARIOS["delivered"],)
    #: Faults of the network, and how often each order meets them.
    strikes: Mapping[str, int] = field(default_factory=dict)
    orders: int = 1
    apart_s: float = 0.0
    #: How it may end besides where somebody died on it.
    after_deaths: frozenset[str] = frozenset()
    slack_cents: int = 0
    balance_cents: int = 1_000_000
    #: So long after an order its price is put into the wallet.
    top_up_after_s: float | None = None
    #: From this order on the first account lacks the item.
    gone_from: int | None = None
    #: So long after the beginning, and once each account has sold something, all our rows are lost;
    #: the store sends its checkouts again. What was bought is there no more.
    restored_after_s: float | None = None
    #: The provider's first account is away all the time.
    is_down: bool = False
    comes_by_queue: bool = False
    is_relayed: bool = False
    #: What a person finds out about an order that is left to him.
    finding: Resolution | None = None
    #: What is over is erased every minute.
    is_erased: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    account: Mapping[str, Any] = field(default_factory=dict)

    @property
    def crashed_ends(self) -> frozenset[str]:
        """How it may end after a crash: what Skinslink may have been sent it is never sent again,
        so that a person decides about what it does not know."""
        may_be_left = {"needs_review"} if LINK in self.providers else set()
        return self.ends | self.after_deaths | may_be_left

    @property
    def names(self) -> list[str]:
        return ["main", *(provider.value for provider in self.providers[1:])]

    def plan(self, seed: int) -> Plan:
        """Write down what this path is, for the simulation."""
        accounts = {n: self._account(p) for n, p in zip(self.names, self.providers, strict=True)}
        options = {
            name: self._options(seed, name, provider)
            for name, provider in zip(self.names, self.providers, strict=True)
        }
        is_route = len(self.providers) > 1
        return Plan(
            seed=seed,
            kinds=(),
            accounts=accounts,
            options=options,
            orders=self._planned(),
            settings={
                "batch_limit": 8,
                "claim_lease_s": 10,
                "await_funds_s": 60,
                "routes": {ROUTE: tuple(accounts)} if is_route else {},
                **self.settings,
            },
            faults_until=0.0,
            worker_slots=(4, 4),
            tick_s=2.0,
        )

    def _planned(self) -> tuple[PlannedOrder, ...]:
        return tuple(
            PlannedOrder(
                external_id=f"order-{number:02d}",
                account=ROUTE if len(self.providers) > 1 else "main",
                item=number % ITEMS,
                at=number * self.apart_s,
                scenario=self.scenarios[0],
                kind=None,
                slack_cents=self.slack_cents,
            )
            for number in range(self.orders)
        )

    def _account(self, provider: ProviderName) -> dict[str, Any]:
        return {
            "provider": provider.value,
            "base_url": f"http://provider{_PATHS[provider]}",
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "api_key": API_KEY,
            **self.account,
        }

    def _options(self, seed: int, name: str, provider: ProviderName) -> SimulatorOptions:
        return SimulatorOptions(
            provider=provider.value,
            client_id=CLIENT_ID,
            client_secret=SECRET,
            api_key=API_KEY,
            items=ITEMS,
            reusable_items=self.restored_after_s is None,
            seed=seed,
            balance_cents=self.balance_cents,
            hold_s=0.0 if provider is NODE else 300.0,
            webhook_url=f"{PUBLIC_URL}/webhooks/{name}",
        )


def _said(name: str, **changes: Any) -> tuple[Scenario, ...]:
    return (replace(SCENARIOS[name], **changes),)


#: SkinsNode may be posted to again, SkinsBack after two lookups, Skinslink never.
_LOST_AFTER = {"timeout_after": 1}
_LOST_BEFORE = {"timeout_before": 1}

#: Two orders are bought at the first account and two at the next one.
_RESTORED: Mapping[str, Any] = {
    "orders": 4,
    "apart_s": 1.0,
    "gone_from": 2,
    "restored_after_s": 5.0,
}

PATHS = {
    path.name: path
    for path in (
        Path("delivered", (NODE,), DELIVERED),
        Path("by_queue", (BACK,), DELIVERED, comes_by_queue=True, is_relayed=True),
        Path("bought_by_name", (LINK,), DELIVERED),
        Path("webhooks_lost", (BACK,), DELIVERED, _said("webhooks_lost")),
        Path("webhook_first", (NODE,), DELIVERED, _said("webhook_before_answer")),
        Path("end_told_first", (NODE,), DELIVERED, _said("completed_before_answer")),
        # Ends without the item
        Path("price_changed", (NODE,), FAILED, slack_cents=-1),
        Path("item_gone", (BACK,), FAILED, gone_from=0),
        Path("refused", (LINK,), FAILED, _said("refused_item")),
        Path("fails_after_accept", (NODE,), FAILED, _said("fails_after_accept")),
        Path("cancelled", (BACK,), frozenset({"cancelled", "failed"}), _said("cancelled")),
        Path("expired", (NODE,), frozenset({"expired"}), _said("expired")),
        Path("reversed", (NODE,), frozenset({"reversed"}), _said("reversed")),
        Path("rolled_back", (BACK,), frozenset({"reversed"}), _said("rollback_user")),
        Path(
            "erased",
            (LINK,),
            FAILED,
            _said("refused_item"),
            settings={"erase_after_days": 0},
            is_erased=True,
        ),
        # Outcomes that stay unknown for a while
        Path("replayed", (NODE,), DELIVERED, strikes=_LOST_AFTER),
        Path("replayed_lost", (NODE,), DELIVERED, strikes=_LOST_BEFORE),
        Path("looked_up", (BACK,), DELIVERED, strikes=_LOST_AFTER),
        Path("looked_up_replayed", (BACK,), DELIVERED, strikes=_LOST_BEFORE),
        Path("looked_up_only", (LINK,), DELIVERED, strikes=_LOST_AFTER),
        Path("torn", (NODE,), DELIVERED, strikes={"reset_after": 2}),
        Path(
            "left_to_a_person",
            (LINK,),
            FAILED,
            strikes=_LOST_BEFORE,
            finding=Resolution.NOT_FOUND,
        ),
        Path(
            "cancelled_by_a_person",
            (LINK,),
            frozenset({"cancelled"}),
            strikes=_LOST_BEFORE,
            finding=Resolution.CANCELLED,
        ),
        Path(
            "found_by_a_person",
            (LINK,),
            DELIVERED,
            _said("delivered", hidden_s=900.0),
            strikes=_LOST_AFTER,
            finding=Resolution.FOUND,
        ),
        # Money
        Path(
            "topped_up",
            (NODE,),
            DELIVERED,
            balance_cents=1,
            top_up_after_s=30.0,
            settings={"await_funds_s": 900},
        ),
        Path("never_funded", (NODE,), FAILED, balance_cents=1),
        Path(
            "too_late",
            (NODE,),
            FAILED,
            balance_cents=1,
            settings={"await_funds_s": 900, "submit_within_s": 40},
        ),
        # Routes
        Path(
            "failover",
            (LINK, NODE),
            DELIVERED,
            (SCENARIOS["refused_item"], SCENARIOS["delivered"]),
            # A refusal that nobody read is looked up, as a purchase that failed: that is an end.
            after_deaths=FAILED,
        ),
        Path("failover_down", (BACK, NODE), DELIVERED, is_down=True, orders=4, apart_s=1.0),
        Path("failover_paused", (NODE, BACK), DELIVERED, strikes={"denied": 1}),
        Path("failover_item", (BACK, LINK), DELIVERED, gone_from=0),
        Path("restored", (LINK, NODE), DELIVERED, **_RESTORED),
        Path(
            "restored_untold",
            (NODE, BACK),
            DELIVERED,
            _said("delivered", hidden_s=25.0),
            **_RESTORED,
        ),
        Path("not_reached", (NODE,), DELIVERED, strikes={"not_reached": 1}),
        Path("held_back", (NODE,), DELIVERED, strikes={"not_reached": 14}),
    )
}
