"""One worker process without a supervisor: what it outlives, and with which code it ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import celery
import kombu
import pytest
import redis
from sqlalchemy.engine import make_url

from celeryconfig import FOLLOW
from fulfillment.broker import app
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.services.context import Context
from schemas.messages import RECEIVE
from tests.conftest import environment_of
from tests.faults.proxy import HOST, Proxy
from tests.servers import own_vhost, rabbitmqctl
from tests.support import checkout, rows, until

WRONG = "canary-wrong-password"
DEATH = "Unrecoverable error"
#: Of one closed connection not every worker died.
ROUNDS = 4
OURS = ("-m", "fulfillment.cli")
#: The same with a bug that ends it as soon as it would consume.
BROKEN = """
from fulfillment.cli import main
from tasks.consumer import SafeConsumer

def start(consumer):
    raise TypeError("planted")

SafeConsumer.start = start
main()
"""


@pytest.fixture(scope="module")
def vhost() -> Iterator[tuple[str, str]]:
    """Give the address and the name of a virtual host of RabbitMQ that is ours alone."""
    with own_vhost() as (url, name):
        if not make_url(url).drivername.startswith("amqp"):
            pytest.skip("FULFILLMENT_TEST_BROKER_URL is no RabbitMQ's")
        if not name:
            pytest.skip("rabbitmqctl cannot be run here, or may make no virtual host")
        yield url, name


class Worker:
    """A worker process, what it says, and a store in Python that sends it checkouts."""

    def __init__(
        self, context: Context, home: Path, broker_url: str, program: Sequence[str]
    ) -> None:
        self.context = context
        self.log = home / "worker.log"
        self.store = celery.Celery("store", broker=broker_url, set_as_current=False)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "worker"],
                env=environment_of(context, home, broker_url),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def takes_a_checkout(self) -> bool:
        """Send a checkout and wait until it is stored; say no where the process ends before."""
        event = checkout()
        self.store.send_task(RECEIVE, [event], queue="celery")
        query = "SELECT 1 FROM orders WHERE external_id = %(name)s"
        until(
            lambda: (
                self.process.poll() is not None
                or rows(self.context, query, name=event["externalId"])
            )
        )
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.store.close()


@contextmanager
def worker(
    context: Context, home: Path, broker_url: str, program: Sequence[str] = OURS
) -> Iterator[Worker]:
    made = Worker(context, home, broker_url, program)
    try:
        yield made
    finally:
        made.end()


def test_a_worker_whose_connections_rabbitmq_closes_lives_and_takes_the_next_checkout(
    context: Context, tmp_path: Path, vhost: tuple[str, str]
) -> None:
    url, name = vhost
    with worker(context, tmp_path, url) as ours:
        assert ours.takes_a_checkout(), ours.said
        for _ in range(ROUNDS):
            said = rabbitmqctl("close_all_connections", "--vhost", name, "a test")
            assert said is not None
            assert ours.takes_a_checkout(), ours.said

        assert "CONNECTION_FORCED" in ours.said
        assert DEATH not in ours.said


def test_a_worker_that_is_told_to_end_ends_with_0_and_one_that_dies_of_an_error_with_1(
    context: Context, tmp_path: Path, broker: str
) -> None:
    with worker(context, tmp_path, broker) as told:
        assert told.takes_a_checkout(), told.said
        told.process.send_signal(signal.SIGTERM)
        assert told.process.wait(20) == 0, told.said
    with worker(context, tmp_path, broker, ("-c", BROKEN)) as broken:
        assert broken.process.wait(20) == 1, broken.said

    assert DEATH in broken.said


@pytest.fixture
def hangups() -> Iterator[None]:
    """Let processes end at a hangup although these tests may run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
def test_a_worker_that_is_hung_up_on_ends_as_at_sigterm_and_says_nothing_else(
    context: Context, tmp_path: Path, broker: str
) -> None:
    """Celery would execute `python fulfillment`, which there is not."""
    with worker(context, tmp_path, broker) as ours:
        assert ours.takes_a_checkout(), ours.said
        ours.process.send_signal(signal.SIGHUP)
        assert ours.process.wait(20) == 0, ours.said

    assert "Warm shutdown" in ours.said
    assert "Restarting" not in ours.said


