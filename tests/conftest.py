"""Fixtures of all tests: one PostgreSQL a session, empty tables and a clock of its own a test."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlmodel import SQLModel

from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.providers.base import Provider
from fulfillment.services.context import Context, register_accounts
from fulfillment.settings import PREFIX, Settings, load_settings
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from fulfillment.store.sealing import Seal, generate_key
from tests import support
from tests.support import FakeClock, FakeProvider, Simulator, fixed_jitter

CLIENT_ID = "client_test_4242"
SECRET = "cs_test_7f3a9c"
ENCRYPTION_KEYS = f"test:{generate_key()}"
#: What tests themselves are told by; everything else of the outer shell must not reach them.
TEST_PREFIX = f"{PREFIX}TEST_"
_MEASURED = "seconds: "
TESTS = Path(__file__).parent
#: Stacks of a session; `ground` is either of the ones that may be broken.
_SHARED = ("stack", "ground")
#: Folders of tests, and files, by how long a test in them takes.
_DURATION = ("faults", "acceptance", "integration", "contract", "unit", "test_architecture.py")


def environment_of(context: Context, home: Path, broker_url: str) -> dict[str, str]:
    """Give what a process of ours is told that works on the context's database."""
    values = {
        "DATABASE_URL": context.settings.database_url.get_secret_value(),
        "BROKER_URL": broker_url,
        "DATA_DIR": str(home),
        "ENCRYPTION_KEYS": ENCRYPTION_KEYS,
        "API_TOKEN": "test-api-token",
        "ACCOUNTS__MAIN__PROVIDER": "skinsnode",
        "ACCOUNTS__MAIN__BASE_URL": "http://127.0.0.1:9",
        "ACCOUNTS__MAIN__CLIENT_ID": CLIENT_ID,
        "ACCOUNTS__MAIN__CLIENT_SECRET": SECRET,
    }
    return {**os.environ, **{f"{PREFIX}{name}": value for name, value in values.items()}}


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a file's tests run in one process, those of a shared stack too; the longest first."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        shared = (name for name in _SHARED if name in names)
        group = next(shared, str(item.path.relative_to(TESTS)))
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _DURATION.index(item.path.relative_to(TESTS).parts[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pair of pytest and xdist that would share out tests of one group."""
    if getattr(session.config.option, "loadgroup", False):
        loose = [item.nodeid for item in session.items if "@" not in item.nodeid]
        if loose:
            raise pytest.UsageError(f"{len(loose)} tests are in no group: use an older pytest")


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a database of this session's own, with the tables in it."""
    server_url = os.environ.get(f"{TEST_PREFIX}DATABASE_URL")
    if server_url:
        yield from _database_on(server_url)
        return
    server = EmbeddedPostgres(tmp_path_factory.mktemp("stack"))
    url = server.start()
    try:
        _prepare(url)
        yield url
    finally:
        server.stop()


def _database_on(server_url: str) -> Iterator[str]:
    server = make_url(server_url).set(drivername="postgresql")
    address = server.render_as_string(hide_password=False)
    name = f"fulfillment_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = server.set(drivername="postgresql+psycopg", database=name)
    try:
        _prepare(url.render_as_string(hide_password=False))
        yield url.render_as_string(hide_password=False)
    finally:
        with psycopg.connect(address, autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def _prepare(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


@pytest.fixture(scope="session")
def shared_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=24)
    event.listen(database.engine, "connect", _wait_for_no_disk)
    yield database
    database.close()


def _wait_for_no_disk(connection: Any, record: Any) -> None:
    """Let commits return at once: no test pulls the plug of this server."""
    del record
    connection.execute("SET synchronous_commit = off")
    connection.commit()


def empty_tables(database: Database) -> None:
    names = enumerate(SQLModel.metadata.tables)
    deletes = ", ".join(f"t{n} AS (DELETE FROM {name})" for n, name in names)
    with database.transaction() as session:
        # Several times faster than TRUNCATE, which makes every table's file anew; the triggers
        # that keep the logs append-only, and foreign keys, are off for that.
        session.execute("SET LOCAL session_replication_role = replica")
        session.execute(f"WITH {deletes} SELECT")


@pytest.fixture
def database(shared_database: Database) -> Database:
    """Give the database with empty tables."""
    empty_tables(shared_database)
    return shared_database


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider() -> FakeProvider:
    """Give the provider in memory that `context` buys from."""
    return FakeProvider()


MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(database_url: str, tmp_path: Path) -> MakeSettings:
    """Build settings that depend on nothing outside; `main={...}` changes the account."""

    def make(
        base_url: str = "http://127.0.0.1:9", main: dict[str, Any] | None = None, **changes: Any
    ) -> Settings:
        account = {
            "provider": "skinsnode",
            "base_url": base_url,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "request_timeout_s": 5.0,
        }
        values: dict[str, Any] = {
            "database_url": database_url,
            "data_dir": tmp_path,
            "public_url": "http://127.0.0.1:9",
            "api_token": "test-api-token",
            "encryption_keys": ENCRYPTION_KEYS,
            "accounts": {"main": account | (main or {})},
        }
        return load_settings(_env_file=None, **values | changes)

    return make


MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(
    database: Database, clock: FakeClock, make_settings: MakeSettings
) -> Iterator[MakeContext]:
    """Build contexts on the empty tables: `provider` in memory, or `base_url` of a real one."""
    made: list[Provider] = []

    def make(provider: Provider | None = None, **changes: Any) -> Context:
        settings = make_settings(**changes)
        providers = dict.fromkeys(settings.accounts, provider) if provider else {}
        context = Context(
            settings=settings,
            database=database,
            seal=Seal(settings.encryption_keys.get_secret_value()),
            clock=clock,
            jitter=fixed_jitter,
            _providers={name: each for name, each in providers.items() if each},
        )
        register_accounts(context)
        made.extend(context.provider(name) for name in settings.accounts)
        return context

    yield make
    for each in made:
        each.close()


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give what services need, with the account `main` at the provider in memory."""
    return make_context(provider)


@pytest.fixture
def simulated(make_context: MakeContext, simulator: Simulator) -> Context:
    """Give what services need, with the account `main` at the simulator."""
    return make_context(base_url=simulator.url, main={"request_timeout_s": 1.5})


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[Simulator]:
    options = SimulatorOptions(
        client_id=CLIENT_ID,
        client_secret=SECRET,
        port=0,
        items=20,
        reusable_items=True,
        default_scenario="webhooks_lost",
    )
    with running(options) as url:
        side_door = Simulator(url, CLIENT_ID, SECRET)
        yield side_door
        side_door.close()


@pytest.fixture
def simulator(simulator_process: Simulator) -> Iterator[Simulator]:
    """Give the simulator with a full wallet, its caches outlived; items and options come back."""
    switches = simulator_process.ask("GET", "/options")
    items = simulator_process.ask("GET", "/items?limit=100")["items"]
    simulator_process.set_balance(10_000_000)
    yield simulator_process
    simulator_process.ask("DELETE", "/faults")
    simulator_process.ask("POST", "/options", **switches)
    for item in items:
        path = f"/items/{item['id']}"
        simulator_process.ask("PUT", path, price=item["price"], available=item["available"])


@pytest.fixture
def checkout() -> Callable[..., dict[str, Any]]:
    """Write checkout events; see `tests.support.checkout`."""
    return support.checkout


@pytest.fixture
def trade_url() -> str:
    return support.TRADE_URL


@pytest.fixture
def note_s(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Note how long something took; the run's summary shows it."""
    return lambda what, seconds: record_property(f"{_MEASURED}{what}", round(seconds, 2))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    measured: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            if name.startswith(_MEASURED) and report.when == "call":
                measured.setdefault(name.removeprefix(_MEASURED), []).append(value)
    if measured:
        terminalreporter.section("measured, in seconds")
    for what, values in measured.items():
        terminalreporter.write_line(f"{what}: {', '.join(map(str, sorted(values)))}")
