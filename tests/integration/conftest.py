"""The web application of these tests, with and without its database, and accounts on routes."""

from collections.abc import Iterator

import pytest

from fulfillment.services.context import Context
from tests.conftest import MakeContext, MakeSettings
from tests.integration.telling import NAMES, on_routes
from tests.integration.web_client import (
    NOWHERE,
    TWO_ACCOUNTS,
    Store,
    context_without_tables,
    serving,
)
from tests.support import FakeProvider


@pytest.fixture
def web_context(make_context: MakeContext) -> Context:
    """Give a context with the real adapter and the accounts `main` and `second`."""
    return make_context(**TWO_ACCOUNTS)


@pytest.fixture
def store(web_context: Context) -> Iterator[Store]:
    with serving(web_context) as found:
        yield found


@pytest.fixture
def lonely_store(make_settings: MakeSettings) -> Iterator[Store]:
    """Give a client of an application whose database is not there."""
    context = context_without_tables(NOWHERE, make_settings(**TWO_ACCOUNTS))
    with serving(context) as found:
        yield found
    context.close()


@pytest.fixture
def providers() -> dict[str, FakeProvider]:
    return {name: FakeProvider() for name in NAMES}


@pytest.fixture
def routed(make_context: MakeContext, providers: dict[str, FakeProvider]) -> Context:
    """Give a context with the accounts of `providers`, on the routes `both` and `all`."""
    return on_routes(make_context, providers)
