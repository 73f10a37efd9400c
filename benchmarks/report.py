"""Write docs/benchmarks.md from the results; the plots beside it are made by `plots`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, plots
from benchmarks.results import Results, Row, percentile

DOCS = Path(__file__).parents[1] / "docs"
#: Measured on a machine that was busy otherwise, a figure says little; the ratios say more.
QUIET_LOAD = 2.0

ORDER = (
    *("burst", "requests", "cpu", "flower", "light", "intake", "catalog", "tick", "polls"),
    *("webhooks", "memory", "scaling", "accounts", "life"),
)

HEAD = """# Benchmarks

Written by `make bench` (`make bench-long` for the rows marked *long*); do not edit by hand.
Each row compares the product with a baseline that ran in turns with it, on the same servers and
against the same simulated provider (20 ms an answer, 2,000 items, where nothing else is said).
Figures are medians over the rounds, a ratio is the median of the rounds' ratios. Every row that
buys ends by comparing the provider's ledger with our tables; PostgreSQL runs with `fsync` on. The
product runs as `fulfillment up` does but with `BATCH_LIMIT=256` instead of the default of 64: the
plot of batch sizes shows what that changes.

The work of one order, in the product and in the baselines: persist the checkout, refresh the
catalog, read the wallet, POST the order, persist accepted and one history row, each step resumable
by the engine. The product also does what it must do beside that: event log, hold ledger, outbox,
sealed trade URLs, leases, metrics. The baselines are in `benchmarks/baselines/`.
"""


def cells(row: Row) -> list[str]:
    """Give figure, baseline, ratio, goal and verdict as text."""
    return [
        number(row.figure),
        f"{number(row.baseline)} ({row.baseline_name})" if row.baseline is not None else "",
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        str(row.goal or ""),
        {None: "", True: "yes", False: "no"}[row.is_met],
    ]


def number(value: float | None) -> str:
    """Write a number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(results: Results) -> None:
    """Write the report and its plots from all rows that were ever measured here."""
    parts = [
        HEAD,
        *_state(results),
        *_goals(results),
        *_plots(results),
        *_steps(results),
        *_profile(results),
    ]
    notes = DOCS / "benchmarks"
    if (tried := notes / "tried.md").exists():
        parts.append(tried.read_text())
    (DOCS / "benchmarks.md").write_text("\n".join(parts).rstrip() + "\n")


def _state(results: Results) -> list[str]:
    about = ", ".join(f"{name} {value}" for name, value in machine.describe().items())
    lines = [f"Written {datetime.now(UTC):%Y-%m-%d} on: {about}.", ""]
    loads = [row.load for row in results.rows.values()]
    if loads and max(loads) > QUIET_LOAD:
        lines += [
            "> **Provisional.** The machine did other work just before or at the same time (load "
            f"average before the run {min(loads):.1f} to {max(loads):.1f}). "
            "Rates are too low, latencies and wall times too high; CPU times hold better.",
            "",
        ]
    return lines


def _goals(results: Results) -> list[str]:
    lines = [
        "## Figures and goals",
        "",
        "| what | product | baseline | ratio (range over rounds) | goal | met | load before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(results.rows.values(), key=lambda r: ORDER.index(r.key.partition("-")[0])):
        figure, baseline, ratio, goal, met = cells(row)
        if row.baselines:
            ratios = [a / b for a, b in zip(row.figures, row.baselines, strict=True)]
            ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        title = row.title + (" *(long)*" if row.scale == "long" else "")
        note = f"; {row.note}" if row.note else ""
        lines.append(
            f"| {title}{note} | {figure} {row.unit} | {baseline} | {ratio} | {goal} "
            f"| {met} | {row.load:.1f} |"
        )
    lines.append("")
    if found := results.series.get("parts"):
        parts = list(dict.fromkeys(part for costs in found.values() for part in costs))
        lines += [
            "## CPU by part, in milliseconds",
            "",
            f"| what | {' | '.join(parts)} | all |",
            "| --- |" + " ---: |" * (len(parts) + 1),
        ]
        for what, costs in found.items():
            shown = [f"{costs[part]:.2f}" if part in costs else "" for part in parts]
            lines.append(f"| {what} | {' | '.join(shown)} | {sum(costs.values()):.2f} |")
        lines.append("")
    if webhooks := results.series.get("webhooks"):
        each = "; ".join(
            f"{name}: p50 {percentile(v, 0.5):.1f}, p99 {percentile(v, 0.99):.1f} ms"
            for name, v in webhooks.items()
        )
        lines += [f"Webhooks over all rounds, {each}.", ""]
    return lines


def _plots(results: Results) -> list[str]:
    made = plots.draw(results, DOCS / "benchmarks")
    lines = ["## Plots", ""] if made else []
    for file, title in made:
        lines += [f"![{title}](benchmarks/{file})", ""]
    return lines


def _steps(results: Results) -> list[str]:
    found = results.series.get("steps")
    if not found:
        return []
    sizes = sorted({size for size, *_ in found})
    names = list(dict.fromkeys(name for _, name, *_ in found))
    cost = {(size, name): rest for size, name, *rest in found}
    lines = [
        "## What each step costs",
        "",
        "Each step alone in one process, provider without latency, no broker: CPU of the process "
        "in microseconds an order, and in brackets the statements and transactions of the whole "
        "batch. PostgreSQL's CPU is not in it.",
        "",
        "| step | " + " | ".join(f"batch of {size}" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for name in names:
        each = [cost[size, name] for size in sizes]
        shown = [
            f"{ms * 1000 / size:,.0f} ({statements}, {transactions})"
            for size, (ms, statements, transactions) in zip(sizes, each, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    totals = [sum(cost[size, name][0] for name in names) * 1000 / size for size in sizes]
    lines += [f"| **all** | {' | '.join(f'{total:,.0f}' for total in totals)} |", ""]
    if storage := results.series.get("storage"):
        each_table = ", ".join(f"{name} {size:,.0f}" for name, size in storage.items())
        lines += [f"Bytes an order with its indexes, up to the accept: {each_table}.", ""]
    return lines


def _profile(results: Results) -> list[str]:
    profile = results.series.get("profile")
    if not profile:
        return []
    lines = [
        "## Where the time of an order goes",
        "",
        f"A burst of {profile['orders']:,} orders on Redis while py-spy samples every process "
        f"({profile['rate']:.0f} orders/s while sampled). CPU by part, ms an order: "
        + ", ".join(f"{name} {spent:.2f}" for name, spent in profile["parts"].items())
        + ". Below, microseconds an order by samples on the CPU; a thread that waits for the "
        "interpreter's lock counts as being on the CPU, so sums exceed the CPU times.",
        "",
    ]
    titles = {
        "library": "By library (innermost frame)",
        "innermost": "By our innermost function on the stack",
        "inclusive": "By our function, all that it calls included",
    }
    for process, tables in profile["processes"].items():
        for kind, title in titles.items():
            lines += [f"### {process}: {title.lower()}", "", "| | µs an order |", "| --- | ---: |"]
            lines += [f"| `{name}` | {spent:.0f} |" for name, spent in _large(tables[kind])]
            lines.append("")
    return lines


def _large(rows: list[list[Any]]) -> list[list[Any]]:
    return [row for row in rows if row[1] >= 0.01 * rows[0][1]]
