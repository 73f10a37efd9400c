"""What a row found: figure, baseline and ratio round by round, kept as JSON between runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A bound for a ratio (or for the figure itself, where there is no baseline)."""

    bound: float
    is_least: bool = True

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of the report: figures of the product and of its baseline, one pair a round."""

    key: str
    title: str
    unit: str
    figures: list[float]
    baseline_name: str = ""
    baselines: list[float] = field(default_factory=list)
    goal: Goal | None = None
    note: str = ""
    load: float = 0.0
    scale: str = ""

    @property
    def figure(self) -> float:
        return median(self.figures)

    @property
    def baseline(self) -> float | None:
        return median(self.baselines) if self.baselines else None

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios: what the machine did in between cancels out."""
        pairs = zip(self.figures, self.baselines, strict=True) if self.baselines else ()
        return median([figure / baseline for figure, baseline in pairs]) if self.baselines else None

    @property
    def is_met(self) -> bool | None:
        if self.goal is None:
            return None
        ratio = self.ratio
        return self.goal.is_met_by(self.figure if ratio is None else ratio)


@dataclass
class Results:
    """All rows measured so far, and what the plots and tables beside them need."""

    rows: dict[str, Row] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Results":
        if not path.exists():
            return cls()
        found = json.loads(path.read_text())
        rows = {key: _row(values) for key, values in found["rows"].items()}
        return cls(rows, found["series"])


def _row(values: dict[str, Any]) -> Row:
    goal = values.pop("goal")
    return Row(**values, goal=Goal(**goal) if goal else None)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value that `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
