"""A process dies at each named crash point, and everything ends as without that.

`make crashes` tries every place of every path, `ARGS=--pairs` every ordered pair of points.
"""

import os
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest
from rich.console import Console
from sqlalchemy.engine import Engine

from fulfillment.crash import POINTS
from fulfillment.services.unknowns import Step
from tests.faults.matrix import (
    Job,
    Tally,
    baselines,
    pairs,
    point_of,
    run_job,
    run_jobs,
    share_of,
    singles,
    unreached,
)
from tests.faults.paths import PATHS

TODAY = datetime.now(tz=UTC).toordinal()
#: In so many days every place of every path is tried.
DAYS = 24


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the services' many words about deaths out of the report."""
    caplog.set_level("CRITICAL")


@pytest.mark.timeout(900)
def test_a_death_at_every_place_and_at_todays_of_every_path_changes_no_end(
    database_url: str,
) -> None:
    jobs = min(os.cpu_count() or 1, 4)
    tally = Tally()

    reports = baselines(database_url, jobs)
    work = share_of(TODAY, singles(reports), DAYS)
    run_jobs(database_url, work, jobs, tally, Console(quiet=True))

    assert {n: r.violations for n, r in reports.items() if r.violations} == {}
    assert unreached(reports.values()) == set()
    assert tally.failed == {}
    assert tally.deaths == len(work) >= len(POINTS)
    assert set(tally.by_point) == set(POINTS)


@pytest.mark.parametrize(
    "points",
    [
        ("intent.after_commit", "outcome.before_commit"),
        ("http.sent in submit", "lookup.answered"),
        ("outcome.after_commit", "outcome.after_commit"),
        ("outcome.after_commit", "intake.after_commit"),
    ],
)
@pytest.mark.parametrize("path", ["replayed", "looked_up"])
def test_two_deaths_in_turn_change_no_end(
    engine: Engine, path: str, points: tuple[str, ...]
) -> None:
    """The long run tries every pair; `make crashes ARGS=--pairs`."""
    report = run_job(Job(path, points), engine)

    assert report.violations == []
    assert report.died[:1] == points[:1]


def test_the_pairs_are_all_ordered_pairs_of_each_path_and_always_in_the_same_order(
    engine: Engine,
) -> None:
    reports = {name: run_job(Job(name), engine) for name in ("price_changed", "refused")}

    work = pairs(reports)

    points = {name: {point_of(place) for place in r.passed} for name, r in reports.items()}
    assert len(set(work)) == len(work) == sum(len(each) ** 2 for each in points.values())
    assert pairs(reports) == work


def test_the_days_together_try_every_place_of_every_path_and_each_tries_every_place() -> None:
    places = ("a", "b", "c", "d in e", "d in f")
    work = [Job(path, (place,)) for path in ("left", "right", "up") for place in places]

    shares = [share_of(day, work, DAYS) for day in range(DAYS)]

    assert set().union(*shares) == set(work)
    assert all({job.points[0] for job in share} == set(places) for share in shares)
    assert all(len(share) < len(work) for share in shares)


def test_a_purchase_posted_again_after_a_death_where_it_may_be_two_is_found_out(
    engine: Engine,
) -> None:
    job = Job("looked_up_only", ("http.sent in submit",))
    assert run_job(job, engine).violations == []

    with mock.patch("fulfillment.services.intents.next_step", return_value=Step.POST):
        report = run_job(job, engine)

    assert any(violation.startswith("I1 ") for violation in report.violations)


@pytest.mark.parametrize("path", ["restored", "restored_untold"])
def test_purchases_that_a_lost_database_knew_are_looked_for(engine: Engine, path: str) -> None:
    report = run_job(Job(path), engine)

    assert report.violations == []
    assert len(report.lost) == len(PATHS[path].providers)
    assert all(report.lost.values())


@pytest.mark.parametrize("path", ["restored", "restored_untold"])
def test_purchases_that_nobody_looks_for_after_a_loss_are_found_out(
    engine: Engine, path: str
) -> None:
    with mock.patch("fulfillment.store.models.Order.was_searched", return_value=True):
        report = run_job(Job(path), engine)

    assert any(violation.startswith("I1 ") for violation in report.violations)


def test_an_absence_that_is_believed_at_once_after_a_loss_is_found_out(engine: Engine) -> None:
    at_once = mock.patch(
        "fulfillment.services.recovery._settled_at", side_effect=lambda _, since, __: since
    )
    with at_once, mock.patch("fulfillment.services.recovery.APART", timedelta()):
        report = run_job(Job("restored_untold"), engine)

    assert any(violation.startswith("I1 ") for violation in report.violations)


def test_work_of_the_dead_that_nobody_resumes_is_found_out(engine: Engine) -> None:
    with (
        mock.patch("fulfillment.store.claims.claim_stuck", return_value=[]),
        mock.patch("tests.faults.crashes._WITHIN_S", 120.0),
    ):
        report = run_job(Job("delivered", ("intent.after_commit",)), engine)

    assert any(violation.startswith("I2 ") for violation in report.violations)


def test_a_death_that_did_not_happen_is_a_failure(engine: Engine) -> None:
    report = run_job(Job("price_changed", ("ledger.refunded",)), engine)

    assert report.violations == ["harness: nobody came by ledger.refunded"]
