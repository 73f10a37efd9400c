"""A process dies at every named crash point, on several order paths, and everything ends well.

`make crashes` tries every place of every path, `make crashes ARGS=--pairs` every ordered pair.
"""

import os
from collections.abc import Mapping

import pytest

from fulfillment.crash import POINTS
from tests.faults.crashes import CrashReport
from tests.faults.matrix import Tally, baselines, chosen, point_of, run_job, unreached
from tests.faults.paths import PATHS
from tests.faults.pool import run_all

JOBS = min(os.cpu_count() or 1, 2)


@pytest.fixture(scope="module")
def undisturbed(database_url: str) -> Mapping[str, CrashReport]:
    """Every path without a death."""
    return baselines(database_url, JOBS)


def test_every_path_ends_as_it_should_without_a_death(
    undisturbed: Mapping[str, CrashReport],
) -> None:
    assert {report.path: report.violations for report in undisturbed.values()} == {
        name: [] for name in PATHS
    }


def test_every_crash_point_is_come_by(undisturbed: Mapping[str, CrashReport]) -> None:
    assert unreached(undisturbed.values()) == set()


@pytest.mark.timeout(600)
def test_whoever_dies_at_any_point_everything_ends_well(
    database_url: str, undisturbed: Mapping[str, CrashReport]
) -> None:
    tally = Tally()

    run_all(database_url, run_job, chosen(undisturbed), JOBS, tally.add)

    assert tally.failed == {}
    assert {point_of(place) for place in tally.by_point} == set(POINTS)
