"""The plots of docs/benchmarks.md, each left out while what it shows was not measured."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.results import Results

NAMES = {
    "product": "product",
    "celery_chain": "plain Celery\nchain",
    "dramatiq_pipeline": "Dramatiq\npipeline",
    "noop_chain": "no-op Celery\nchain of four",
}
DPI = 110


def draw(results: Results, directory: Path) -> list[tuple[str, str]]:
    """Write the PNG files; give name and title of each."""
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for name, (title, paint) in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7.2, 3.8))
        if paint(axes, results.series):
            axes.set_title(title, fontsize=11)
            axes.grid(visible=True, alpha=0.3)
            figure.tight_layout()
            figure.savefig(directory / f"{name}.png", dpi=DPI)
            made.append((f"{name}.png", title))
        plt.close(figure)
    return made


def _throughput(axes: Axes, series: dict[str, Any]) -> bool:
    brokers = [name for name in ("redis", "rabbitmq") if f"rates-{name}" in series]
    for place, broker in enumerate(brokers):
        rates = series[f"rates-{broker}"]
        heights = [median(rates[name]) for name in NAMES]
        at = [x + 0.38 * (place - 0.5) for x in range(len(NAMES))]
        bars = axes.bar(at, heights, 0.36, label=broker)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()), fontsize=8)
    axes.set_ylabel("orders/s")
    if brokers:
        axes.legend()
    return bool(brokers)


def _latency(axes: Axes, series: dict[str, Any]) -> bool:
    found = False
    for broker in ("redis", "rabbitmq"):
        for name, values in series.get(f"light-{broker}", {}).items():
            found = True
            ordered = sorted(values)
            shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
            axes.plot(ordered, shares, label=f"{name}, {broker}")
    axes.axvline(60, color="grey", linestyle=":", label="3 x 20 ms")
    axes.set_xlim(left=0)
    axes.set_xlabel("ms from checkout to accepted, 5 orders/s")
    axes.set_ylabel("share of orders")
    axes.legend(fontsize=8)
    return found


def _batch_size(axes: Axes, series: dict[str, Any]) -> bool:
    found = series.get("batch-sizes", [])
    sizes = [size for size, _, _ in found]
    axes.plot(sizes, [spent for _, _, spent in found], "o-", color="tab:red")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch limit")
    axes.set_ylabel("CPU of all parts, ms an order", color="tab:red")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.plot(sizes, [rate for _, rate, _ in found], "s--", color="tab:blue")
    right.set_ylabel("orders/s", color="tab:blue")
    right.set_ylim(bottom=0)
    return bool(found)


def _ticks(axes: Axes, series: dict[str, Any]) -> bool:
    found = series.get("ticks", [])
    for count in sorted({count for _, count, _ in found}):
        points = sorted((size, median(spent)) for size, n, spent in found if n == count)
        axes.plot(*zip(*points, strict=True), "o-", label=f"{count:,} due")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("orders in the table")
    axes.set_ylabel("ms a tick")
    if found:
        axes.legend()
    return bool(found)


def _scaling(axes: Axes, series: dict[str, Any]) -> bool:
    return _rates(axes, series.get("scaling", []), "worker processes, provider at 200 ms")


def _accounts(axes: Axes, series: dict[str, Any]) -> bool:
    return _rates(axes, series.get("accounts", []), "accounts, each provider at 500 ms")


def _rates(axes: Axes, found: list[Any], what: str) -> bool:
    numbers = [number for number, _ in found]
    rates = [median(values) for _, values in found]
    if found:
        axes.plot(numbers, rates, "o-", label="measured")
        axes.plot(numbers, [rates[0] * n / numbers[0] for n in numbers], ":", label="linear")
        axes.set_xticks(numbers)
        axes.legend()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(what)
    axes.set_ylabel("orders/s")
    return len(found) > 1


PLOTS: dict[str, tuple[str, Callable[[Axes, dict[str, Any]], bool]]] = {
    "throughput": ("Burst throughput against peers", _throughput),
    "latency": ("Latency under light load", _latency),
    "batch-size": ("Cost of an order against the size of batches", _batch_size),
    "ticks": ("Cost of a reconcile tick against the size of the table", _ticks),
    "scaling": ("Scaling over worker processes", _scaling),
    "accounts": ("Scaling over accounts", _accounts),
}
