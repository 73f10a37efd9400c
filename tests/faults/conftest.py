"""What the fault tests share: the simulation's database, and a stack that may be broken."""

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine

from schemas.enums import ProviderName
from tests.acceptance.driver import QUICK
from tests.faults.ground import Ground, breakable
from tests.faults.pool import database_on


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    with database_on(database_url) as made:
        yield made


@pytest.fixture(scope="session")
def redis_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Run a stack on a PostgreSQL and a Redis of its own; each test leaves it healthy."""
    # Skinslink promises nothing about a repeated post: there a second one would be a second item.
    link = QUICK.model_copy(update={"provider": ProviderName.SKINSLINK})
    back = QUICK.model_copy(update={"provider": ProviderName.SKINSBACK})
    accounts = {"main": QUICK, "link": link, "back": back}
    routes = {"either": ("main", "back")}
    home = tmp_path_factory.mktemp("ground")
    with breakable(home, seed=11, accounts=accounts, routes=routes) as made:
        yield made
