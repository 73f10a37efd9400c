"""The disk of the logs is full: no line that a process writes is kept, and orders go on."""

from pathlib import Path

import pytest

from fulfillment.devstack.stack import CHILDREN
from tests.acceptance.driver import running_stack


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_processes_that_can_log_nothing_start_and_buy(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o700)
    for name in (*CHILDREN, "worker-1", "worker-2"):
        (logs / f"{name}.log").symlink_to("/dev/full")

    with running_stack(tmp_path) as driver:
        ids = driver.send([driver.checkout() for _ in range(5)])
        ends = driver.wait_final(ids)
        driver.assert_agreement(ids)
        pids = dict(driver.stack.processes.pids)

    assert set(ends.values()) == {"completed"}
    assert {"web", "beat", "intake"} <= set(pids)
