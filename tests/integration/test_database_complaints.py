"""A database that does not let us do what we need: a line that says what it is, never a trace."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from fulfillment.errors import RightMissing, ServerUnreachable
from fulfillment.log import hide
from fulfillment.services.context import Context, register_accounts
from fulfillment.services.operations import check_readiness
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from tasks import base
from tasks.sweep import resume_stuck
from tests.conftest import MakeSettings, environment_of
from tests.integration.test_cli import run
from tests.integration.web_client import TWO_ACCOUNTS, error_of, serving
from tests.support import checkout

PASSWORD = "canary-password"
DENIED = "the database's user lacks a right: permission denied for table "


@contextmanager
def role(url: str, name: str, rights: str) -> Iterator[str]:
    """Give the address for another user, who is gone afterwards."""
    address = make_url(url).set(drivername="postgresql").render_as_string(False)
    user = sql.Identifier(name)
    with psycopg.connect(address, autocommit=True) as connection:
        login = "CREATE ROLE {} LOGIN PASSWORD {}"
        connection.execute(sql.SQL(login).format(user, sql.Literal(PASSWORD)))
        try:
            connection.execute(f"GRANT {rights} TO {name}".encode())
            yield make_url(url).set(username=name, password=PASSWORD).render_as_string(False)
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(user))


@pytest.fixture
def reader(database_url: str) -> Iterator[str]:
    """Give the address for a user who may read everything and change nothing."""
    with role(database_url, "only_reads", "pg_read_all_data") as url:
        yield url


@pytest.fixture
def environment(context: Context, tmp_path: Path, reader: str) -> dict[str, str]:
    found = environment_of(context, tmp_path, "redis://127.0.0.1:1/0")
    return found | {"FULFILLMENT_DATABASE_URL": reader}


@pytest.fixture
def restricted(context: Context, reader: str) -> Iterator[Context]:
    database = Database(reader)
    yield replace(context, database=database)
    database.close()


@pytest.mark.parametrize(
    "words",
    [
        ("orders",),
        ("reconcile",),
        ("checkout", "-"),
        ("accounts", "pause", "main", "--reason", "x"),
        ("accounts", "doubt"),
        ("updates", "replay", "--since", "2026-01-01"),
    ],
    ids=" ".join,
)
def test_a_command_whose_user_lacks_a_right_says_which_in_one_line(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    done = run(environment, *words, given=json.dumps(checkout()))

    assert (done.returncode, done.stderr) == (1, f"error: {DENIED}accounts\n")


def test_doctor_lists_the_rights_that_are_lacking(environment: dict[str, str]) -> None:
    done = run(environment, "doctor", "--json")

    assert done.returncode == 1
    (told,) = [each for each in json.loads(done.stdout) if each["name"] == "database rights"]
    assert not told["ok"]
    assert "INSERT on account_switches, accounts, " in told["detail"]
    assert "UPDATE on accounts, attempts, heartbeats, " in told["detail"]
    assert "SELECT" not in told["detail"]


def test_doctor_lists_the_sequences_that_may_not_be_used(
    context: Context, database_url: str, environment: dict[str, str]
) -> None:
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO no_numbers"
    with role(database_url, "no_numbers", "pg_monitor") as url:
        with context.database.transaction() as session:
            session.execute(grant)
        done = run(environment | {"FULFILLMENT_DATABASE_URL": url}, "doctor", "--json")
        with context.database.transaction() as session:
            session.execute("DROP OWNED BY no_numbers")

    (told,) = [each for each in json.loads(done.stdout) if each["name"] == "database rights"]
    assert "orders_id_seq" in told["detail"]
    assert "SELECT" not in told["detail"]


@pytest.mark.parametrize("option", ["?port=abc", "?canary=1", "?host=a,b&port=1,2,x"])
def test_an_address_with_options_that_mean_nothing_is_told_in_one_line(
    environment: dict[str, str], option: str
) -> None:
    url = f"postgresql://u:{PASSWORD}@/d{option}"

    done = run(environment | {"FULFILLMENT_DATABASE_URL": url}, "orders")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "FULFILLMENT_DATABASE_URL: expected only options that libpq knows" in line


@pytest.mark.parametrize("command", ["migrate", "doctor", "web", "intake"])
def test_a_host_that_no_name_can_be_is_told_in_one_line(
    environment: dict[str, str], command: str
) -> None:
    url = f"postgresql://u:{PASSWORD}@db..example:5432/d"

    done = run(environment | {"FULFILLMENT_DATABASE_URL": url}, command)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "FULFILLMENT_DATABASE_URL: expected a host" in line


def test_the_first_of_several_hosts_that_serves_is_used(database_url: str) -> None:
    url = make_url(database_url)
    there = url.query.get("host", url.host)
    port = url.query.get("port", url.port) or 5432
    login = f"{url.username}:{url.password}@" if url.password else f"{url.username}@"
    hosts = f"127.0.0.1:1,{quote(str(there), safe='')}:{port}"  # may be a socket's path

    database = Database(f"postgresql://{login}{hosts}/{url.database}")
    with database.transaction() as session:
        assert session.scalar("SELECT 1") == 1
    database.close()


def test_doctor_lists_what_a_user_of_another_database_cannot_even_read(
    database_url: str, environment: dict[str, str]
) -> None:
    with role(database_url, "only_connects", "pg_monitor") as url:
        done = run(environment | {"FULFILLMENT_DATABASE_URL": url}, "doctor", "--json")

    failed = {each["name"]: each["detail"] for each in json.loads(done.stdout) if not each["ok"]}
    assert failed["database"] == f"{DENIED}alembic_version"
    assert "SELECT on account_switches, accounts, " in failed["database rights"]


def test_a_task_whose_user_lacks_a_right_is_logged_in_one_line(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(base, "_context", None)

    with capture_logs() as logs:
        result = resume_stuck()

    assert result == {"failed": "RightMissing"}
    (line,) = logs
    assert (line["event"], line["reason"]) == ("task.failed", f"{DENIED}accounts")
    assert "exc_info" not in line


def test_web_answers_503_to_what_its_user_may_not_do_and_writes_no_trace(
    restricted: Context, make_settings: MakeSettings
) -> None:
    context = replace(restricted, settings=make_settings(**TWO_ACCOUNTS))
    with capture_logs() as logs, serving(context) as store:
        error_of(store.post(checkout()), 503)

    told = [line for line in logs if line["event"] == "web.database_error"]
    assert [(line["reason"], line["exc_info"]) for line in told] == [(f"{DENIED}orders", False)]


def test_a_right_that_is_granted_meanwhile_is_used(restricted: Context, context: Context) -> None:
    with pytest.raises(RightMissing):
        register_accounts(restricted)
    with context.database.transaction() as session:
        session.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO only_reads")

    register_accounts(restricted)


def test_a_secret_in_what_the_database_says_is_masked(context: Context) -> None:
    hide(["canary-in-a-name"])
    fail = "DO $$ BEGIN RAISE EXCEPTION 'no canary-in-a-name' USING ERRCODE = '42501'; END $$"
    with pytest.raises(RightMissing) as told, context.database.transaction() as session:
        session.execute(fail)

    assert str(told.value) == "the database's user lacks a right: no ***"


def test_a_migration_by_a_user_who_may_change_nothing_is_refused_in_one_line(
    database_url: str, reader: str
) -> None:
    with other_database(database_url) as name:
        database = Database(make_url(reader).set(database=name).render_as_string(False))
        try:
            with pytest.raises(RightMissing, match="permission denied for schema public"):
                migrate(database)
        finally:
            database.close()


@contextmanager
def other_database(url: str) -> Iterator[str]:
    address = make_url(url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(address, autocommit=True) as connection:
        name = f"{connection.info.dbname}_of_another"
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"username": "canary_user"}, "it refuses this user or password"),
        ({"database": "canary_db"}, "there is no such database"),
        ({"query": {"host": "127.0.0.1", "port": "1"}}, "nobody listens at its address"),
        ({"query": {"host": "/nowhere/canary"}}, "nobody listens at its address"),
        ({"query": {"host": "127.0.0.1", "sslmode": "canary"}}, "an option of its address"),
    ],
    ids=["user", "database", "port", "socket", "sslmode"],
)
def test_an_address_that_does_not_work_is_told_by_what_is_wrong_with_it(
    context: Context, database_url: str, changed: dict[str, str], kind: str
) -> None:
    url = make_url(database_url).set(password=PASSWORD)
    if "query" in changed:
        url = url.set(host=None, port=None)
    database = Database(url.set(**changed).render_as_string(False))  # type: ignore[arg-type]
    try:
        with pytest.raises(ServerUnreachable) as migrating:
            migrate(database)
        (told,) = check_readiness(replace(context, database=database))
    finally:
        database.close()

    assert f"(FULFILLMENT_DATABASE_URL): {kind}" in told.detail
    assert str(migrating.value) == told.detail
    assert "canary" not in told.detail


def test_a_role_that_has_all_its_connections_is_told_of(
    context: Context, database_url: str
) -> None:
    with role(database_url, "is_full", "pg_monitor") as url:
        with context.database.transaction() as session:
            session.execute("ALTER ROLE is_full CONNECTION LIMIT 0")
        database = Database(url)
        (told,) = check_readiness(replace(context, database=database))
        database.close()

    assert told.detail.endswith(": it has no connections left")