def test_a_worker_that_ignores_a_hangup_goes_on(
    context: Context, tmp_path: Path, broker: str
) -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    program = ("-c", f"{ignoring} from fulfillment.cli import main; main()")
    with worker(context, tmp_path, broker, program) as ours:
        assert ours.takes_a_checkout(), ours.said
        ours.process.send_signal(signal.SIGHUP)

        assert ours.takes_a_checkout(), ours.said


@pytest.mark.usefixtures("hangups")
def test_beat_ends_with_0_when_it_is_hung_up_on(
    context: Context, tmp_path: Path, broker: str
) -> None:
    environment = environment_of(context, tmp_path, broker)
    with kombu.Connection(broker) as connection:
        ticks = app.amqp.queues[FOLLOW](connection.default_channel)
        ticks.declare()
        ticks.purge()
        beat = subprocess.Popen([sys.executable, *OURS, "beat"], env=environment)
        try:
            until(lambda: ticks.get(no_ack=True) or beat.poll() is not None)
            beat.send_signal(signal.SIGHUP)
            assert beat.wait(20) == 0
        finally:
            beat.kill()
            beat.wait()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[tuple[str, redis.Redis]]:
    """Give the address of a Redis that is ours alone, and a client of it."""
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    with redis.Redis(unix_socket_path=url.removeprefix("redis+socket://")) as client:
        yield url, client
    server.stop()


#: What makes a Redis refuse whatever writes to it, by setting.
REFUSING = {"min-replicas-to-write": 1, "maxmemory": 1}


@pytest.mark.parametrize("setting", REFUSING)
def test_a_worker_that_comes_to_a_redis_without_writes_waits_and_then_takes_the_next_checkout(
    context: Context, tmp_path: Path, own_redis: tuple[str, redis.Redis], setting: str
) -> None:
    url, client = own_redis
    client.config_set(setting, REFUSING[setting])
    with worker(context, tmp_path, url) as ours:
        until(lambda: ours.said.count("Trying again in") > 1 or ours.process.poll() is not None)
        tries = [line for line in ours.said.splitlines() if "Cannot connect" in line]
        client.config_set(setting, 0)

        assert ours.takes_a_checkout(), ours.said

    assert len(tries) < 4
    assert "Traceback" not in ours.said


def test_a_worker_whose_redis_becomes_a_replica_waits_and_then_takes_the_next_checkout(
    context: Context, tmp_path: Path, own_redis: tuple[str, redis.Redis]
) -> None:
    url, client = own_redis
    with worker(context, tmp_path, url) as ours:
        assert ours.takes_a_checkout(), ours.said
        until(lambda: not client.hlen("unacked"))
        client.replicaof("127.0.0.1", "1")  # what waits is told `UNBLOCKED`
        until(lambda: "Trying again in" in ours.said or ours.process.poll() is not None)
        client.replicaof("NO", "ONE")

        assert ours.takes_a_checkout(), ours.said

    assert DEATH not in ours.said


@pytest.fixture(params=["redis", "rabbitmq"])
def closed_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the address of a broker, with a password that is not its own."""
    if request.param == "rabbitmq":
        url, _ = request.getfixturevalue("vhost")
        yield make_url(url).set(password=WRONG).render_as_string(hide_password=False)
        return
    server = EmbeddedRedis(tmp_path)
    socket = server.start().removeprefix("redis+socket://")
    client = redis.Redis(unix_socket_path=socket)
    client.config_set("requirepass", "another")
    client.close()
    with Proxy(Path(socket)) as proxy:
        yield f"redis://:{WRONG}@{HOST}:{proxy.port}/0"
    server.stop()


@pytest.mark.parametrize("process", ["worker", "beat", "flower", "intake"])
def test_a_broker_that_refuses_the_password_is_told_in_one_line_that_does_not_hold_it(
    context: Context, tmp_path: Path, closed_broker: str, process: str
) -> None:
    login = {"FULFILLMENT_FLOWER_BASIC_AUTH": "admin:canary-login"}
    done = subprocess.run(
        [sys.executable, *OURS, process],
        env=environment_of(context, tmp_path, closed_broker) | login,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("error: FULFILLMENT_BROKER_URL: ")
    assert "canary" not in line
    assert done.returncode == 1
