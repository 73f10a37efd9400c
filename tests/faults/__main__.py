"""`make faults`: run as many seeds as are asked for; what fails joins the corpus."""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fulfillment.devstack.postgres import EmbeddedPostgres
from tests.faults import paper
from tests.faults.kinds import KINDS
from tests.faults.pool import be_quiet, database_on, run_seeds
from tests.faults.run import Report, run_seed

CORPUS = Path(__file__).with_name("corpus.txt")
STATE = Path(".faults.json")
#: Seeds of long runs begin here; those below are the ones of `make test`.
FIRST = 1000
COMMIT = paper.commit()
#: What the statuses of orders stand for in tables; "-" is a fault that struck no order.
STAGES = {
    "no order": ("-",),
    "not submitted": ("received", "quoted", "awaiting_funds", "reserved"),
    "submitting": ("submitting",),
    "accepted": ("accepted", "queued", "processing", "pending"),
    "sent": ("sent",),
    "needs_review": ("needs_review",),
    "ended": ("completed", "failed", "cancelled", "expired", "reversed"),
}


@dataclass
class Tally:
    """What all seeds so far came to; kept in a file, so that a run can be resumed."""

    next_seed: int = FIRST
    #: Seeds beyond the next one that have been run already.
    ahead: list[int] = field(default_factory=list)
    clean: int = 0
    #: How many seeds were clean at which commit.
    commits: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)
    orders: int = 0
    seconds: float = 0.0
    fired: Counter[str] = field(default_factory=Counter)  # "kind status"
    ends: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        self.orders += report.orders
        self.ends.update(report.ends)
        for (kind, status), times in report.fired.items():
            self.fired[f"{kind} {status}"] += times
        if report.violations:
            self.failed.append(report.seed)
        else:
            self.clean += 1
            self.commits[COMMIT] += 1
        self.ahead.append(report.seed)
        while self.next_seed in self.ahead:
            self.ahead.remove(self.next_seed)
            self.next_seed += 1

    def save(self) -> None:
        STATE.write_text(json.dumps(vars(self)))

    @classmethod
    def load(cls) -> "Tally":
        known = cls(**json.loads(STATE.read_text()))
        for name in ("fired", "ends", "commits"):
            setattr(known, name, Counter(getattr(known, name)))
        return known

    def to_run(self, count: int) -> list[int]:
        """Give the next so many seeds that were not run."""
        seeds = (n for n in itertools.count(self.next_seed) if n not in self.ahead)
        return list(itertools.islice(seeds, count))

    @property
    def bound(self) -> float:
        """Give the failure rate that is excluded at 95 % when every seed was clean."""
        return 1 - math.pow(0.05, 1 / self.clean) if self.clean else 1.0


def corpus() -> list[int]:
    """Give the seeds that failed once."""
    lines = CORPUS.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and line[0] != "#"]


