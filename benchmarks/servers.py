"""The servers that rows run on: an embedded PostgreSQL, and a Redis and a RabbitMQ if they answer.

What is used on a server that is not ours is our own there and removed again: a Redis database that
was empty, a virtual host of RabbitMQ.
"""

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis
from psycopg import sql
from sqlalchemy.engine import make_url

from benchmarks import machine
from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.devstack.redis import EmbeddedRedis

HOST = "127.0.0.1"
REDIS_PORT, RABBITMQ_PORT = 6379, 5672
REDIS_DATABASES = range(15, 9, -1)


@dataclass(frozen=True)
class Broker:
    """A broker with one place for the product and one for the baselines."""

    name: str
    url: str
    baseline_url: str
    pid: int | None


class Servers:
    """Everything is started at first use and ended with the `with` block."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._postgres = EmbeddedPostgres(data_dir)
        self._address = ""
        self._brokers: dict[str, Broker] = {}
        self._exit = ExitStack()

    def __enter__(self) -> "Servers":
        self._exit.callback(self._postgres.stop)
        self._address = self._postgres.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def postgres_pid(self) -> int | None:
        return self._postgres.pid

    def database_url(self, name: str) -> str:
        """Give the address of a database, whether it exists or not."""
        address = make_url(self._address).set(drivername="postgresql", database=name)
        return address.render_as_string(hide_password=False)

    def has_database(self, name: str) -> bool:
        with psycopg.connect(self.database_url("postgres")) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            return connection.execute(query, [name]).fetchone() is not None

    def fresh_database(self, name: str, schema: str = "") -> str:
        """Make a database anew; give its address."""
        with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
            identifier = sql.Identifier(name)
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier)
            )
            connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
            # So that no row pays for what an earlier one wrote.
            connection.execute("CHECKPOINT")
        if schema:
            with psycopg.connect(self.database_url(name), autocommit=True) as connection:
                connection.execute(schema)
        return self.database_url(name)

    def broker(self, name: str) -> Broker | None:
        """Give "redis" (embedded where none answers) or "rabbitmq" (None where none answers)."""
        if name not in self._brokers:
            made = self._exit.enter_context(_redis(self.data_dir) if name == "redis" else _rabbit())
            if made is None:
                return None
            self._brokers[name] = made
        return self._brokers[name]


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def _redis(data_dir: Path) -> Iterator[Broker | None]:
    if not _answers(REDIS_PORT):
        server = EmbeddedRedis(data_dir)
        url = server.start()
        try:
            yield Broker("redis", f"{url}?virtual_host=0", f"{url}?virtual_host=1", server.pid)
        finally:
            server.stop()
        return
    clients = [redis.Redis(HOST, REDIS_PORT, db=number) for number in REDIS_DATABASES]
    empty = [number for number, c in zip(REDIS_DATABASES, clients, strict=True) if not c.dbsize()]
    try:
        first, second = empty[:2]
        server_url = f"redis://{HOST}:{REDIS_PORT}"
        pid = machine.listener(REDIS_PORT)
        yield Broker("redis", f"{server_url}/{first}", f"{server_url}/{second}", pid)
    finally:
        for number, client in zip(REDIS_DATABASES, clients, strict=True):
            if number in empty[:2]:
                client.flushdb()
            client.close()


@contextmanager
def _rabbit() -> Iterator[Broker | None]:
    names = [f"fulfillment_bench_{uuid.uuid4().hex[:8]}" for _ in range(2)]
    if not _answers(RABBITMQ_PORT) or not all(_control("add_vhost", name) for name in names):
        yield None
        return
    try:
        for name in names:
            _control("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        server_url = f"amqp://guest:guest@{HOST}:{RABBITMQ_PORT}"
        pid = machine.listener(RABBITMQ_PORT)
        yield Broker("rabbitmq", f"{server_url}/{names[0]}", f"{server_url}/{names[1]}", pid)
    finally:
        for name in names:
            _control("delete_vhost", name)


def _control(*command: str) -> bool:
    program = shutil.which("rabbitmqctl")
    if program is None:
        return False
    result = subprocess.run([program, *command], capture_output=True, check=False, timeout=60)
    return result.returncode == 0
