"""The web application of these tests, with and without its database."""

from collections.abc import Iterator

import pytest

from fulfillment.services.context import Context
from tests.conftest import MakeContext, MakeSettings
from tests.integration.web_client import (
    NOWHERE,
    TWO_ACCOUNTS,
    Store,
    context_without_tables,
    serving,
)


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
