"""The schema changes under running processes: what old code meets, and what new code meets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from fulfillment.store import schema
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from schemas.tables import OrderRow
from tests.acceptance.driver import until
from tests.faults.ground import Ground

#: Lacks a column of orders that the code reads; what came after is taken back with it.
BEFORE = "0009"


@pytest.fixture
def ground(redis_ground: Ground) -> Ground:
    return redis_ground


@contextmanager
def database(ground: Ground) -> Iterator[Database]:
    """Give the database as its owner sees it."""
    url = ground.driver.stack.settings.database_url.get_secret_value()
    made = Database(url)
    try:
        yield made
    finally:
        made.close()


def test_a_migration_that_adds_disturbs_no_process_of_the_code_before_it(ground: Ground) -> None:
    """What the next version's migration may do, under traffic of this one with warm statements."""
    names = sorted(OrderRow.metadata.tables)
    crashes = ground.driver.logs().count("task.crashed")
    ground.send(10)
    with ground.flow(60, gap_s=0.02) as flow:
        ground.until_busy()
        for table in names:
            ground.sql(f"ALTER TABLE {table} ADD COLUMN of_the_next_version text DEFAULT 'x'")
        ground.sql("CREATE TABLE of_the_next_version (id bigint PRIMARY KEY)")
        ground.sql("CREATE INDEX CONCURRENTLY of_the_next ON orders (of_the_next_version)")
        ground.sql("UPDATE alembic_version SET version_num = '9999'")
    try:
        assert flow.answers.keys() == {202}
        ground.assert_settled()
    finally:
        ground.sql("DROP TABLE of_the_next_version")
        for table in names:
            ground.sql(f"ALTER TABLE {table} DROP COLUMN of_the_next_version")
        ground.sql(f"UPDATE alembic_version SET version_num = '{schema.HEAD}'")
    assert ground.driver.logs().count("task.crashed") == crashes


@pytest.mark.long
def test_processes_that_are_newer_than_the_schema_refuse_and_go_on_once_it_is_migrated(
    ground: Ground,
) -> None:
    with database(ground) as owned, ground.flow(40, gap_s=0.3) as flow:
        ground.until_busy()
        migrate(owned, BEFORE)
        try:
            until("refusals", lambda: flow.answers[503] >= 3)
        finally:
            migrate(owned)

    ground.assert_settled()
    assert flow.answers.keys() <= {200, 202, 503}


@pytest.mark.long
def test_a_migration_that_waits_for_a_lock_lets_traffic_pass(ground: Ground) -> None:
    with (
        database(ground) as owned,
        ThreadPoolExecutor(1) as executor,
        psycopg.connect(ground.address) as reader,
        ground.flow(40, gap_s=0.3) as flow,
    ):
        ground.until_busy()
        reader.execute("SELECT count(*) FROM orders")  # a report that runs and runs
        reader.execute("SELECT count(*) FROM attempts")
        done = executor.submit(migrate, owned, BEFORE)
        taken = len(flow.acknowledged)
        until("checkouts beside it", lambda: len(flow.acknowledged) > taken + 10)
        assert not done.done()
        reader.rollback()
        done.result(60)
        migrate(owned)

    ground.assert_settled()
    assert flow.slowest_s < 10
