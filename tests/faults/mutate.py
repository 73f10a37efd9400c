"""`make mutants`: plant each bug in a copy of the tree and see which test finds it out.

The working tree is never touched. What was caught is kept, so that a run can be resumed; the table
in docs/reliability.md is written from it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tests.conftest import TEST_PREFIX
from tests.faults import paper
from tests.faults.mutants import MUTANTS, ROOT, Mutant

STATE = ROOT / ".mutants.json"
#: What is asked when the tests that a mutant names have not found it: half a minute of T1.
WIDER = ("tests/faults/test_simulation.py", "tests/integration")
_FEW = {f"{TEST_PREFIX}SEEDS": "25"}
LONGEST_S = 900
#: pytest's own exit code for "some tests failed"; others say that it could not even begin.
FAILED = 1


@contextmanager
def planted(mutant: Mutant | None) -> Iterator[Path]:
    """Give a copy of the tree with the bug in it; without one, where None is given."""
    home = Path(tempfile.mkdtemp(prefix=f"mutant-{mutant.name if mutant else 'none'}-"))
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, home / name)
        if mutant is not None:
            target = home / mutant.path
            target.write_text(mutant.applied(target.read_text()))
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def catch(mutant: Mutant, *, wider: bool = True) -> str | None:
    """Name the test that finds the bug out; None where it survives.

    Raises RuntimeError where the tests cannot be run, or fail without the bug too.
    """
    for tests in (mutant.tests, WIDER) if wider else (mutant.tests,):
        check_sound(tests)
        with planted(mutant) as home:
            caught = _run(home, tests)
        if caught is not None:
            return caught
    return None


#: Bugs of one file share their tests, which are tried without any bug once.
_sound: dict[tuple[str, ...], Future[str | None]] = {}
_sound_lock = threading.Lock()


def check_sound(tests: tuple[str, ...]) -> None:
    """Run tests on a copy of the tree without a bug. Raises RuntimeError where one fails."""
    with _sound_lock:
        is_first = tests not in _sound
        tried = _sound.setdefault(tests, Future())
    if is_first:
        try:
            with planted(None) as home:
                tried.set_result(_run(home, tests))
        except Exception as error:  # for all who wait for it
            tried.set_exception(error)
    if (failed := tried.result()) is not None:
        raise RuntimeError(f"{failed} fails without any bug: it cannot tell of one")


def _run(home: Path, tests: Iterable[str]) -> str | None:
    """Name a test that fails; None where none does. Raises RuntimeError.

    A test that does not even come to its question, because something before it fails, has found
    nothing out.
    """
    done = _pytest(home, "-x", *tests)
    if done.returncode == FAILED and _failed(done) is None:
        done = _pytest(home, *tests)  # there may be one that fails behind the one that is no test
    if done.returncode not in (0, FAILED):
        raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr}")
    return _failed(done)


def _failed(done: subprocess.CompletedProcess[str]) -> str | None:
    found = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return found and found[1]


def _pytest(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=home, env=os.environ | {"PYTHONPATH": str(home)} | _FEW, check=False,
        capture_output=True, text=True, timeout=LONGEST_S,
    )  # fmt: skip


def _known() -> dict[str, str | None]:
    return json.loads(STATE.read_text()) if STATE.exists() else {}


def table(caught: dict[str, str | None]) -> str:
    """Lay out which test caught what."""
    lines = ["| planted bug | breaks | caught by |", "| --- | --- | --- |"]
    for mutant in MUTANTS:
        test = caught.get(mutant.name)
        where = f"`{test.partition('::')[2] or test}`" if test else "**nothing**"
        where = re.sub(r"\[.*\]`$", "`", where)
        lines.append(f"| `{mutant.name}`: {mutant.why} | {mutant.promise} | {where} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; all where none is named")
    parser.add_argument("--resume", action="store_true", help="leave out what was caught before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    console = Console()
    caught = _known() if asked.resume or asked.names else {}
    chosen = [m for m in MUTANTS if not asked.names or m.name in asked.names]
    if asked.resume:
        chosen = [m for m in chosen if not caught.get(m.name)]
    columns = (TextColumn("mutants"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, console=console) as progress,
        ThreadPoolExecutor(asked.jobs) as executor,
    ):
        task = progress.add_task("", total=len(chosen))
        for mutant, test in zip(chosen, executor.map(catch, chosen), strict=True):
            caught[mutant.name] = test
            STATE.write_text(json.dumps(caught, indent=1))
            progress.advance(task)
            console.print(f"{mutant.name}: {test or 'SURVIVED'}", highlight=False, markup=False)
    survivors = [m.name for m in chosen if not caught[m.name]]
    if not asked.names:
        paper.insert("mutants", table(caught))
    console.print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught; survived: {survivors}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
