"""The embedded stack: its servers keep their data, its processes never outlive it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
from pydantic import SecretStr

from fulfillment.devstack import stack as stack_module
from fulfillment.devstack.configuration import (
    SIMULATED,
    claim_port,
    own_secrets,
    simulated_accounts,
    variables,
    wants_simulator,
    write_runtime_file,
)
from fulfillment.devstack.files import DirectoryLock, private_directory
from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.devstack.processes import Child, ProcessGroup
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.devstack.stack import CHILDREN, Stack, StackOptions
from fulfillment.errors import ConfigurationError, ProviderNotReached, ServerUnreachable
from fulfillment.providers.registry import build
from fulfillment.settings import RUNTIME_FILE, AccountSettings, Settings, load_settings
from fulfillment.simulator.app import running
from fulfillment.simulator.options import for_accounts
from schemas.enums import ProviderName

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); " + SLEEPER
PARENT_OF_ONE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"

SERVERS_AND_A_CHILD = """
import sys, time
from pathlib import Path
from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.devstack.processes import Child, ProcessGroup
from fulfillment.devstack.redis import EmbeddedRedis
data_dir = Path(sys.argv[1])
postgres, broker = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
group = ProcessGroup(data_dir)
urls = postgres.start(), broker.start()
group.start(Child("deaf", [sys.executable, "-c", sys.argv[2]], {}))
print(*urls, postgres.pid, broker.pid, group.pids["deaf"], flush=True)
time.sleep(600)
"""


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


def eventually(condition: Callable[[], Any], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for thread in threads for word in thread.read_text().split()]


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "data")
    yield server
    server.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "data")
    yield server
    server.stop()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    processes = ProcessGroup(tmp_path / "logs")
    yield processes
    processes.stop(grace_s=0.2)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without any setting of ours, and a directory without a `.env`."""
    for name in [name for name in os.environ if name.startswith("FULFILLMENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_postgres_18_listens_on_a_private_socket_only_and_syncs(postgres: EmbeddedPostgres) -> None:
    url = postgres.start()

    assert sql(url, "SHOW listen_addresses") == [("",)]
    assert sql(url, "SHOW fsync") == [("on",)]
    assert sql(url, "SHOW server_version")[0][0].startswith("18.")
    directory = Path(sql(url, "SHOW unix_socket_directories")[0][0])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    postgres.stop()
    assert not directory.exists()


def test_redis_listens_on_a_private_socket_only_and_appends(broker: EmbeddedRedis) -> None:
    path = broker.start().removeprefix("redis+socket://")

    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700


def test_what_redis_writes_down_is_its_owners_and_forgets_what_was_taken(
    tmp_path: Path, broker: EmbeddedRedis
) -> None:
    home = tmp_path / "data" / "redis"
    broker.start()
    broker.stop()
    (written,) = home.glob("*.aof")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    written.chmod(0o644)  # as versions of before left it

    path = broker.start().removeprefix("redis+socket://")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    with redis.Redis(unix_socket_path=path) as client:
        client.lpush("checkouts", "a trade token")
        eventually(lambda: b"a trade token" in written.read_bytes())
        client.rpop("checkouts")
        for _ in range(50):
            client.set("hints", b"x" * 100_000)
        client.delete("hints")
        eventually(lambda: b"a trade token" not in written.read_bytes())
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_servers_run_below_a_path_with_spaces_that_no_socket_could_have(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # as a home directory: closed to the user that root's PostgreSQL runs as
    data_dir = tmp_path / "with spaces, 'quotes' and %percent" / ("long" * 25)
    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
    try:
        assert sql(postgres.start(), "SELECT 1") == [(1,)]
        assert broker.start()
    finally:
        broker.stop()
        postgres.stop()


def test_a_killed_stack_leaves_no_process_and_its_successor_has_the_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    command = python(SERVERS_AND_A_CHILD, str(data_dir), DEAF)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stack:
        assert stack.stdout is not None
        url, broker_url, *pids = stack.stdout.readline().split()
        sql(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
            client.set("kept", "42")
        assert len(pids) == 3

        stack.kill()

    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
    try:
        assert sql(postgres.start(), "SELECT answer FROM kept") == [(42,)]
        path = broker.start().removeprefix("redis+socket://")
        with redis.Redis(unix_socket_path=path) as client:
            assert client.get("kept") == b"42"
        eventually(lambda: not any(is_alive(int(pid)) for pid in pids))
        sockets = [path.readlink() for path in data_dir.glob("*/socket")]
        assert Path(broker_url.removeprefix("redis+socket://")).parent not in sockets
        assert not Path(broker_url.removeprefix("redis+socket://")).parent.exists()
    finally:
        broker.stop()
        postgres.stop()


def test_a_killed_postgres_comes_back_at_the_same_address(postgres: EmbeddedPostgres) -> None:
    url = postgres.start()
    sql(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    before = postgres.pid
    assert before is not None

    os.kill(before, signal.SIGKILL)

    def answers() -> bool:
        try:
            return sql(url, "SELECT answer FROM kept") == [(42,)]
        except psycopg.OperationalError:
            return False

    eventually(lambda: postgres.pid not in (None, before) and answers())


def test_a_cluster_whose_creation_was_interrupted_is_made_again(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    unfinished = private_directory(tmp_path / "data/postgres/cluster.new")
    (unfinished / "PG_VERSION").write_text("18\n")

    assert sql(postgres.start(), "SELECT 1") == [(1,)]


def test_an_old_pid_file_whose_number_a_stranger_has_now_does_not_matter(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    postgres.start()
    postgres.stop()
    (tmp_path / "data/postgres/cluster/postmaster.pid").write_text(f"{os.getpid()}\n/x\n1\n5432\n")

    assert sql(postgres.start(), "SELECT 1") == [(1,)]


def test_data_of_another_postgres_version_is_named(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    private_directory(tmp_path / "data/postgres/cluster")
    (tmp_path / "data/postgres/cluster/PG_VERSION").write_text("17\n")

    with pytest.raises(ConfigurationError, match=r"PostgreSQL 18 .* found 17"):
        postgres.start()


def test_a_directory_is_of_one_stack_only(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    first.acquire()

    with pytest.raises(ConfigurationError, match=r"FULFILLMENT_DATA_DIR: .* in use"):
        second.acquire()

    first.release()
    second.acquire()
    second.release()


def test_a_directory_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigurationError, match=r"FULFILLMENT_DATA_DIR.*other users"):
        private_directory(tmp_path)


def test_a_child_that_dies_is_revived_after_growing_pauses(tmp_path: Path) -> None:
    reports: list[str] = []
    group = ProcessGroup(tmp_path, report=reports.append)
    try:
        group.start(Child("brief", python("import sys; sys.exit('no luck')"), {}))
        eventually(lambda: len(reports) == 2)
    finally:
        group.stop()

    assert "brief ended with exit code 1" in reports[0]
    assert reports[0].endswith("starts again in 0.5 s")
    assert reports[1].endswith("starts again in 1 s")
    assert group.last_line("brief") == "no luck"


def test_a_killed_child_is_revived_and_an_ended_one_is_not(group: ProcessGroup) -> None:
    for name in ("one", "other"):
        group.start(Child(name, python(SLEEPER), {}))
    before = group.pids["one"]

    group.kill("one")
    eventually(lambda: group.pids.get("one", before) != before)

    group.end("one")
    killed = group.pids["other"]
    group.kill("other")
    eventually(lambda: group.pids.get("other", killed) != killed)  # it had its turn as well
    assert "one" not in group.pids


def test_stop_ends_children_that_ignore_it_and_what_they_forked(group: ProcessGroup) -> None:
    group.start(Child("deaf", python(DEAF), {}))
    group.start(Child("parent", python(PARENT_OF_ONE, DEAF), {}))
    eventually(lambda: "up" in group.log_path("parent").read_text())
    eventually(lambda: "up" in group.log_path("deaf").read_text())
    pids = list(group.pids.values())
    forked = children_of(pids[1])
    assert forked

    started = time.monotonic()
    group.stop(grace_s=0.5)

    assert time.monotonic() - started < 5
    assert not any(is_alive(pid) for pid in pids)
    eventually(lambda: not any(is_alive(pid) for pid in forked))
    assert group.pids == {}


def test_a_childs_output_is_kept(group: ProcessGroup) -> None:
    group.start(Child("talker", python(SLEEPER), {}))

    eventually(lambda: group.log_path("talker").read_text() == "up\n")


def test_a_large_log_is_put_aside_at_start(group: ProcessGroup) -> None:
    private_directory(group.log_path("x").parent)
    with group.log_path("x").open("wb") as log:
        log.truncate(20_000_000)

    group.start(Child("x", python(SLEEPER), {}))

    assert group.log_path("x").stat().st_size < 1_000
    assert group.log_path("x").with_suffix(".log.1").stat().st_size == 20_000_000


def test_a_default_port_that_is_taken_gives_way_and_a_set_one_is_named() -> None:
    with socket.socket() as taken, ExitStack() as claims:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        free = claim_port(claims, "127.0.0.1", port, "FULFILLMENT_WEB_PORT", is_fixed=False)
        assert free > port
        named = "FULFILLMENT_WEB_HOST"
        with pytest.raises(ConfigurationError, match=f"{named}: cannot listen on 192.0.2.1"):
            claim_port(claims, "192.0.2.1", port, "x", is_fixed=False, of_host=named)
        with pytest.raises(ConfigurationError, match=f"FULFILLMENT_WEB_PORT.*{port}.*taken"):
            claim_port(claims, "127.0.0.1", port, "FULFILLMENT_WEB_PORT", is_fixed=True)


def test_two_stacks_that_start_at_once_choose_different_ports() -> None:
    with ExitStack() as one, ExitStack() as other:
        first = claim_port(one, "127.0.0.1", 0, "FULFILLMENT_WEB_PORT", is_fixed=True)
        second = claim_port(other, "127.0.0.1", first, "FULFILLMENT_WEB_PORT", is_fixed=False)

        assert first != second


def test_secrets_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"

    first = own_secrets(path, SIMULATED)

    assert own_secrets(path, SIMULATED) == first
    assert own_secrets(path) == first
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = Settings(data_dir=tmp_path, flower_basic_auth=SecretStr(first["flower_basic_auth"]))
    assert settings.flower_basic_auth
    assert first["encryption_keys"].startswith("k1:")
    assert len(first["encryption_keys"]) == len("k1:") + 44


def test_damaged_secrets_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")

    with pytest.raises(ConfigurationError, match=r"secrets\.json"):
        own_secrets(tmp_path / "secrets.json")


def test_variables_give_the_same_settings_again(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = AccountSettings(client_id="a", client_secret=SecretStr("q'\"\\ $X #"), slippage_bps=5)
    routes: dict[str, Any] = {"any": ("main", "backup"), "7": ("main",)}
    accounts = {"main": account, "backup": AccountSettings()}
    settings = Settings(data_dir=bare, claim_lease_s=7, accounts=accounts, routes=routes)

    for name, value in variables(settings).items():
        monkeypatch.setenv(name, value)

    assert load_settings() == settings


def own_credentials(names: Iterable[str]) -> dict[str, str]:
    kinds = ("client_id", "client_secret", "api_key")
    return {f"{name}_{kind}": f"{name}'s {kind} \"\\ #" for name in names for kind in kinds}


def test_other_commands_find_a_running_stack_and_its_successor_does_not_ask_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULFILLMENT_CLAIM_LEASE_S", "7")
    monkeypatch.setenv("FULFILLMENT_ACCOUNTS__OTHER__TRADE_WINDOW_S", "60")
    before = load_settings(data_dir=bare, for_new_stack=True)
    url, credentials = "http://127.0.0.1:8090", own_credentials(before.accounts)
    changes = {
        "database_url": SecretStr("postgresql://postgres@/x?host=/gone"),
        "web_port": 8083,
        "accounts": simulated_accounts(before.accounts, url, credentials),
    }
    stack = Settings(data_dir=bare).model_copy(update=changes)
    write_runtime_file(bare / RUNTIME_FILE, stack)

    assert load_settings(data_dir=bare) == stack

    fresh = load_settings(data_dir=bare, for_new_stack=True)
    assert fresh == before
    assert not fresh.database_url
    assert fresh.web_port == 8080
    assert "web_port" not in fresh.model_fields_set
    assert fresh.claim_lease_s == 7
    assert wants_simulator(fresh)


def test_each_account_is_pointed_at_the_simulator_of_its_provider() -> None:
    given = {**SIMULATED, "spare": AccountSettings(provider=ProviderName.SKINSBACK)}

    accounts = simulated_accounts(given, "http://sim", own_credentials(given))

    assert {name: (a.provider.value, a.url) for name, a in accounts.items()} == {
        "main": ("skinsnode", "http://sim"),
        "skinsback": ("skinsback", "http://sim/skinsback/api.php"),
        "skinslink": ("skinslink", "http://sim/skinslink/api/v1"),
        "spare": ("skinsback", "http://sim/spare/api.php"),
    }
    assert len({a.client_secret.get_secret_value() for a in accounts.values()}) == 4


def test_one_process_plays_every_account_with_a_wallet_of_its_own(bare: Path) -> None:
    own = own_credentials(SIMULATED)
    accounts = simulated_accounts(SIMULATED, "http://sim", own)
    settings = Settings(public_url="http://127.0.0.1:9", accounts=accounts)
    players = for_accounts(settings, port=0, items=3)
    with running(*players) as url, httpx.Client(trust_env=False, base_url=url) as client:
        client.post("/skinsback/_sim/wallet", json={"deltaCents": 5}).raise_for_status()
        away = {"fault": "outage", "path": "/api/v1/merchant/balance"}
        client.post("/skinslink/_sim/faults", json=away).raise_for_status()
        found = {}
        for name, account in simulated_accounts(SIMULATED, url, own).items():
            provider = build(name, account)
            try:
                found[name] = provider.wallet_mills()
            except ProviderNotReached:
                found[name] = -1
            provider.close()

    assert found == {"main": 10_000_000, "skinsback": 10_000_050, "skinslink": -1}
    hooks = [f"http://127.0.0.1:9/webhooks/{name}" for name in settings.accounts]
    assert [player.webhook_url for player in players] == hooks


def test_the_simulator_is_wanted_only_where_no_account_names_a_provider(bare: Path) -> None:
    def wanted(**values: Any) -> bool:
        return wants_simulator(
            Settings(data_dir=bare, accounts={"main": AccountSettings(**values)})
        )

    assert wanted(trade_window_s=60)
    assert not wanted(base_url="https://api.example.com")
    assert not wanted(client_id="a", client_secret=SecretStr("b"))


def test_up_answers_and_takes_all_its_children_along(bare: Path) -> None:
    command = [sys.executable, "-m", "fulfillment.cli", "up"]
    environment = {**os.environ, "FULFILLMENT_DATA_DIR": str(bare / "a stack")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stack:
        try:
            assert stack.stdout is not None
            web_url = next(line.split()[1] for line in stack.stdout if line.startswith("web "))
            answer = httpx.get(f"{web_url}/readyz", trust_env=False)
            doctor = [sys.executable, "-m", "fulfillment.cli", "doctor", "--json"]
            checks = json.loads(subprocess.check_output(doctor, env=environment))
            second = subprocess.run(command, env=environment, capture_output=True, text=True)
            children = children_of(stack.pid)
        finally:
            started = time.monotonic()
            stack.terminate()
            stack.communicate(timeout=20)

    assert answer.status_code == 200
    names = {check["name"] for check in checks if check["ok"]}
    assert names >= {"account main", "account skinsback", "account skinslink"}
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "in use by another running stack" in second.stderr
    assert stack.returncode == 0
    assert time.monotonic() - started < 10
    assert len(children) == len(["postgres", "redis", "worker", "worker", *CHILDREN]) - 1
    assert not any(is_alive(pid) for pid in children)
    assert not (bare / "a stack" / RUNTIME_FILE).exists()


def test_a_configured_server_that_is_not_there_is_waited_for_and_then_named(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(stack_module, "REMINDER_S", 0.2)
    said: list[str] = []
    url = SecretStr("postgresql://store:geheim@127.0.0.1:1/orders")
    settings = Settings(data_dir=bare / "data", database_url=url)

    with pytest.raises(ServerUnreachable, match=r"PostgreSQL.*FULFILLMENT_DATABASE_URL") as error:
        Stack(settings, StackOptions(report=said.append)).__enter__()

    assert any("waiting for PostgreSQL (FULFILLMENT_DATABASE_URL)" in line for line in said)
    assert "geheim" not in f"{said} {error.value}"
