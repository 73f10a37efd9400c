"""Seed after seed holds every promise; a seed is the same run every time."""

import os

import pytest
from sqlalchemy.engine import Engine

from tests.conftest import TEST_PREFIX
from tests.faults.__main__ import Tally, corpus
from tests.faults.kinds import KINDS
from tests.faults.pool import run_seeds
from tests.faults.run import FEWEST_KINDS_FIRED, Report, run_seed

SEEDS = int(os.environ.get(f"{TEST_PREFIX}SEEDS", "200"))
#: Run once more, in another process.
COMPARED = (1192, 3, 6)
FEWEST_ORDERS = 20


@pytest.fixture(scope="module")
def reports(database_url: str) -> dict[int, Report]:
    """Run the corpus and the first seeds."""
    found: dict[int, Report] = {}

    def take(report: Report) -> None:
        found[report.seed] = report

    seeds = dict.fromkeys([*corpus(), *range(1, SEEDS + 1)])
    run_seeds(database_url, seeds, min(os.cpu_count() or 1, 4), take)
    return found


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the services' many words about injected faults out of the report."""
    caplog.set_level("CRITICAL")


def test_without_faults_every_order_that_can_be_bought_is_delivered(engine: Engine) -> None:
    report = run_seed(2, engine, kinds=())

    assert report.violations == []
    assert report.ends["completed"] >= report.orders // 2
    assert set(report.ends) <= {"completed", "failed"}


def test_a_seed_runs_the_same_course_twice(engine: Engine) -> None:
    first, second = (run_seed(11, engine) for _ in range(2))

    assert first.trace == second.trace
    assert (first.fired, first.ends) == (second.fired, second.ends)


@pytest.mark.timeout(900)
def test_seeds_run_the_same_course_in_any_process(
    reports: dict[int, Report], engine: Engine
) -> None:
    """What differs between processes, as the order of a set, decides nothing."""
    there = {seed: reports[seed].digest for seed in COMPARED}

    assert {seed: run_seed(seed, engine).digest for seed in COMPARED} == there


def test_orders_come_to_their_end_although_nothing_tells_of_them(engine: Engine) -> None:
    """With every message and webhook lost, the ticks alone bring each order home."""
    kinds = ("message_lost", "webhook_lost", "process_killed", "timeout_after")

    report = run_seed(5, engine, kinds=kinds)

    assert report.violations == []


@pytest.mark.timeout(900)
def test_seeds_hold_every_promise_and_every_kind_of_fault_strikes(
    reports: dict[int, Report],
) -> None:
    tally = Tally()
    for report in reports.values():
        tally.add(report)
    failed = [f"{each}\n    {r.command}" for r in reports.values() for each in r.violations]

    assert failed == [], "\n".join(failed)
    assert [seed for seed, report in reports.items() if is_dull(report)] == []
    assert {key.split()[0] for key in tally.fired} == set(KINDS)
    assert tally.ends["completed"] > tally.orders / 3


def is_dull(report: Report) -> bool:
    """Say whether hardly anything happened."""
    kinds = {kind for kind, _ in report.fired}
    return report.orders < FEWEST_ORDERS or len(kinds) < FEWEST_KINDS_FIRED
