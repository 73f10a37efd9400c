"""Processes that may have no more memory or files: they say so, or die and are started again."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.acceptance.driver import until
from tests.faults.ground import Ground


@pytest.fixture
def ground(redis_ground: Ground) -> Ground:
    return redis_ground


def _bytes_mapped(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@contextmanager
def _no_more(pids: list[int], kind: int, more: int) -> Iterator[None]:
    """Let these processes have only so much more of something than they have."""
    before = {}
    for pid in pids:
        have = {resource.RLIMIT_AS: _bytes_mapped, resource.RLIMIT_NOFILE: _files}[kind](pid)
        before[pid] = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (have + more, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            if Path(f"/proc/{pid}").exists():
                resource.prlimit(pid, kind, limits)


def _files(pid: int) -> int:
    """Give the lowest number that no open file has: the next one would get it."""
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in count() if number not in taken)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "trace"),
    [(resource.RLIMIT_AS, "can't start new thread"), (resource.RLIMIT_NOFILE, "Too many open")],
    ids=["memory", "files"],
)
def test_workers_that_get_no_more_of_something_lose_and_double_nothing(
    ground: Ground, kind: int, trace: str
) -> None:
    # Workers that have just begun have neither all their threads nor all their connections.
    for name in ("worker-1", "worker-2"):
        ground.driver.kill_and_revive(name)
    ground.send(2)
    ground.assert_settled()
    pids = [pid for name, pid in ground.pids.items() if name.startswith("worker")]
    before = ground.driver.logs().count(trace)

    with ground.flow(30, gap_s=0.05), _no_more(pids, kind, 0):
        until("what a worker lacks", lambda: ground.driver.logs().count(trace) > before)

    ground.assert_settled()
