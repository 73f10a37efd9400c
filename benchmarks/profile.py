"""Where the time of an order goes: py-spy samples every part of the product during one burst.

Counted are samples on the CPU only, at 100 a second and a thread, by the innermost function, by
the library that it belongs to, and by the innermost function of ours on the stack.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.stack import product, simulator

RATE = 100
#: What the time is counted for: every function of ours, and the steps that it is part of.
OURS = re.compile(r"^(?:.*/)?((?:fulfillment|tasks|schemas)/.*\.py)$")
PACKAGE = re.compile(r"site-packages/([A-Za-z0-9_]+)")
FRAME = re.compile(r"^(?P<name>.+) \((?P<path>.*?)(?::\d+)?\)$")


def measure(bench: Bench) -> None:
    """Sample a burst; keep a table a process."""
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists() and shutil.which("py-spy") is None:
        raise RuntimeError("py-spy is not installed")
    broker = bench.servers.broker("redis")
    assert broker is not None
    bench.begin("profile of a burst")
    count = bench.scale.profile
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(bench.servers, broker, simulated) as running,
    ):
        running.burst("p-warm", bench.scale.small_burst)
        before = running.cpu_s()
        samplers = {
            name: _sampler(program, pid, bench.servers.data_dir / f"{name}.raw")
            for name, pid in running.stack.processes.pids.items()
            if name in ("worker-1", "worker-2", "web", "intake")
        }
        elapsed = running.burst("p", count)
        after = running.cpu_s()
        for sampler in samplers.values():
            sampler.send_signal(2)  # SIGINT: it writes what it has
            sampler.wait(30)
        running.check_books()
    bench.keep(
        "profile",
        {
            "orders": count,
            "rate": count / elapsed,
            "parts": {name: (after[name] - before[name]) * 1000 / count for name in after},
            "processes": {
                part: _table([bench.servers.data_dir / f"{name}.raw" for name in names], count)
                for part, names in {
                    "the workers": ["worker-1", "worker-2"],
                    "web": ["web"],
                    "intake": ["intake"],
                }.items()
            },
        },
    )


def _sampler(program: Path, pid: int, file: Path) -> "subprocess.Popen[bytes]":
    words = ["record", "--pid", str(pid), "--format", "raw", "--rate", str(RATE)]
    words += ["--nonblocking", "--duration", "600", "--output", str(file)]
    file.unlink(missing_ok=True)
    command = [str(program) if program.exists() else "py-spy", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stacks(file: Path) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Give each stack as (function, path) from the outermost to the innermost, and its samples."""
    for line in file.read_text().splitlines():
        text, _, samples = line.rpartition(" ")
        frames = [match for part in text.split(";") if (match := FRAME.match(part))]
        if frames:
            yield [(match["name"], match["path"]) for match in frames], int(samples)


def _table(files: list[Path], orders: int) -> dict[str, list[list[object]]]:
    """Count by library, by innermost function of ours, by function of ours and all it calls."""
    library: Counter[str] = Counter()
    innermost: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for file in files:
        for frames, samples in _stacks(file):
            ours = [f"{m[1]} {name}" for name, path in frames if (m := OURS.match(path))]
            library[_library(frames[-1][1])] += samples
            innermost[ours[-1] if ours else "(none of ours)"] += samples
            for each in set(ours):
                inclusive[each] += samples
    us = 1_000_000 / RATE / orders  # one sample in microseconds an order
    return {
        "library": [[name, n * us] for name, n in library.most_common(14)],
        "innermost": [[name, n * us] for name, n in innermost.most_common(20)],
        "inclusive": [[name, n * us] for name, n in inclusive.most_common(40)],
    }


def _library(path: str) -> str:
    """Name the package of a frame; py-spy writes paths from the package on."""
    if match := PACKAGE.search(path):
        return match[1]
    top = path.removeprefix("/").partition("/")[0]
    is_standard = "/" not in path or top.removesuffix(".py") in sys.stdlib_module_names
    return "Python's own" if is_standard or "/lib/python" in path else top
