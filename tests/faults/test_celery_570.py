"""Celery 5.7.0 dies of a lost Redis connection while it holds a message; our consumer does not.

When the first test fails, upstream has mended it: `SafeQoS` may go, and its part of
`tasks/consumer.py`.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import celery
import pytest

from fulfillment.devstack.redis import EmbeddedRedis
from tests.support import until

#: An application of its own: what is tried is Celery and the consumer, nothing else of ours.
APPLICATION = """
    import pathlib, sys, time
    from celery import Celery

    app = Celery("plain", broker="{broker}")
    app.conf.task_acks_late = True
    app.conf.broker_connection_retry_on_startup = True
    app.conf.broker_transport_options = {{"visibility_timeout": 3600}}
    if "{consumer}":
        app.conf.worker_consumer = "{consumer}"

    @app.task(name="hold")
    def hold(begun, release):
        pathlib.Path(begun).touch()
        while not pathlib.Path(release).exists():
            time.sleep(0.02)
"""
ROOT = Path(__file__).parents[2]
DEATH = "AttributeError: 'NoneType' object has no attribute 'hostname'"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedRedis, str]]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    try:
        yield server, server.start()
    finally:
        server.stop()


class Worker:
    """A worker of the plain application, and what it said."""

    def __init__(self, home: Path, broker: str, consumer: str) -> None:
        self.home = home
        self.app = celery.Celery("sender", broker=broker, set_as_current=False)
        (home / "plain.py").write_text(
            textwrap.dedent(APPLICATION).format(broker=broker, consumer=consumer)
        )
        path = os.pathsep.join([str(home), str(ROOT)])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "plain", "worker", "--pool=threads"),
                    *("--concurrency=2", "--without-mingle", "--without-gossip"),
                ],
                cwd=home,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> Path:
        return self.home / "worker.log"

    def hold(self, name: str) -> Path:
        """Have a task taken up, which lasts until the file that is given exists."""
        begun, release = self.home / f"{name}.begun", self.home / f"{name}.release"
        self.app.send_task("hold", (str(begun), str(release)))
        until(begun.exists)
        return release

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.app.close()


@contextmanager
def worker(home: Path, broker: str, consumer: str = "") -> Iterator[Worker]:
    made = Worker(home, broker, consumer)
    try:
        yield made
    finally:
        made.end()


def restart(server: EmbeddedRedis) -> None:
    """Kill Redis and return once it is there again."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, 9)
    until(lambda: server.pid not in (None, pid))


def test_a_plain_worker_that_holds_a_message_dies_with_its_redis_connection(
    redis_server: tuple[EmbeddedRedis, str], tmp_path: Path
) -> None:
    server, broker = redis_server
    with worker(tmp_path, broker) as plain:
        release = plain.hold("first")

        restart(server)

        # Its main thread is dead then; the process ends with the task that it holds.
        until(lambda: DEATH in plain.log.read_text() or plain.process.poll() is not None)
        release.touch()
        until(lambda: plain.process.poll() is not None)
    assert DEATH in plain.log.read_text()


def test_with_our_consumer_it_goes_on_and_takes_the_next_message_up(
    redis_server: tuple[EmbeddedRedis, str], tmp_path: Path
) -> None:
    server, broker = redis_server
    with worker(tmp_path, broker, "tasks.consumer:SafeConsumer") as ours:
        release = ours.hold("first")

        restart(server)
        release.touch()
        ours.hold("second").touch()

        assert ours.process.poll() is None
        assert DEATH not in ours.log.read_text()
