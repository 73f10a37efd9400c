"""What a seed stands for: accounts, checkouts, settings and the kinds of faults, drawn once."""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fulfillment.simulator import scenarios
from fulfillment.simulator.options import DAY_S, SimulatorOptions
from fulfillment.simulator.scenarios import Scenario
from schemas.enums import ProviderName
from tests.faults.kinds import KINDS, UPHEAVALS

#: What an order names that may be bought at any account.
ROUTE = "any"
PUBLIC_URL = "http://store"
SECRET = "cs_sim_4e1d"
API_KEY = "ak_sim_9c2b"
CLIENT_ID = "client_sim"
#: So many kinds does a seed draw.
FEWEST_KINDS, MOST_KINDS = 6, 10

BAD_ENDS = (
    "fails_after_accept",
    "price_changes_after_accept",
    "funds_fail_after_accept",
    "unknown_failure",
    "cancelled",
    "declined",
    "expired",
    "trade_not_created",
)
FIRST = ("webhook_before_answer", "completed_before_answer")
UNDONE = ("reversed", "rollback_supplier")
QUIET = ("accepted", "queued", "processing", "pending")
NEVER = ("stuck", "never_delivered_offline")


@dataclass(frozen=True)
class PlannedOrder:
    """One checkout of the store, when it comes, and what the provider will do with it."""

    external_id: str
    account: str
    item: int
    at: float
    scenario: Scenario
    kind: str | None  # the kind of fault that the scenario stands for
    slack_cents: int  # how far the agreed price lies above the catalog's
    copies: tuple[float, ...] = ()  # when the same event comes again
    is_changed_later: bool = False  # another event under the same id comes afterwards


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first step."""

    seed: int
    kinds: tuple[str, ...]
    accounts: dict[str, dict[str, Any]]
    options: dict[str, SimulatorOptions]
    orders: tuple[PlannedOrder, ...]
    settings: dict[str, Any]
    faults_until: float
    worker_slots: tuple[int, ...]
    tick_s: float
    is_tight: bool = field(default=False)


def draw(seed: int, kinds: tuple[str, ...] | None = None, orders: int | None = None) -> Plan:
    """Draw the plan of a seed; `kinds` and `orders` override what it would draw."""
    source = random.Random(seed)
    some = source.sample(sorted(set(KINDS) - UPHEAVALS), source.randint(FEWEST_KINDS, MOST_KINDS))
    chosen = tuple(sorted([*some, *_upheavals(seed)])) if kinds is None else kinds
    names = source.sample(list(ProviderName), source.choice((1, 1, 2, 3)))
    is_tight = source.random() < 0.3
    count = orders or source.randint(20, 22)
    accounts: dict[str, dict[str, Any]] = {}
    options: dict[str, SimulatorOptions] = {}
    for place, provider in enumerate(names):
        name = "main" if place == 0 else provider.value
        accounts[name], options[name] = _account(
            source, provider, name, seed, is_tight, count, "rows_lost" in chosen
        )
    span_s = source.choice((0.0, 20.0, 120.0))
    # Every other order may be bought wherever it can be, in the order of the accounts.
    named = [*accounts, *[ROUTE] * len(accounts)] if len(accounts) > 1 else list(accounts)
    return Plan(
        seed=seed,
        kinds=chosen,
        accounts=accounts,
        options=options,
        orders=tuple(_order(source, n, named, chosen, span_s) for n in range(count)),
        settings={
            "batch_limit": source.choice((4, 16, 64)),
            "claim_lease_s": source.choice((10, 30)),
            "await_funds_s": source.choice((60, 120, 300)),
            "stalled_after_s": 7200,  # no fault lasts as long; a run does
            "routes": {ROUTE: tuple(accounts)} if len(accounts) > 1 else {},
        },
        faults_until=span_s + source.uniform(60, 180),
        worker_slots=tuple(source.choice((1, 2, 4)) for _ in range(source.choice((1, 2, 2)))),
        tick_s=source.choice((10.0, 20.0, 40.0)),
        is_tight=is_tight,
    )


def _upheavals(seed: int) -> list[str]:
    """Draw them with dice of their own; an account that is gone is not asked for lost purchases."""
    source = random.Random(f"upheavals {seed}")
    found = ["stopped"] if source.random() < 0.2 else []
    drawn = source.random()
    return found + (["rows_lost"] if drawn < 0.2 else ["settings_changed"] if drawn < 0.4 else [])


def _account(
    source: random.Random,
    provider: ProviderName,
    name: str,
    seed: int,
    is_tight: bool,
    count: int,
    is_lossy: bool,
) -> tuple[dict[str, Any], SimulatorOptions]:
    ways: tuple[Literal["accept", "final"], ...] = ("accept", "accept", "final")
    debits_at = source.choice(ways)
    rate = source.choice((None, None, 120))
    account: dict[str, Any] = {
        "provider": provider.value,
        "base_url": {
            ProviderName.SKINSNODE: "http://provider",
            ProviderName.SKINSBACK: "http://provider/api.php",
            ProviderName.SKINSLINK: "http://provider/api/v1",
        }[provider],
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "api_key": API_KEY,
        "debits_at": debits_at,
        "rate_per_minute": rate,
        "slippage_cents": source.choice((0, 0, 25)),
        "max_submits_in_flight": source.choice((2, 32)),
        "on_insufficient_funds": source.choice(("wait", "wait", "fail")),
        "check_recipient": seed % 3 == 0,
    }
    return account, SimulatorOptions(
        provider=provider.value,
        client_id=CLIENT_ID,
        client_secret=SECRET,
        api_key=API_KEY,
        items=30,
        seed=seed,
        balance_cents=source.randint(200, 1500) * count if is_tight else 100_000_000,
        three_decimals=provider is ProviderName.SKINSLINK and source.random() < 0.5,
        # What is undone is undone while it is protected; SkinsNode tells of no protection.
        hold_s=0.0 if provider is ProviderName.SKINSNODE else source.choice((300.0, 7 * DAY_S)),
        # After a loss of rows what was sold is gone, so that who looks for nothing buys elsewhere.
        reusable_items=source.random() < 0.8 and not is_lossy,
        debits_at=debits_at,
        requests_per_minute=rate,
        unknown_ids=source.choice(("omitted", "error")),
        numbers=source.choice(("mixed", "strings", "numbers")),
        cache_missing_orders=source.random() < 0.7,
        buy_echoes_custom_id=source.random() < 0.5,
        hold_flag_stays=source.random() < 0.3,
        webhook_url=f"{PUBLIC_URL}/webhooks/{name}",
    )


def _order(
    source: random.Random, number: int, accounts: list[str], kinds: tuple[str, ...], span_s: float
) -> PlannedOrder:
    at = span_s * source.choice((0.0, 0.0, 0.3, 0.5, 1.0)) + source.choice(
        (0.0, 0.0, source.random())
    )
    drawn = source.random()
    scenario, kind = scenarios.SCENARIOS["delivered"], None
    for name, among in (
        ("ends_badly", BAD_ENDS),
        ("webhook_first", FIRST),
        ("undone", UNDONE),
        ("never_ends", NEVER),
    ):
        if name in kinds and kind is None:
            drawn -= 0.25 if name != "never_ends" else 0.08
            if drawn < 0:
                scenario, kind = scenarios.SCENARIOS[source.choice(among)], name
    if "stale_lookup" in kinds and kind is None and source.random() < 0.4:
        scenario, kind = replace(scenario, hidden_s=25.0), "stale_lookup"
    # Some orders are told of step by step, most only at their end, some never.
    told = source.choice(((), QUIET, QUIET, QUIET, ("*",)))
    forged = ("key", "body", "garbage") if "webhook_forged" in kinds else ()
    if forged or not scenario.called_back_first:
        plan = replace(scenario.webhooks, lost=told, forgeries=forged)
        scenario = replace(scenario, webhooks=plan)
    return PlannedOrder(
        external_id=f"order-{number:02d}",
        account=source.choice(accounts),
        item=source.randrange(30),
        at=at,
        scenario=scenario,
        kind=kind,
        slack_cents=source.choice((0, 0, 0, 5, -1 if source.random() < 0.2 else 10)),
        copies=tuple(at + source.uniform(0, 60) for _ in range(source.random() < 0.15)),
        is_changed_later=source.random() < 0.05,
    )
