"""Planted bugs: each still applies, and a few of them, others every day, are really found out."""

import ast
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults import mutate
from tests.faults.mutants import MUTANTS, ROOT, Mutant
from tests.faults.mutate import catch

FEWEST = 30
PROMISES = {f"I{number}" for number in range(1, 11)}
#: Those whose tests start no stack take some seconds each.
QUICK = [m for m in MUTANTS if not any("acceptance" in test for test in m.tests)]
TODAY = datetime.now(tz=UTC).toordinal()


FIXTURE = """
import pytest
import code_

@pytest.fixture
def answer():
    assert code_.ANSWER == 42
    return code_.ANSWER

def test_that_needs_the_fixture(answer):
    assert answer
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a small tree in the place of ours."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # noqa: S607 - as mutate does
    (tmp_path / "code_.py").write_text("ANSWER = 42\n")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "_sound", {})
    # No use for it here, and half of what pytest needs to begin.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:schemathesis")
    return tmp_path


def bug(tree: Path, test: str) -> Mutant:
    (tree / "test_code.py").write_text(test)
    return Mutant("bug", "I1", "a bug", "code_.py", "42", "43", ("test_code.py",))


def test_a_test_that_fails_only_with_the_bug_has_found_it_out(tree: Path) -> None:
    found = bug(tree, "import code_\n\ndef test_answer():\n    assert code_.ANSWER == 42\n")

    assert catch(found, wider=False) == "test_code.py::test_answer"


def test_a_test_that_fails_without_the_bug_too_finds_nothing_out(tree: Path) -> None:
    with pytest.raises(RuntimeError, match="fails without any bug"):
        catch(bug(tree, "def test_answer():\n    assert False\n"), wider=False)


def test_what_fails_before_a_test_is_no_test_and_hides_none(tree: Path) -> None:
    behind = "\ndef test_behind_it():\n    assert code_.ANSWER == 42\n"

    assert catch(bug(tree, FIXTURE), wider=False) is None
    assert catch(bug(tree, FIXTURE + behind), wider=False) == "test_code.py::test_behind_it"


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
