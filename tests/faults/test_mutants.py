"""Planted bugs: each still applies, and a few of them, others every day, are really found out."""

import ast
from datetime import UTC, datetime

import pytest

from tests.faults.mutants import MUTANTS, ROOT, Mutant
from tests.faults.mutate import catch

FEWEST = 30
PROMISES = {f"I{number}" for number in range(1, 11)}
#: Those whose tests start no stack take some seconds each.
QUICK = [m for m in MUTANTS if not any("acceptance" in test for test in m.tests)]
TODAY = datetime.now(tz=UTC).toordinal()


def test_every_promise_has_bugs_that_break_it() -> None:
    assert len(MUTANTS) >= FEWEST
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.promise for mutant in MUTANTS} == PROMISES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_still_be_planted(mutant: Mutant) -> None:
    planted = mutant.applied((ROOT / mutant.path).read_text())

    ast.parse(planted)
    for test in mutant.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_a_bug_of_today_is_found_out() -> None:
    mutant = QUICK[TODAY % len(QUICK)]

    assert catch(mutant, wider=False) is not None, mutant.name
