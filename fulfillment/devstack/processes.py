"""A group of supervised child processes: started, revived, stopped, and never left behind.

All forking happens in the group's own thread, because the kernel's parent-death signal is tied to
the thread that forked, not to its process.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from fulfillment.devstack.files import private_directory

LAUNCHER = Path(__file__).with_name("launch.py")
TICK_S = 0.1
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
STEADY_AFTER_S = 30.0
LOG_LIMIT_BYTES = 10_000_000

Report = Callable[[str], None]


def launch_command(
    command: Sequence[str], death_signal: Signals = signal.SIGKILL, user: tuple[int, int] = (0, 0)
) -> list[str]:
    """Wrap a command so that it gets `death_signal` when the thread that started it is gone."""
    numbers = (os.getpid(), int(death_signal), *user)
    return [sys.executable, "-I", "-S", str(LAUNCHER), *map(str, numbers), *command]


@dataclass
class Child:
    """One program of the group, over all the processes that have run it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    stop_signal: Signals = signal.SIGTERM
    #: What the kernel sends when the supervisor is gone; only servers of data deserve a gentle one.
    death_signal: Signals = signal.SIGKILL
    #: The user and group to run as, where the supervisor is root and the program refuses root.
    user: tuple[int, int] = (0, 0)
    cwd: Path | None = None
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    spawned: threading.Event = field(default_factory=threading.Event)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    # The process stays a zombie, so that its id and its group's id cannot become someone else's.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def _bury(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of a child and of what it forked; give the child's exit code."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


class ProcessGroup:
    """Keep named children running until `stop`; their output goes to `{log_dir}/{name}.log`."""

    def __init__(self, log_dir: Path, *, report: Report | None = None) -> None:
        self._log_dir = log_dir
        self._report = report
        self._children: dict[str, Child] = {}
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._grace_s: float | None = None
        self._thread: threading.Thread | None = None

    def start(self, child: Child) -> None:
        """Start a child and return once it runs."""
        with self._lock:
            if child.name in self._children:
                raise ValueError(f"{child.name} is running already")
            private_directory(self._log_dir)
            self._rotate(child.name)
            self._children[child.name] = child
            if self._thread is None:
                self._thread = threading.Thread(target=self._supervise, name="supervisor")
                self._thread.daemon = True
                self._thread.start()
        self._wake.set()
        child.spawned.wait(timeout=30)

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run now, by name."""
        with self._lock:
            return {
                name: child.process.pid
                for name, child in self._children.items()
                if child.process is not None and not _has_ended(child.process)
            }

    def kill(self, name: str, number: Signals = signal.SIGKILL) -> None:
        """Signal a child; when it dies of it, it is revived."""
        os.kill(self.pids[name], number)

    def end(self, name: str, grace_s: float = 2.0) -> None:
        """Stop one child for good; `start` may bring it back."""
        with self._lock:
            child = self._children.pop(name)
        self._end([child], grace_s)

    def stop(self, grace_s: float = 4.0) -> None:
        """Ask every child to end, kill what is left after `grace_s`; return when none is left."""
        if self._thread is None:
            return
        self._grace_s = grace_s
        self._wake.set()
        self._thread.join()
        self._thread = None

    def log_path(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def last_line(self, name: str) -> str:
        """The last thing a child said, for a message about why it is gone."""
        path = self.log_path(name)
        lines = path.read_text(errors="replace").split("\n") if path.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _supervise(self) -> None:
        while self._grace_s is None:
            with self._lock:
                for child in list(self._children.values()):
                    self._look_after(child)
            self._wake.wait(TICK_S)
            self._wake.clear()
        with self._lock:
            remaining = list(reversed(self._children.values()))
            self._children.clear()
        self._end(remaining, self._grace_s)
        self._grace_s = None

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.due_at:
                self._spawn(child, now)
            return
        if not _has_ended(child.process):
            return
        if now - child.started_at >= STEADY_AFTER_S:
            child.pause_s = FIRST_PAUSE_S
        code = _bury(child.process)
        child.process = None
        how = f"with exit code {code}" if code >= 0 else f"by {Signals(-code).name}"
        self._pause(child, now, f"ended {how} (see {self.log_path(child.name)})")

    def _spawn(self, child: Child, now: float) -> None:
        child.started_at = now
        try:
            with self.log_path(child.name).open("ab") as log:
                child.process = subprocess.Popen(  # noqa: S603
                    launch_command(child.command, child.death_signal, child.user),
                    env=dict(child.env),
                    cwd=child.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=child.pass_fds,
                )
        except OSError as error:  # no memory, no space, no process to be had: it may pass
            self._pause(child, now, f"could not be started ({error.strerror})")
        child.spawned.set()

    def _pause(self, child: Child, now: float, why: str) -> None:
        child.due_at = now + child.pause_s
        if self._report:
            self._report(f"{child.name} {why}; it starts again in {child.pause_s:g} s")
        child.pause_s = min(child.pause_s * 2, LONGEST_PAUSE_S)

    @staticmethod
    def _end(children: Sequence[Child], grace_s: float) -> None:
        processes = [(c, c.process) for c in children if c.process is not None]
        for child, process in processes:
            os.kill(process.pid, child.stop_signal)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and not all(_has_ended(p) for _, p in processes):
            time.sleep(TICK_S / 5)
        for child, process in processes:
            _bury(process)
            child.process = None

    def _rotate(self, name: str) -> None:
        path = self.log_path(name)
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        path.touch(mode=0o600)
