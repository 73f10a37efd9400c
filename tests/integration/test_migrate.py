"""`fulfillment migrate` on a schema of another version: a later one's serves, others are named."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from fulfillment.errors import SchemaIncomplete, SchemaUnknown
from fulfillment.services.context import Context
from fulfillment.services.operations import check_readiness
from fulfillment.store import schema
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from tests.conftest import environment_of
from tests.faults.pool import database_on
from tests.integration.test_cli import run
from tests.support import again, receive_one, rows

#: The version after ours.
LATER = f"{int(schema.HEAD) + 1:04}"
SET = "UPDATE alembic_version SET version_num = %(to)s RETURNING version_num"


@pytest.fixture
def others(context: Context) -> Iterator[Context]:
    """Give a context whose database says afterwards again what it is."""
    yield context
    rows(context, SET, to=schema.HEAD)


def checks_of(context: Context) -> dict[str, bool]:
    return {check.name: check.is_ok for check in check_readiness(context)}


@pytest.mark.parametrize("revision", [LATER, "9999"])
def test_the_schema_of_a_later_version_is_left_as_it_is_and_serves(
    others: Context, revision: str
) -> None:
    rows(others, SET, to=revision)

    assert migrate(others.database) is False
    assert checks_of(others)["schema"]
    assert [row["version_num"] for row in rows(others, "TABLE alembic_version")] == [revision]


def test_the_command_says_so_and_ends_well(others: Context, tmp_path: Path) -> None:
    environment = environment_of(others, tmp_path, "")
    before = run(environment, "migrate")
    rows(others, SET, to=LATER)

    after = run(environment, "migrate")

    assert (before.returncode, before.stderr) == (0, "the schema is up to date\n")
    told = "the schema is newer than this version: it serves as it is, nothing to do\n"
    assert (after.returncode, after.stderr) == (0, told)


@pytest.mark.parametrize("revision", ["abc", "0000", "00990", "v23"])
def test_a_revision_that_no_version_has_made_is_named_and_does_not_count_as_current(
    others: Context, revision: str
) -> None:
    rows(others, SET, to=revision)

    with pytest.raises(SchemaUnknown, match=f"'{revision}'"):
        migrate(others.database)

    assert not checks_of(others)["schema"]


def test_a_schema_that_nothing_is_known_of_is_told_in_one_line(
    others: Context, tmp_path: Path
) -> None:
    rows(others, SET, to="abc")

    done = run(environment_of(others, tmp_path, ""), "migrate")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the database's schema has the revision 'abc', ")


@pytest.fixture
def foreign(database_url: str) -> Iterator[str]:
    """Give a database of somebody else's."""
    with database_on(database_url) as engine:
        url = engine.url
        engine.dispose()
        with psycopg.connect(
            url.set(drivername="postgresql").render_as_string(False)
        ) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        yield url.render_as_string(False)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ("CREATE TABLE orders (id int)", 'it has its own: relation "orders" already exists'),
        ("CREATE TABLE alembic_version AS SELECT 7 AS version_num", "the revision '7'"),
        ("CREATE TABLE alembic_version AS SELECT 'x' AS other", "the revision 'None'"),
        (
            "CREATE TABLE alembic_version AS SELECT unnest(ARRAY['0030', '0003']) AS version_num",
            "the revision '0003 and 0030'",
        ),
    ],
    ids=["orders", "number", "column", "two"],
)
def test_the_database_of_another_application_is_left_as_it_is(
    foreign: str, context: Context, tmp_path: Path, tables: str, told: str
) -> None:
    address = make_url(foreign).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(address) as connection:
        connection.execute(tables)
    environment = environment_of(context, tmp_path, "") | {"FULFILLMENT_DATABASE_URL": foreign}

    done = run(environment, "migrate")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert told in line
    with psycopg.connect(address) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() or (0,)
    assert count == 1


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        ("0001", 'relation "'),
        ("0005", 'relation "'),
        ("0021", 'relation "'),
        (schema.HEAD, "no account_switches, accounts, "),
        (LATER, "no account_switches, accounts, "),
        ("0100", "no account_switches, accounts, "),
    ],
)
def test_another_applications_revision_that_looks_like_ours_is_told_in_one_line(
    foreign: str, context: Context, tmp_path: Path, revision: str, told: str
) -> None:
    """Others number their migrations as well."""
    address = make_url(foreign).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32))")
        connection.execute("INSERT INTO alembic_version VALUES (%s)", (revision,))
    environment = environment_of(context, tmp_path, "") | {"FULFILLMENT_DATABASE_URL": foreign}

    done = run(environment, "migrate")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the database's schema has a revision that looks like ours, and ")
    assert told in line
    with psycopg.connect(address) as connection:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        tables = connection.execute(query).fetchall()
    assert (found, tables) == ([(revision,)], [("alembic_version",)])


def test_who_was_overdue_and_watched_no_more_is_looked_at_once(
    others: Context,
) -> None:
    placed = receive_one(others)
    rows(others, SET, to="0022")
    overdue = (
        "UPDATE orders SET status = 'sent', overdue = true, trade_deadline_at = %(at)s, "
        "next_watch_at = NULL RETURNING id"
    )
    rows(others, overdue, at=others.now())

    migrate(others.database)

    at = again(others, placed).next_watch_at
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("revision", [schema.HEAD, LATER])
def test_a_table_that_was_lost_is_named(database_url: str, revision: str) -> None:
    with database_on(database_url) as engine:
        url = engine.url.render_as_string(False)
        database = Database(url)
        with database.transaction() as session:
            session.execute("DROP TABLE invariants")
            session.execute("UPDATE alembic_version SET version_num = %(to)s", {"to": revision})
        with pytest.raises(SchemaIncomplete, match=r"\(no invariants\)"):
            migrate(database)
        database.close()


def test_nothing_is_taken_back_from_a_schema_that_a_later_version_made(others: Context) -> None:
    rows(others, SET, to=LATER)

    with pytest.raises(SchemaUnknown):
        migrate(others.database, "0021")
