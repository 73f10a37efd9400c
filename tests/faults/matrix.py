"""`make crashes`: a death at every crash point of every path, or at every ordered pair of them."""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy.engine import Engine

from fulfillment.crash import POINTS
from tests.faults.__main__ import server
from tests.faults.crashes import CrashReport, run_path
from tests.faults.paths import PATHS
from tests.faults.pool import be_quiet, database_on, run_all

STATE = File(".crashes.json")


@dataclass(frozen=True)
class Job:
    """One run: which path, and where processes die on it, one after another."""

    path: str
    points: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " | ".join((self.path, *self.points))


def run_job(job: Job, engine: Engine) -> CrashReport:
    """Run it in a process of the pool. A single death that did not happen is a violation."""
    report = run_path(PATHS[job.path], engine, job.points)
    if len(job.points) == 1 and not report.died:
        report.violations.append(f"harness: nobody came by {job.points[0]}")
    if not report.violations:
        report.trace.clear()
    return report


def baselines(url: str, jobs: int) -> dict[str, CrashReport]:
    """Run every path without a death: what it comes by."""
    found: dict[str, CrashReport] = {}

    def take(report: CrashReport) -> None:
        found[report.path] = report

    run_all(url, run_job, [Job(name) for name in PATHS], jobs, take)
    return {name: found[name] for name in PATHS}


def point_of(place: str) -> str:
    return place.partition(" ")[0]


def singles(reports: Mapping[str, CrashReport]) -> list[Job]:
    """Give every place of every path."""
    return [Job(name, (place,)) for name, report in reports.items() for place in report.passed]


def share_of(day: int, work: Sequence[Job], days: int) -> list[Job]:
    """Give one of these jobs of each place, and of the rest what is tried on this day.

    After so many days in a row all of them were tried.
    """
    seen: set[tuple[str, ...]] = set()
    chosen = []
    for number, job in enumerate(work):
        if number % days == day % days or job.points not in seen:
            chosen.append(job)
        seen.add(job.points)
    return chosen


def _points(report: CrashReport) -> set[str]:
    return {point_of(place) for place in report.passed}


def pairs(reports: Mapping[str, CrashReport]) -> list[Job]:
    """Give every ordered pair of points of every path, well mixed and always in the same order."""
    found = [
        Job(name, pair)
        for name, report in reports.items()
        for pair in itertools.product(sorted(_points(report)), repeat=2)
    ]
    random.Random("pairs").shuffle(found)
    return found


@dataclass
class Tally:
    """What all runs came to; kept in a file, so that a long run can be resumed."""

    done: int = 0
    deaths: int = 0
    #: Pairs whose second point nobody came by after the first death.
    missed: int = 0
    seconds: float = 0.0
    by_point: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def add(self, report: CrashReport) -> None:
        self.done += 1
        self.deaths += len(report.died)
        self.missed += len(report.died) < len(report.points)
        self.by_point.update(point_of(place) for place in report.died)
        if report.violations:
            self.failed[report.command] = report.violations

    def save(self, file: File) -> None:
        file.write_text(json.dumps(vars(self)))

    @classmethod
    def load(cls, file: File) -> "Tally":
        known = cls(**json.loads(file.read_text()))
        known.by_point = Counter(known.by_point)
        return known

    def summary(self) -> str:
        rate = self.done / self.seconds * 3600 if self.seconds else 0
        missed = f", {self.missed} without their second death" if self.missed else ""
        return (
            f"{self.done} runs with {self.deaths} deaths{missed}, {len(self.failed)} failed; "
            f"{rate:.0f} runs an hour"
        )


def unreached(reports: Iterable[CrashReport]) -> set[str]:
    """Name the points that no path comes by."""
    return set(POINTS) - set().union(*(_points(report) for report in reports))


def run_jobs(
    url: str, work: list[Job], jobs: int, tally: Tally, console: Console, file: File | None = None
) -> None:
    """Do the work under a progress bar; what fails is shown at once."""
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[failed]} failed"), console=console) as bar:
        task = bar.add_task("", total=len(work), failed=0)
        began, before = time.monotonic(), tally.seconds

        def take(report: CrashReport) -> None:
            tally.add(report)
            tally.seconds = before + time.monotonic() - began
            if file is not None:
                tally.save(file)
            for line in _shown(report):
                console.print(line, highlight=False, markup=False)
            bar.update(task, advance=1, failed=len(tally.failed))

        run_all(url, run_job, work, jobs, take)


def _shown(report: CrashReport) -> Iterator[str]:
    yield from (f"{report.path}: {violation}" for violation in report.violations)
    if report.violations:
        yield f"again: {report.command}"


def table(tally: Tally) -> Table:
    """Lay out how often somebody died where."""
    view = Table("point", "what has happened by then", "deaths")
    for point, meaning in POINTS.items():
        view.add_row(point, meaning, str(tally.by_point[point]))
    return view


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make crashes", description=__doc__)
    parser.add_argument("--pairs", action="store_true", help="every ordered pair of points")
    parser.add_argument("--resume", action="store_true", help="go on where the pairs stopped")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--path", choices=PATHS, help="run this path only, and say what it did")
    parser.add_argument("--at", action="append", default=[], help="where to die on it; repeatable")
    asked = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with server() as url:
        if asked.path:
            return _run_one(url, Job(asked.path, tuple(asked.at)), console)
        reports = baselines(url, asked.jobs)
        broken = [line for report in reports.values() for line in _shown(report)]
        tally, file = Tally(), STATE if asked.pairs else None
        if file is not None and asked.resume and file.exists():
            tally = Tally.load(file)
        work = pairs(reports)[tally.done :] if asked.pairs else singles(reports)
        run_jobs(url, work[: asked.most], asked.jobs, tally, console, file)
    console.print(table(tally))
    left = sorted(unreached(reports.values()))
    for line in [*broken, *(f"no path comes by {point}" for point in left)]:
        console.print(line, highlight=False, markup=False)
    console.print(tally.summary(), highlight=False)
    return 1 if tally.failed or broken or left else 0


def _run_one(url: str, job: Job, console: Console) -> int:
    be_quiet()
    with database_on(url) as engine:
        report = run_path(PATHS[job.path], engine, job.points)
    for line in [*report.trace[-80:], *_shown(report)]:
        console.print(line, highlight=False, markup=False)
    died = ", ".join(report.died) or "nowhere"
    console.print(f"{report.steps} steps, {report.virtual_s:.0f} virtual seconds; died at {died}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
