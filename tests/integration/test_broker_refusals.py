"""A broker that answers no is told of by what it says, in `doctor`, at the start and in the log."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from fulfillment import broker
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.errors import ConfigurationError
from fulfillment.services.context import Context
from fulfillment.settings import Settings
from tests.conftest import environment_of
from tests.faults.proxy import HOST, Proxy
from tests.integration.test_cli import run

CANARY = "canary-password"


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield Path(server.start().removeprefix("redis+socket://"))
    server.stop()


@pytest.fixture
def client(socket: Path) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(socket)) as made:
        made.ping()
        yield made
        for setting, value in (("requirepass", ""), ("maxclients", 1000), ("maxmemory", 0)):
            made.config_set(setting, value)


@pytest.fixture
def url(socket: Path) -> Iterator[str]:
    with Proxy(socket) as proxy:
        yield f"redis://:{CANARY}@{HOST}:{proxy.port}/0"


def settings(url: str) -> Settings:
    return Settings(_env_file=None, broker_url=SecretStr(url))


Change = Callable[[redis.Redis], object]


@pytest.mark.parametrize(
    ("change", "database", "told", "is_final"),
    [
        (
            lambda client: client.config_set("requirepass", "another"),
            0,
            "does not accept this user, password or virtual host (AuthenticationError)",
            True,
        ),
        (
            lambda client: client.config_set("requirepass", CANARY),
            99,
            "has no database of this number (DB index is out of range)",
            True,
        ),
        (
            lambda client: client.config_set("maxclients", 1),
            0,
            "answers, and refuses: max number of clients reached",
            False,
        ),
    ],
    ids=["password", "database", "clients"],
)
def test_a_redis_that_turns_us_away_is_told_of_by_what_it_says(
    client: redis.Redis, url: str, change: Change, database: int, told: str, is_final: bool
) -> None:
    change(client)
    asked = settings(f"{url.removesuffix('/0')}/{database}")

    assert broker.complaint(asked) == f"it {told}"
    if not is_final:
        broker.require_access(asked)
        return
    with pytest.raises(ConfigurationError) as refused:
        broker.require_access(asked)
    assert str(refused.value) == f"FULFILLMENT_BROKER_URL: the broker {told}"


@pytest.mark.parametrize("process", ["worker", "intake"])
def test_a_database_that_redis_does_not_have_ends_a_process_with_one_line(
    context: Context, tmp_path: Path, socket: Path, process: str
) -> None:
    done = run(
        environment_of(context, tmp_path, f"redis+socket://{socket}?virtual_host=99"), process
    )

    (line,) = (done.stdout + done.stderr).splitlines()
    assert line == (
        "error: FULFILLMENT_BROKER_URL: the broker has no database of this number "
        "(DB index is out of range)"
    )
    assert done.returncode == 1


def test_what_redis_says_is_in_the_log_and_nobodys_secret(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError) as full:
        client.set("key", "value")
    client.config_set("maxmemory", 0)

    assert broker.reason_of(full.value).startswith("OutOfMemoryError: command not allowed")
    for error in (
        redis.ResponseError(f"redis://:{CANARY}@h refuses\nand more"),
        redis.ResponseError("x" * 10_000),
    ):
        assert len(broker.reason_of(error)) < 220
        assert CANARY not in broker.reason_of(error)
        assert "\n" not in broker.reason_of(error)
    assert broker.reason_of(redis.ConnectionError(CANARY)) == "ConnectionError"


def test_doctor_calls_nobody_dead_while_the_broker_is_ill(
    context: Context, tmp_path: Path, client: redis.Redis, socket: Path
) -> None:
    address = f"redis+socket://{socket}"
    client.config_set("maxmemory", 1)
    ill = run(environment_of(context, tmp_path, address), "doctor", "--json")
    client.config_set("maxmemory", 0)
    well = run(environment_of(context, tmp_path, address), "doctor", "--json")

    was, found = ({c["name"]: c for c in json.loads(done.stdout)} for done in (ill, well))
    assert was["broker"]["detail"].startswith("it takes no messages: ")
    for name in ("ticks", "intake", "relay"):
        assert was[name]["detail"] == "not seen yet: the broker may be why, see there"
        assert "dead" in found[name]["detail"]
    assert list(was)[-1] == "broker"
    assert found["broker"] == {"name": "broker", "ok": True, "detail": ""}


def test_queues_that_there_are_not_are_wrong_usage(context: Context, tmp_path: Path) -> None:
    done = run(
        environment_of(context, tmp_path, "redis://127.0.0.1:1/0"),
        "worker",
        "--queues",
        "celery, nonsense",
    )

    assert done.returncode == 2
    told = " ".join(done.stderr.replace("│", " ").split())
    assert "expected some of celery, fulfillment.chain, fulfillment.follow; found nonsense" in told
