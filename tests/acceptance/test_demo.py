"""`fulfillment demo`, as a stranger runs it: once, piped, beside a person's own settings."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulfillment.devstack.demo_script import SCRIPT

FULFILLMENT = str(Path(sys.executable).with_name("fulfillment"))
SETTINGS_OF_A_PERSON = {
    "FULFILLMENT_DATABASE_URL": "postgresql://nobody:s3cret@127.0.0.1:1/theirs",
    "FULFILLMENT_BROKER_URL": "amqp://nobody:s3cret@127.0.0.1:1//",
    "FULFILLMENT_PUBLIC_URL": "https://store.example",
    "FULFILLMENT_ACCOUNTS__OTHER__CLIENT_ID": "theirs",
}


def start_demo(data_dir: Path) -> subprocess.Popen[str]:
    env = {**os.environ, **SETTINGS_OF_A_PERSON, "FULFILLMENT_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [FULFILLMENT, "demo"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(data_dir: Path) -> list[str]:
    """Find every process that was told of this data directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((entry / n).read_bytes() for n in ("cmdline", "environ"))
        except OSError:  # gone meanwhile
            continue
        if os.fsencode(data_dir) in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.mark.timeout(150)
def test_the_demo_ends_every_order_as_scripted_and_leaves_no_process(tmp_path: Path) -> None:
    data_dir = tmp_path / "a demo"

    demo = start_demo(data_dir)
    output, _ = demo.communicate(timeout=140)

    assert demo.returncode == 0, output
    assert f"All {len(SCRIPT)} checkouts ended as scripted; the books agree to the cent." in output
    for case in SCRIPT:
        words = (case.title, case.account, case.way, case.end, case.end, "")
        assert re.search(" +".join(map(re.escape, words)), output), case
    assert "and not FULFILLMENT_DATABASE_URL, FULFILLMENT_BROKER_URL" in output
    assert "s3cret" not in output
    assert output.count("password ") == 1
    assert "demoDEMO" not in output
    assert processes_of(data_dir) == []


@pytest.mark.long
def test_an_interrupted_demo_ends_within_seconds_and_leaves_no_process(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "quoted" in line:
            break

    interrupted_at = time.monotonic()
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=20)

    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    assert time.monotonic() - interrupted_at < 10
    assert processes_of(tmp_path) == []
