"""What the machine did: CPU of process trees, memory, load; read from /proc by psutil."""

import os
import platform
from contextlib import suppress
from importlib.metadata import version

import psutil

PACKAGES = ("celery", "kombu", "psycopg", "httpx", "sqlmodel", "msgspec", "redis", "dramatiq")


def cpu_s(pid: int) -> float:
    """Give the CPU seconds of a process and all it has forked, those that ended included."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def rss_mb(pid: int) -> float:
    """Give the resident memory of one process in megabytes."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def load() -> float:
    """Give the load average of the last minute."""
    return os.getloadavg()[0]


def listener(port: int) -> int | None:
    """Give the process that listens on a TCP port; None where that is not ours to know."""
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                pid: int | None = connection.pid
                return pid
    return None


def describe() -> dict[str, str]:
    """Describe the machine and the versions that a result depends on."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "CPU": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
