"""README's commands, as they stand there, against a running stack."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.driver import Driver, until

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def commands(heading: str) -> str:
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    return "\n".join(blocks)


def environment() -> dict[str, str]:
    return {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}


@pytest.fixture
def directory(stack: Driver, tmp_path: Path) -> Path:
    """Give a directory in which the stack and the environment are found as in a clone."""
    (tmp_path / ".fulfillment").symlink_to(stack.stack.data_dir)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.fixture
def receiver(directory: Path) -> Iterator[Path]:
    """Run the receiver of order updates; give what it prints."""
    printed = directory / "received.txt"
    script = "set -a; . .fulfillment/runtime.env; set +a\n" + commands("Receive order updates")
    with printed.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-e", "-c", script],
            cwd=directory,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until("the receiver's queue", lambda: "waiting for updates" in printed.read_text())
        yield printed
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_store_sends_in_every_way_and_receives_what_became_of_it(
    stack: Driver, directory: Path, receiver: Path
) -> None:
    sent = subprocess.run(
        ["/bin/sh", "-e", "-c", commands("Send a checkout")],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr

    events = [json.loads(line) for line in (directory / "checkouts.jsonl").read_text().splitlines()]
    ids = [event["externalId"] for event in events]
    assert stack.wait_final(ids) == dict.fromkeys(ids, "completed")
    assert "1 new, 0 known before, 0 refused" in sent.stdout
    until(
        "the last updates",
        lambda: all(f"{name} completed" in receiver.read_text() for name in ids),
    )
    for name in ids:
        statuses = re.findall(rf"^{name} (\w+)$", receiver.read_text(), re.MULTILINE)
        assert statuses[0] == "received"
        assert len(statuses) == len(set(statuses))


def test_the_receiver_acts_on_an_alarm_that_bears_the_sequence_of_an_update(
    stack: Driver, receiver: Path
) -> None:
    (name,) = stack.send([stack.checkout("reversed")])
    stack.wait_for({name: "reversed"})

    def lines() -> list[str]:
        return re.findall(rf"^{re.escape(name)} (.+)$", receiver.read_text(), re.MULTILINE)

    alarm = "order.needs_review: the delivered trade was undone"
    until("the alarm", lambda: any(line.startswith(alarm) for line in lines()))
    assert lines()[-2] == "reversed"


#: What has nothing to do here, and says so.
REFUSED = {
    " resolve ": "only needs_review can be resolved",
    " updates forget": "no queue of the store is missing",
}


def test_the_operators_commands_work(stack: Driver, directory: Path) -> None:
    (order,) = stack.send([stack.checkout()])
    stack.wait_final([order])

    for line in commands("Operate").replace("ORDER", order).splitlines():
        result = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=directory,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        refused = [said for part, said in REFUSED.items() if part in line]
        if refused:
            assert result.returncode == 1
            assert refused[0] in result.stderr
        else:
            assert result.returncode == 0, line + result.stdout + result.stderr
