"""What a server, a database or a role has set otherwise changes nothing for our sessions."""

from collections.abc import Callable, Iterator
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


@pytest.fixture
def connected(database_url: str) -> Iterator[Callable[..., Database]]:
    """Make databases whose address has these options besides."""
    made: list[Database] = []

    def connect(**query: str | list[str]) -> Database:
        url = make_url(database_url).update_query_dict(query).render_as_string(False)
        made.append(Database(url))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def shown(database: Database, *names: str) -> list[str]:
    with database.transaction() as session:
        return [session.scalar(f"SHOW {name}") for name in names]


def test_options_of_the_address_are_kept_beside_ours(
    connected: Callable[..., Database],
) -> None:
    """Two installations kept apart by `search_path` would work on the same tables else."""
    options = "-csearch_path=tenant -c timezone=Asia/Tokyo -c work_mem=5MB"

    found = shown(connected(options=options), "search_path", "work_mem", "timezone", "DateStyle")

    assert found == ["tenant", "5MB", "UTC", "ISO, MDY"]


def test_of_an_option_that_the_address_says_twice_the_last_counts(
    connected: Callable[..., Database],
) -> None:
    options = ["-csearch_path=first", "-csearch_path=second"]

    assert shown(connected(options=options), "search_path", "timezone") == ["second", "UTC"]


def test_how_long_is_waited_is_the_address_own_where_it_says_so(
    connected: Callable[..., Database],
) -> None:
    said = connected(connect_timeout="7", keepalives_idle="99", tcp_user_timeout="9000")
    silent = connected()
    names = ("connect_timeout", "keepalives_idle", "keepalives_count", "tcp_user_timeout")

    parameters = []
    for database in (said, silent):
        with database.transaction() as session:
            known = session.connection.info.get_parameters()
        parameters.append([known.get(name) for name in names])

    assert parameters == [["7", "99", "2", "9000"], ["5", "10", "2", "15000"]]


@pytest.mark.parametrize("encoding", ["LATIN1", "sql_ascii"])
def test_another_encoding_of_the_address_is_refused_by_name(
    connected: Callable[..., Database], encoding: str
) -> None:
    assert shown(connected(client_encoding="UTF-8"), "client_encoding") == ["UTF8"]
    with pytest.raises(ConfigurationError, match="UTF8 as client_encoding"):
        connected(client_encoding=encoding)


@pytest.mark.parametrize(
    ("name", "value"),
    [("connect_timeout", "abc"), ("connect_timeout", "1e9"), ("replication", "true")],
)
def test_an_option_that_we_cannot_do_with_is_refused_by_name(
    connected: Callable[..., Database], name: str, value: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"FULFILLMENT_DATABASE_URL: .*{name}"):
        connected(**{name: value})


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
