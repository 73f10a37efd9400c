"""Addresses of PostgreSQL with several hosts are read as libpq reads them."""

from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from fulfillment.addresses import complaint_of_database, with_hosts_as_options
from fulfillment.store.engine import Database


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h1:5432,h2:5433/db",
        "postgresql://u:p%40w@h1,h2:5433/db?sslmode=prefer",
        "postgresql://u@h1:1,h2:2,[::1]/d",
        "postgresql://u@[fe80::1]:5,h2",
        "postgresql://h1,,h2/db?connect_timeout=3&options=-cx%3Dy",
        "postgresql://h1,h2/db?port=1,2",
        "postgresql://h1:1,h2:2?sslmode=prefer",
        f"postgresql://u@%2Ftmp%2F{'a' * 64}:5432/d",
    ],
)
def test_several_hosts_are_the_ones_that_libpq_reads(url: str) -> None:
    read = with_hosts_as_options(url)

    read_by_us, read_by_libpq = conninfo_to_dict(read), conninfo_to_dict(url)
    assert read_by_us == read_by_libpq
    assert complaint_of_database(url) == ""
    assert "," not in read.partition("?")[0]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("postgresql://h1,h2/d?port=6432", "6432,6432"),
        ("postgresql://h1:1,h2:2/d?port=6432", "6432,6432"),
        ("postgresql:///d?host=h1,h2&port=6432", "6432,6432"),
        ("postgresql://:6432/d?host=h1,h2", "6432,6432"),
        ("postgresql://h1:1,h2:2/d", "1,2"),
        ("postgresql://u:p@h1:/d", None),
        ("postgresql://u:p@[::1]:/d", None),
        ("postgresql://u:p@h1:6432/d", 6432),
    ],
)
def test_one_port_is_that_of_every_host_and_none_is_the_usual_one(
    url: str, port: str | int | None
) -> None:
    assert complaint_of_database(url) == ""
    assert _read_by_psycopg(url).get("port") == port


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("postgresql://u:p%20q@h/d", "password", "p q"),
        ("postgresql://u%20v:p@h/d", "user", "u v"),
        ("postgresql://u:p@h1,h2/d%20e", "dbname", "d e"),
    ],
)
def test_an_encoded_space_is_one(url: str, name: str, value: str) -> None:
    assert conninfo_to_dict(url)[name] == value
    assert complaint_of_database(url) == ""
    assert _read_by_psycopg(url)[name] == value


def _read_by_psycopg(url: str) -> dict[str, Any]:
    database = Database(url)
    try:
        return dict(database.engine.dialect.create_connect_args(database.engine.url)[1])
    finally:
        database.close()


def test_hosts_among_the_options_win() -> None:
    read = with_hosts_as_options("postgresql://u@h1:1,h2:2/db?host=h3")

    assert conninfo_to_dict(read) == {"user": "u", "dbname": "db", "host": "h3"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h:1/d",
        "postgresql:///d?host=/tmp/a,b",
        "postgresql://u:a,b@h/d?options=-cx%3Dy,z",
    ],
)
def test_an_address_of_one_host_stays_as_it_is(url: str) -> None:
    assert with_hosts_as_options(url) == url


@pytest.mark.parametrize(
    "host", ["db.example.", "10.0.0.1", "[::1]", "m\u00fcnchen.example", "a_b", f"{'a' * 63}.b"]
)
def test_a_host_that_can_be_looked_up_is_taken(host: str) -> None:
    assert complaint_of_database(f"postgresql://u:p@{host}:5432/d") == ""


@pytest.mark.parametrize(
    "where",
    ["/d?host=@abstract..socket", "/d?host=/tmp/..a/.s", "/d?hostaddr=10.0.0.1", "/d?host=h:1"],
)
def test_what_is_no_name_among_the_options_is_taken(where: str) -> None:
    assert complaint_of_database(f"postgresql://{where}") == ""
