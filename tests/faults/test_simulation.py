"""Seed after seed holds every promise; a seed is the same run every time."""

import os
from collections import defaultdict

import pytest
from sqlalchemy.engine import Engine

from tests.faults.__main__ import Tally, corpus
from tests.faults.kinds import KINDS
from tests.faults.pool import run_seeds
from tests.faults.run import FEWEST_KINDS_FIRED, Report, run_seed

SEEDS = 25
#: The first ran two courses, when answers were taken up in the order of a set.
COMPARED = (1192, 3, 6)
FEWEST_ORDERS = 20


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


def test_seeds_run_the_same_course_in_any_process(database_url: str) -> None:
    """What differs between processes, as the order of a set, decides nothing."""
    courses: dict[int, set[str]] = defaultdict(set)

    for _ in range(2):
        run_seeds(database_url, COMPARED, 1, lambda each: courses[each.seed].add(each.digest))

    assert {seed: len(courses[seed]) for seed in COMPARED} == dict.fromkeys(COMPARED, 1)


def test_orders_come_to_their_end_although_nothing_tells_of_them(engine: Engine) -> None:
    """With every message and webhook lost, the ticks alone bring each order home."""
    kinds = ("message_lost", "webhook_lost", "process_killed", "timeout_after")

    report = run_seed(5, engine, kinds=kinds)

    assert report.violations == []


@pytest.mark.timeout(900)
def test_seeds_hold_every_promise_and_every_kind_of_fault_strikes(database_url: str) -> None:
    tally, failed, dull = Tally(), list[str](), list[int]()

    def take(report: Report) -> None:
        tally.add(report)
        failed.extend(f"{each}\n    {report.command}" for each in report.violations)
        kinds = {kind for kind, _ in report.fired}
        if report.orders < FEWEST_ORDERS or len(kinds) < FEWEST_KINDS_FIRED:
            dull.append(report.seed)

    seeds = [*corpus(), *range(1, SEEDS + 1)]
    run_seeds(database_url, seeds, min(os.cpu_count() or 1, 4), take)

    assert failed == [], "\n".join(failed)
    assert dull == []
    assert {key.split()[0] for key in tally.fired} == set(KINDS)
    assert tally.ends["completed"] > tally.orders / 3
