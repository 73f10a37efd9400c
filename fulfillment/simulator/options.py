"""What a simulator run is told at start, and which of it may be switched while it runs."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from fulfillment.settings import DEFAULT_ACCOUNT, Settings
from fulfillment.simulator.scenarios import SCENARIOS

DAY_S = 86_400.0
# How long a delivered item can still be taken back, where the contract knows of it.
HOLD_S = {"skinsnode": 0.0, "skinsback": 8 * DAY_S, "skinslink": 7 * DAY_S}
# Requests a minute where the contract names a limit.
LIMITS = {"skinsback": 500}


@dataclass(frozen=True, kw_only=True)
class SimulatorOptions:
    """Durations named `_s` are virtual seconds (real time x `speed`) unless marked real.

    What a comment marks with a provider's name is heeded by that dialect only.
    """

    provider: Literal["skinsnode", "skinsback", "skinslink"] = "skinsnode"
    client_id: str
    client_secret: str = field(repr=False)
    api_key: str = field(default="sim-api-key", repr=False)  # Skinslink
    path: str = ""  # what stands before the provider's own paths, where one process plays several
    host: str = "127.0.0.1"
    port: int = 8090  # 0 takes a free one
    balance_cents: int = 1_000_000
    items: int = 2_000
    prices_file: Path | None = None
    three_decimals: bool = False  # prices that are no whole cents
    seed: int = 1
    speed: float = 1.0
    latency_s: float = 0.0  # real, before each answer of the provider's API
    window_s: float = 600.0
    hold_s: float | None = None  # None: as in HOLD_S
    reads_cached_s: float = 30.0  # SkinsNode
    cache_missing_orders: bool = True  # SkinsNode
    reusable_items: bool = False
    debits_at: Literal["accept", "final"] = "accept"
    replay_conflict: Literal["stored", "refused"] = "stored"  # SkinsNode: other content, same id
    repeated_id: Literal["stored", "conflict", "failed"] = "stored"  # Skinslink
    refusals_burn_id: bool | None = None  # None: Skinslink keeps the refused purchase
    requests_per_minute: int | None = None  # None: as in LIMITS; 0: no limit
    limit_block_s: float = 10.0  # real, how long the limit's overstepping is answered with a no
    unknown_ids: Literal["omitted", "error"] = "omitted"  # SkinsBack: lookups by several ids
    numbers: Literal["mixed", "strings", "numbers"] = "mixed"  # SkinsBack: how they are written
    search_matches: Literal["substring", "exact"] = "substring"  # SkinsBack
    buy_echoes_custom_id: bool = False  # SkinsBack
    old_currency: bool = False  # SkinsBack: `balance` and the debited sum in roubles
    hold_flag_stays: bool = False  # SkinsBack: `in_hold` is not taken back when the hold ends
    pushes_rollbacks: bool = True  # SkinsBack
    pushes_balance: bool = False  # SkinsBack: a `balance_change` event beside each `buy_item`
    site: Literal["available", "site_off", "no_bots"] = "available"  # SkinsBack: `status`
    declined_word: Literal["canceled", "failed"] = "canceled"  # Skinslink
    dates: Literal["z", "offset"] = "z"  # Skinslink: how times are written
    list_pages: int = 16  # Skinslink: pages of the full list
    webhook_url: str | None = None  # SkinsBack, Skinslink: one for the whole account
    default_scenario: str = "delivered"
    ledger_file: Path | None = None
    webhook_timeout_s: float = 10.0  # real
    webhook_attempts: int = 10
    webhook_concurrency: int = 64
    clock_offset_s: float = 0.0  # real, added to every time the provider writes

    def __post_init__(self) -> None:
        if self.default_scenario not in SCENARIOS:
            found = repr(self.default_scenario)
            raise ValueError(f"default_scenario: expected a name of the table, found {found}")
        if not 0 < self.speed < math.inf:
            raise ValueError(f"speed: expected a number above 0, found {self.speed}")
        if self.hold_s is not None and not 0 <= self.hold_s < math.inf:
            raise ValueError(f"hold_s: expected 0 or more, found {self.hold_s}")
        if self.provider not in HOLD_S:
            raise ValueError(
                f"provider: expected one of {', '.join(HOLD_S)}, found {self.provider!r}"
            )
        if self.list_pages < 1:
            raise ValueError(f"list_pages: expected 1 or more, found {self.list_pages}")

    @property
    def hold_duration_s(self) -> float:
        return HOLD_S[self.provider] if self.hold_s is None else self.hold_s

    @property
    def limit_per_minute(self) -> int:
        given = self.requests_per_minute
        return LIMITS.get(self.provider, 0) if given is None else given

    def switched(self, changes: dict[str, Any]) -> "SimulatorOptions":
        """Give the options with some switches changed; raise ValueError naming a wrong one."""
        for name in changes:
            if name not in SWITCHES:
                raise ValueError(f"expected one of {', '.join(sorted(SWITCHES))}, found {name!r}")
        merged = {**asdict(self), **changes}
        return msgspec.convert(merged, SimulatorOptions, dec_hook=lambda kind, value: kind(value))

    def switches(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in sorted(SWITCHES)}


# The documented facts (identity, secret) and what is already built (catalog, address) stay.
FIXED = (
    *("provider", "client_id", "client_secret", "api_key", "path", "host", "port"),
    *("balance_cents", "items", "prices_file", "three_decimals", "seed", "speed"),
    *("clock_offset_s", "ledger_file", "webhook_concurrency"),
)
SWITCHES = frozenset(each.name for each in fields(SimulatorOptions)).difference(FIXED)


def path_of(account: str) -> str:
    """Say below which path a process that plays all accounts plays this one."""
    return "" if account == DEFAULT_ACCOUNT else f"/{account}"


def for_accounts(settings: Settings, **common: Any) -> list[SimulatorOptions]:
    """Play the provider of every account, each with its own wallet, below `path_of` its name.

    Raises ConfigurationError where no account is configured.
    """
    settings.require("accounts")
    return [
        SimulatorOptions(
            provider=account.provider.value,
            path=path_of(name),
            client_id=account.client_id,
            client_secret=account.client_secret.get_secret_value(),
            api_key=account.api_key.get_secret_value() if account.api_key else "",
            webhook_url=f"{settings.webhook_base_url}/webhooks/{name}",
            **common,
        )
        for name, account in settings.accounts.items()
    ]
