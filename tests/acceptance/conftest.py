"""One running stack for the tests that leave it healthy."""

from collections.abc import Iterator

import pytest

from fulfillment.devstack.stack import CHILDREN, StackOptions
from tests.acceptance.driver import SPEED, Driver, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Run the embedded stack, Flower included."""
    options = StackOptions(children=CHILDREN, simulator_speed=SPEED, report=lambda line: None)
    with running_stack(tmp_path_factory.mktemp("stack"), options) as driver:
        yield driver
