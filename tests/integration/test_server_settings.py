"""What a server, a database or a role has set otherwise changes nothing for our sessions."""

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from fulfillment.errors import ConfigurationError
from fulfillment.services import operations
from fulfillment.services.context import Context
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from schemas.enums import OrderStatus as S
from tests.support import again, receive_one, run_chain, run_ticks

STAR = "\u2605 Karambit | Doppler (Factory New)"
ODD = {
    "default_transaction_isolation": ("repeatable read", "read committed"),
    "synchronous_commit": ("off", "on"),
    "DateStyle": ("German, DMY", "ISO, MDY"),
    "IntervalStyle": ("sql_standard", "postgres"),
    "client_encoding": ("LATIN1", "UTF8"),
    "bytea_output": ("escape", "hex"),
    "array_nulls": ("off", "on"),
    "plan_cache_mode": ("force_custom_plan", "force_generic_plan"),
    "timezone": ("Asia/Tokyo", "UTC"),
}


@pytest.fixture
def odd(context: Context, database_url: str) -> Iterator[Context]:
    """Give a context whose sessions begin on a database with settings of its own."""
    address = make_url(database_url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(address, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        for setting, (value, _) in ODD.items():
            alter = sql.SQL("ALTER DATABASE {} SET {} = {}")
            connection.execute(alter.format(name, sql.Identifier(setting), sql.Literal(value)))
        database = Database(database_url)
        try:
            yield replace(context, database=database)
        finally:
            database.close()
            connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(name))


def test_our_sessions_are_as_our_statements_need_them(odd: Context) -> None:
    with odd.database.transaction() as session:
        found = {name: session.scalar(f"SHOW {name}") for name in ODD}

    assert found == {name: ours for name, (_, ours) in ODD.items()}


def test_an_order_of_an_item_with_a_star_is_bought_there(odd: Context) -> None:
    order = receive_one(odd, marketHashName=STAR)
    run_chain(odd)
    run_ticks(odd)

    after = again(odd, order)
    assert (after.status, after.market_hash_name) == (S.ACCEPTED, STAR)


def test_a_database_that_may_only_be_read_is_not_ready_and_says_so(
    context: Context, database_url: str
) -> None:
    address = make_url(database_url).set(drivername="postgresql").render_as_string(False)
    database = Database(database_url)
    with psycopg.connect(address, autocommit=True) as connection:
        alter = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        name = sql.Identifier(connection.info.dbname)
        connection.execute(alter.format(name, sql.SQL("on")))
        try:
            (told,) = operations.check_readiness(replace(context, database=database))
        finally:
            connection.execute(alter.format(name, sql.SQL("off")))
            database.close()

    assert (told.name, told.is_ok) == ("database", False)
    assert told.detail.endswith(": it is read-only")


def test_a_database_that_cannot_hold_every_text_is_refused_by_name(database_url: str) -> None:
    url = make_url(database_url)
    address = url.set(drivername="postgresql").render_as_string(False)
    other = f"{url.database}_of_latin1"
    name = sql.Identifier(other)
    with psycopg.connect(address, autocommit=True) as connection:
        latin1 = (
            "CREATE DATABASE {} ENCODING LATIN1 LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
        )
        connection.execute(sql.SQL(latin1).format(name))
        database = Database(url.set(database=other).render_as_string(False))
        try:
            with pytest.raises(ConfigurationError, match="UTF8, not LATIN1"):
                migrate(database)
        finally:
            database.close()
            connection.execute(sql.SQL("DROP DATABASE {}").format(name))
