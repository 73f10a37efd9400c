"""What every row gets: the servers, how much to do, and where to put what it found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.results import Goal, Results, Row
from benchmarks.servers import Broker, Servers


@dataclass(frozen=True)
class Scale:
    """How much is done; the bare numbers are counts, of orders where nothing else is said."""

    name: str
    rounds: int = 5
    burst: int = 1000
    small_burst: int = 500  # in which requests are counted
    peers: int = 150
    noop: int = 600
    large_catalog: int = 20_000
    large_peers: int = 40
    batch_sizes: tuple[int, ...] = (1, 16, 64, 128, 256)
    light: int = 100
    intake: int = 2000
    catalog: int = 34_500
    small_table: int = 10_000
    large_table: int = 500_000
    due: tuple[int, ...] = (100, 1000)
    polls: int = 1000
    webhooks: int = 300  # a round, at 100 a second
    memory: tuple[int, int] = (2_000, 10_000)
    scaling: tuple[int, ...] = (1, 2)
    #: For each worker.
    scaling_burst: int = 900
    accounts: tuple[int, ...] = (1, 4)
    account_burst: int = 128  # for each account
    life: tuple[int, ...] = (12,)  # orders a second
    life_s: float = 4.0  # a round
    profile: int = 3000


QUICK = Scale(
    name="quick", rounds=1, burst=60, small_burst=60, peers=10, noop=20, large_catalog=4000,
    large_peers=5, batch_sizes=(16, 64), light=10, intake=60, catalog=4000, small_table=1000,
    large_table=5000, due=(50,), polls=60, webhooks=50, memory=(60, 120), scaling=(1, 2),
    scaling_burst=60, profile=300, accounts=(1, 2), account_burst=10, life=(5,), life_s=1.0,
)  # fmt: skip
NORMAL = Scale(name="bench")
LONG = Scale(
    name="long", large_table=5_000_000, memory=(2_000, 200_000), scaling=(1, 2, 4),
    accounts=(1, 2, 4, 8), account_burst=512, life=(12, 36), life_s=20.0,
)  # fmt: skip


@dataclass
class Bench:
    """One run."""

    servers: Servers
    scale: Scale
    results: Results
    #: Is told what is being measured.
    say: Callable[[str], None] = field(default=lambda _: None)
    prices: Path | None = None
    #: Before the first row: later on it is mostly the benchmark's own.
    _load: float = field(default_factory=machine.load)

    def begin(self, what: str) -> None:
        """Name what comes now."""
        self.say(what)

    def brokers(self) -> list[Broker]:
        found = [self.servers.broker(name) for name in ("redis", "rabbitmq")]
        return [broker for broker in found if broker is not None]

    def record(
        self,
        key: str,
        title: str,
        unit: str,
        figures: Sequence[float],
        baseline_name: str = "",
        baselines: Sequence[float] = (),
        goal: Goal | None = None,
        note: str = "",
    ) -> None:
        """Keep a row."""
        self.results.rows[key] = Row(
            key, title, unit, list(figures), baseline_name, list(baselines), goal, note,
            round(self._load, 2), self.scale.name,
        )  # fmt: skip

    def keep(self, name: str, values: Any) -> None:
        """Keep what a plot or a table is made of."""
        self.results.series[name] = values

    def keep_parts(self, what: str, parts: dict[str, list[float]]) -> None:
        """Keep what one thing costs each part, CPU in milliseconds, the median of the rounds."""
        known = self.results.series.setdefault("parts", {})
        known[what] = {part: median(values) for part, values in parts.items()}


def add(parts: dict[str, list[float]], found: dict[str, float]) -> None:
    """Add one round's costs by part."""
    for part, spent in found.items():
        parts.setdefault(part, []).append(spent)
