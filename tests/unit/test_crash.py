"""Crash points: each stands in the code once, does nothing unasked, and kills where armed."""

import ast
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulfillment
from fulfillment import crash
from fulfillment.crash import POINTS, crash_point
from fulfillment.errors import ConfigurationError
from fulfillment.services.context import build_context
from fulfillment.settings import load_settings

ROOT = Path(fulfillment.__file__).parents[1]
PASSES = """
from pathlib import Path
from fulfillment.crash import arm, crash_point
arm(Path({path!r}))
crash_point("intake.before_commit")
crash_point("intake.after_commit", about=[])
for time in range(1, 4):
    print("pass", time, flush=True)
    crash_point("intake.after_commit")
"""


def calls() -> Iterator[str]:
    for folder in ("fulfillment", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point":
                    (name, *_) = node.args
                    assert isinstance(name, ast.Constant), f"{path}: expected the name itself"
                    yield str(name.value)


def run(path: Path) -> "subprocess.CompletedProcess[str]":
    code = PASSES.format(path=str(path))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_every_point_of_the_registry_stands_in_the_code_exactly_once() -> None:
    assert Counter(calls()) == Counter(list(POINTS))


def test_a_point_does_nothing_unless_a_test_acts_on_it() -> None:
    passed: list[str] = []

    crash_point("post.leaving")
    with crash.acting(passed.append):
        crash_point("post.leaving")
        crash_point("poll.claimed", about=())
        crash_point("poll.claimed", about=("order",))
    crash_point("post.leaving")

    assert passed == ["post.leaving", "poll.claimed"]


@pytest.mark.parametrize(("armed", "passes"), [("", 1), (":1", 1), (":3", 3)])
def test_an_armed_process_says_so_and_dies_at_its_point_once(
    tmp_path: Path, armed: str, passes: int
) -> None:
    path = tmp_path / "crash"
    path.write_text(f"intake.after_commit{armed}\n")

    first, revived = run(path), run(path)

    assert first.returncode == -signal.SIGKILL
    assert first.stdout.count("pass ") == passes
    assert "crash.armed" in first.stderr + first.stdout
    assert "crash.now" in first.stderr + first.stdout
    assert revived.returncode == 0
    assert [each.name for each in tmp_path.iterdir()] == ["crash.fired"]


@pytest.mark.parametrize("text", ["", "intake.never", "post.leaving:0", "post.leaving:x"])
def test_a_process_does_not_start_to_die_at_a_point_that_does_not_exist(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "crash"
    path.write_text(text)

    with pytest.raises(ConfigurationError, match=r"FULFILLMENT_CRASH_FILE: expected"):
        crash.arm(path)


def test_nobody_arms_a_process_that_spends_real_money(tmp_path: Path) -> None:
    account = {"provider": "skinsnode", "client_id": "c", "client_secret": "s"}
    own = {**account, "base_url": "http://127.0.0.1:9001"}
    settings = load_settings(
        _env_file=None,
        database_url="postgresql://nowhere/none",
        encryption_keys="k1:" + "A" * 43 + "=",
        crash_file=tmp_path / "crash",
        accounts={"main": own, "real": account},
    )

    with pytest.raises(ConfigurationError, match=r"FULFILLMENT_CRASH_FILE: .*account real"):
        build_context(settings)


def test_the_papers_tell_of_every_point() -> None:
    paper = (ROOT / "docs" / "reliability.md").read_text()

    for point, meaning in POINTS.items():
        assert f"| `{point}` | {meaning} |\n" in paper
    assert f"names {len(POINTS)} points" in paper
