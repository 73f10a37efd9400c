"""One statement that is a transaction by itself: kept at once, undone whole, never two of them."""

from collections.abc import Iterator

import psycopg
import pytest

from fulfillment.errors import SchemaOutdated, ServerUnreachable, TransactionConflict
from fulfillment.store import leases
from fulfillment.store.engine import Database
from tests.support import FakeClock


@pytest.fixture
def alone(database_url: str) -> Iterator[Database]:
    """Give a pool of one connection, so that whatever comes next gets the one from before."""
    database = Database(database_url, pool_size=1)
    yield database
    database.close()


def count_beats(database: Database) -> int:
    with database.transaction() as session:
        return int(session.scalar("SELECT count(*) FROM heartbeats"))


def run_twice(database: Database) -> None:
    with database.statement() as session:
        session.execute("SELECT 1")
        session.rows("SELECT 2")


def undo(database: Database, clock: FakeClock) -> None:
    with database.transaction() as session:
        leases.beat(session, "undone", clock.now())
        raise ZeroDivisionError


def assert_transactions_are_whole(database: Database, clock: FakeClock) -> None:
    with pytest.raises(ZeroDivisionError):
        undo(database, clock)
    assert count_beats(database) == 0


def test_it_is_kept_when_it_has_run(database: Database, alone: Database, clock: FakeClock) -> None:
    with alone.statement() as session:
        leases.beat(session, "test", clock.now())
        seen_meanwhile = count_beats(database)

    assert seen_meanwhile == 1
    assert count_beats(database) == 1


def test_a_second_statement_is_refused(alone: Database) -> None:
    with pytest.raises(RuntimeError, match="a second statement"):
        run_twice(alone)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM a_table_of_tomorrow", SchemaOutdated),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", TransactionConflict),
        ("SELECT pg_terminate_backend(pg_backend_pid())", ServerUnreachable),
        ("SELECT 1 / 0", psycopg.errors.DivisionByZero),
    ],
)
def test_after_an_error_the_connection_runs_whole_transactions_again(
    database: Database,
    alone: Database,
    clock: FakeClock,
    statement: str,
    expected: type[Exception],
) -> None:
    with pytest.raises(expected), alone.statement() as session:
        session.execute(statement)

    assert_transactions_are_whole(alone, clock)


def test_after_it_the_connection_runs_whole_transactions_again(
    database: Database, alone: Database, clock: FakeClock
) -> None:
    with alone.statement() as session:
        session.execute("SELECT 1")

    assert_transactions_are_whole(alone, clock)
