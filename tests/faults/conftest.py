"""A database of the simulation's own, beside that of the other tests."""

from collections.abc import Iterator

import pytest

from fulfillment.store.engine import Database
from tests.conftest import _database_on


@pytest.fixture(scope="session")
def faults_url(database_url: str) -> Iterator[str]:
    yield from _database_on(database_url)
