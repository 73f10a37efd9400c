"""What a simulator run is told at start, and which of it may be switched while it runs."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from fulfillment.simulator.scenarios import SCENARIOS


@dataclass(frozen=True, kw_only=True)
class SimulatorOptions:
    """Durations named `_s` are virtual seconds (real time x `speed`) unless marked real."""

    client_id: str
    client_secret: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8090  # 0 takes a free one
    balance_cents: int = 1_000_000
    items: int = 2_000
    prices_file: Path | None = None
    seed: int = 1
    speed: float = 1.0
    latency_s: float = 0.0  # real, before each answer under /v1
    window_s: float = 600.0
    reads_cached_s: float = 30.0
    cache_missing_orders: bool = True
    reusable_items: bool = False
    debits_at: Literal["accept", "final"] = "accept"
    replay_conflict: Literal["stored", "refused"] = "stored"
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
        if self.speed <= 0:
            raise ValueError(f"speed: expected a number above 0, found {self.speed}")

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
SWITCHES = frozenset(
    each.name
    for each in fields(SimulatorOptions)
    if each.name
    not in {"client_id", "client_secret", "host", "port", "balance_cents", "items", "prices_file"}
    and each.name not in {"seed", "speed", "clock_offset_s", "ledger_file", "webhook_concurrency"}
)
