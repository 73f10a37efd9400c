"""A database of the simulation's own, on the server of the other tests."""

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine

from tests.faults.pool import database_on


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    with database_on(database_url) as made:
        yield made
