"""`python -m benchmarks.run`: measure, and write docs/benchmarks.md from all that is known."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import (
    burst,
    catalog,
    growth,
    intake,
    life,
    light,
    profile,
    reconcile,
    report,
    steps,
    webhooks,
)
from benchmarks.bench import LONG, NORMAL, QUICK, Bench
from benchmarks.results import Results, Row
from benchmarks.servers import Servers
from fulfillment import log
from fulfillment.errors import FulfillmentError
from fulfillment.settings import PREFIX

ROWS: dict[str, Callable[[Bench], None]] = {
    # Before the bursts, whose data the disk is still writing back afterwards.
    "light": light.measure,
    "burst": burst.measure,
    "large-catalog": burst.measure_large_catalog,
    "batch-sizes": burst.measure_batch_sizes,
    "flower": burst.measure_flower,
    "intake": intake.measure,
    "catalog": catalog.measure,
    "table": reconcile.measure_table,
    "polls": reconcile.measure_polls,
    "webhooks": webhooks.measure,
    "memory": growth.measure_memory,
    "scaling": growth.measure_scaling,
    "accounts": growth.measure_accounts,
    "life": life.measure,
    "steps": steps.measure,
    "profile": profile.measure,
}


def main() -> int:
    """Run the chosen rows; exit 1 when one could not be measured."""
    options = _options()
    # The settings of a person's own deployment have no place here.
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scale = QUICK if options.quick else LONG if options.long else NORMAL
    data_dir = options.data_dir.absolute()
    file = data_dir / ("quick.json" if options.quick else "results.json")
    results = Results() if options.quick else Results.load(file)
    if options.render:
        report.write(results)
        return 0
    console = Console()
    data_dir.mkdir(parents=True, exist_ok=True)
    # What runs in this process logs as a worker does: every line formatted, into a file.
    with redirect_stderr((data_dir / "bench.log").open("w")):
        log.configure("INFO")
    failed = []
    began = time.monotonic()
    columns = (BarColumn(20), "{task.completed}/{task.total}", TimeElapsedColumn())
    text = TextColumn("{task.description}")
    with (
        Servers(data_dir) as servers,
        Progress(*columns, text, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("starting", total=len(options.only))

        def say(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                console.print(f"{time.monotonic() - began:6.0f} s  {what}", highlight=False)

        bench = Bench(servers, scale, results, say, options.prices)
        for name in options.only:
            before = dict(results.rows)
            try:
                ROWS[name](bench)
            except (RuntimeError, OSError, FulfillmentError) as error:
                failed.append(name)
                console.print(f"{name}: {error}", style="red", markup=False)
            results.save(file)
            progress.advance(task)
            changed = [row for key, row in results.rows.items() if before.get(key) is not row]
            if changed:
                console.print(_table(changed))
    if not options.quick:
        report.write(results)
    console.print(f"{len(options.only)} rows in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW",
                        help=f"only these: {', '.join(ROWS)}")  # fmt: skip
    parser.add_argument("--render", action="store_true", help="only write the report anew")
    parser.add_argument("--quick", action="store_true", help="tiny numbers, no report")
    parser.add_argument("--long", action="store_true", help="5 million rows, 200,000 orders")
    parser.add_argument("--data-dir", type=Path, default=Path(".fulfillment/bench"))
    parser.add_argument("--prices", type=Path, help="a price file for the large catalog")
    return parser.parse_args()


def _table(rows: list[Row]) -> Table:
    table = Table("row", "figure", "baseline", "ratio", "goal", "met", box=None)
    for row in rows:
        table.add_row(f"{row.title} ({row.unit})", *report.cells(row))
    return table


if __name__ == "__main__":
    sys.exit(main())
