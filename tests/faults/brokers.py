"""What a test may do to a broker, the same on Redis and on RabbitMQ."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import redis

from fulfillment.devstack.redis import EmbeddedRedis
from schemas.messages import CHECKOUT_KEY, STORE_EXCHANGE
from tests.acceptance.driver import until
from tests.servers import rabbitmqctl

CHAIN, FOLLOW, INTAKE = "fulfillment.chain", "fulfillment.follow", "celery"


class Broker(ABC):
    """A broker that a test has to itself, reached beside the proxy."""

    name: str

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def wipe(self) -> None:
        """Lose every message."""

    @abstractmethod
    def cut_clients(self) -> None:
        """Close every connection from the server's side."""

    def publish(self, body: Any, queue: str = CHAIN, **more: Any) -> None:
        """Put a message into a queue of our workers' as a stranger would."""
        with kombu.Connection(self.url) as connection:
            connection.Producer().publish(body, exchange="", routing_key=queue, **more)

    def send_checkout(self, event: dict[str, Any]) -> None:
        """Publish a checkout to the store's exchange."""
        exchange = kombu.Exchange(STORE_EXCHANGE, type="topic", durable=True)
        with kombu.Connection(self.url) as connection:
            producer = connection.Producer(exchange=exchange)
            producer.publish(event, routing_key=CHECKOUT_KEY, declare=[exchange])


class OwnRedis(Broker):
    """The embedded Redis, revived when it dies."""

    name = "Redis"

    def __init__(self, server: EmbeddedRedis, url: str) -> None:
        super().__init__(url)
        self.server = server
        self.client = redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))

    def wipe(self) -> None:
        self.client.flushall()

    def cut_clients(self) -> None:
        self.client.client_kill_filter(_type="normal", skipme=True)
        self.client.client_kill_filter(_type="pubsub", skipme=True)

    def restart(self) -> None:
        """Kill it, losing at most its last second; return when it answers again."""
        pid = self.server.pid
        assert pid is not None, "Redis does not run"
        os.kill(pid, signal.SIGKILL)
        until("Redis again", lambda: self.server.pid not in (None, pid) and self._answers())

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    @contextmanager
    def full(self, policy: str = "noeviction") -> Iterator[None]:
        """Let it have no memory left while the block lasts; `policy` says what it does then."""
        self.client.config_set("maxmemory-policy", policy)
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)
            self.client.config_set("maxmemory-policy", "noeviction")


class RealRabbitMQ(Broker):
    """A virtual host of a RabbitMQ that others use too."""

    name = "RabbitMQ"

    def __init__(self, url: str, vhost: str) -> None:
        super().__init__(url)
        self._vhost = vhost

    def wipe(self) -> None:
        with kombu.Connection(self.url) as connection:
            for name in (CHAIN, FOLLOW, INTAKE):
                kombu.Queue(name, channel=connection.default_channel).purge()

    def cut_clients(self) -> None:
        assert self._vhost, "the virtual host is not ours alone"
        said = rabbitmqctl("close_all_connections", "--vhost", self._vhost, "a test")
        assert said is not None