def remember(report: Report) -> None:
    """Add a failing seed to the corpus."""
    if report.seed not in corpus():
        with CORPUS.open("a") as file:
            file.write(f"{report.seed}  # {report.violations[0][:90]}\n")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Give the server that FULFILLMENT_TEST_DATABASE_URL names, or an embedded one."""
    url = os.environ.get("FULFILLMENT_TEST_DATABASE_URL")
    if url:
        yield url
        return
    home = Path(tempfile.mkdtemp(prefix="faults-"))
    postgres = EmbeddedPostgres(home)
    try:
        yield postgres.start()
    finally:
        postgres.stop()
        shutil.rmtree(home, ignore_errors=True)


def run_many(url: str, seeds: list[int], jobs: int, tally: Tally, console: Console) -> None:
    """Run seeds under a progress bar and keep the tally."""
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[failed]} failed"), console=console) as bar:
        task = bar.add_task("", total=len(seeds), failed=0)
        began, before = time.monotonic(), tally.seconds

        def take(report: Report) -> None:
            tally.add(report)
            tally.seconds = before + time.monotonic() - began
            tally.save()
            if report.violations:
                remember(report)
                show(report, console)
            bar.update(task, advance=1, failed=len(tally.failed))

        run_seeds(url, seeds, jobs, take)


def show(report: Report, console: Console) -> None:
    """Say what a seed did, and how to run it again."""
    for violation in report.violations:
        console.print(f"[red]seed {report.seed}[/red] {violation}", highlight=False)
    if report.violations:
        console.print(f"again: {report.command}", highlight=False)


def counts(tally: Tally) -> Iterator[tuple[str, list[str]]]:
    """Give how often each fault struck orders, by the stage that they were at."""
    for kind in KINDS:
        sums = (sum(tally.fired[f"{kind} {s}"] for s in stage) for stage in STAGES.values())
        yield kind, [f"{count:,}" if count else "" for count in sums]


def table(tally: Tally) -> Table:
    """Lay out which fault struck orders at which stage, how often."""
    view = Table("fault", *STAGES, title="times that a fault struck, by the order's stage")
    for kind, row in counts(tally):
        view.add_row(kind, *row)
    return view


def summary(tally: Tally) -> str:
    rate = (tally.clean + len(tally.failed)) / tally.seconds * 3600 if tally.seconds else 0
    ends = ", ".join(f"{count} {status}" for status, count in tally.ends.most_common())
    bound = f"the failure rate is below {tally.bound:.4%} at 95 %" if not tally.failed else ""
    return (
        f"{tally.clean} clean, {len(tally.failed)} failed {tally.failed or ''}; "
        f"{tally.orders} orders ({ends}); {rate:.0f} seeds an hour. {bound}\n"
        f"commits: {', '.join(f'{name} ({count})' for name, count in tally.commits.items())}"
    )


def write(tally: Tally) -> None:
    """Put what was tried into docs/reliability.md: how often each fault struck orders where."""
    ran = tally.clean + len(tally.failed)
    commits = ", ".join(f"{name} ({count:,})" for name, count in tally.commits.most_common())
    lines = [
        f"{ran:,} seeds with {tally.orders:,} orders, {len(tally.failed)} failed; clean at the "
        f"commits {commits}. How often each fault struck orders in which status:",
        "",
        f"| fault | {' | '.join(STAGES)} |",
        f"| --- |{' ---: |' * len(STAGES)}",
        *(f"| `{kind}` | {' | '.join(row)} |" for kind, row in counts(tally)),
    ]
    paper.insert("faults", "\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--seed", type=int, help="run this one only, and say what it did")
    parser.add_argument("--trace", type=int, default=0, help="print so many last steps of it")
    parser.add_argument("--kinds", help="comma-separated; instead of what the seed draws")
    parser.add_argument("--orders", type=int, help="how many orders, instead of what it draws")
    parser.add_argument("--resume", action="store_true", help="go on where the last run ended")
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/reliability.md"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with server() as url:
        if asked.seed is not None:
            return _run_one(url, asked, console)
        tally = Tally.load() if asked.resume and STATE.exists() else Tally()
        run_many(url, tally.to_run(asked.seeds), asked.jobs, tally, console)
    console.print(table(tally))
    console.print(summary(tally), highlight=False)
    if asked.write:
        write(tally)
    return 1 if tally.failed else 0


def _run_one(url: str, asked: Any, console: Console) -> int:
    be_quiet()
    overrides: dict[str, Any] = {}
    if asked.kinds is not None:
        overrides["kinds"] = tuple(filter(None, asked.kinds.split(",")))
    if asked.orders:
        overrides["orders"] = asked.orders
    with database_on(url) as engine:
        report = run_seed(asked.seed, engine, **overrides)
    for line in report.trace[-asked.trace :] if asked.trace else ():
        console.print(line, highlight=False, markup=False)
    tally = Tally()
    tally.add(report)
    show(report, console)
    console.print(f"{report.steps} steps, {report.virtual_s:.0f} virtual seconds, ", end="")
    console.print(f"course {report.digest}; {dict(report.ends)}", highlight=False)
    console.print(f"struck: {', '.join(sorted({kind for kind, _ in report.fired}))}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
