"""One running stack for the tests that leave it healthy; real servers where they are named."""

import uuid
from collections.abc import Iterator

import httpx
import psycopg
import pytest
import redis
from psycopg import sql
from sqlalchemy.engine import make_url

from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.devstack.stack import CHILDREN, StackOptions
from tests.acceptance.driver import SPEED, Driver, running_stack, until
from tests.servers import own_vhost, server


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Run the embedded stack, Flower included."""
    options = StackOptions(children=CHILDREN, simulator_speed=SPEED, report=lambda line: None)
    with running_stack(tmp_path_factory.mktemp("stack"), options) as driver:
        # The product is ready without Flower, which only watches.
        until("Flower", lambda: _answers(driver.stack.flower_url))
        yield driver


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, trust_env=False).status_code)
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def empty_database() -> Iterator[str]:
    address = make_url(server("DATABASE_URL")).set(drivername="postgresql")
    admin = address.render_as_string(hide_password=False)
    name = f"fulfillment_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield address.set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        connection.execute(drop)


@pytest.fixture(scope="module")
def broker_url() -> Iterator[str]:
    """Give a virtual host of this run's own where we may make one, else the one that is named.

    In a shared one, two runs at once take each other's messages.
    """
    with own_vhost() as (url, _):
        yield url


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """Give an empty database of a real Redis; it is emptied again."""
    url = server("REDIS_URL")
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Give the address of a broker that nobody else uses."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("broker_url")
        return
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    url = server.start()
    yield f"{url}?virtual_host=3"
    server.stop()
