"""What the OpenAPI document promises, Schemathesis tries to catch us breaking."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import Phase, given
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.conftest import MakeContext
from tests.integration.web_client import BEARER, TWO_ACCOUNTS, Store, explored, serving

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
#: What is sent to each operation, and which checks its own documentation answers.
OPERATIONS: list[tuple[str, str, GenerationMode, list[CheckFunction]]] = [
    ("POST", "/v1/checkouts", POSITIVE, [positive_data_acceptance]),  # see FIELDS_OF_OURS
    ("POST", "/v1/checkouts", NEGATIVE, []),
    ("POST", "/v1/checkouts/batch", POSITIVE, []),
    # A bad entry is its own result of a 200.
    ("POST", "/v1/checkouts/batch", NEGATIVE, [negative_data_rejection]),
    ("GET", "/v1/orders", POSITIVE, []),
    # Parameters that nobody knows are ignored.
    ("GET", "/v1/orders", NEGATIVE, [negative_data_rejection]),
    ("GET", "/v1/orders/{external_id}", POSITIVE, []),
    ("GET", "/v1/orders/{external_id}", NEGATIVE, []),
    ("GET", "/v1/wallets", POSITIVE, []),
    ("POST", "/webhooks/{account}", POSITIVE, []),
    ("GET", "/healthz", POSITIVE, []),
    ("GET", "/readyz", POSITIVE, [not_a_server_error]),  # nothing turns here, so it is 503
    ("GET", "/metrics", POSITIVE, []),
]
#: What no schema says: which accounts there are, that a time has a zone, that 18.0 is no integer.
FIELDS_OF_OURS = {"account", "submitBy", "expectedPrice"}


@pytest.fixture
def store(make_context: MakeContext) -> Iterator[Store]:
    """Give an application that counts nothing: no second passes on this test's clock."""
    rates = {"web_calls_per_s": 10**6, "web_failures_per_s": 10**6}
    with serving(make_context(**TWO_ACCOUNTS, **rates)) as found:
        yield found


def test_every_answer_is_as_documented(store: Store, subtests: pytest.Subtests) -> None:
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{store.port}/openapi.json")
    assert {(method, path) for method, path, _, _ in OPERATIONS} == {
        (method.upper(), path)
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
    }

    for method, path, mode, answered in OPERATIONS:
        with subtests.test(method=method, path=path, mode=mode):
            explore(document[path][method], mode, answered)


def explore(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, answered: list[CheckFunction]
) -> None:
    @explored(phases=[Phase.generate])  # to make a failure small takes minutes
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_one(case: Case[Any]) -> None:
        answer = case.call_and_validate(headers=BEARER, excluded_checks=answered)
        if mode is POSITIVE and answer.status_code == 422:
            assert json.loads(answer.content)["error"]["field"] in FIELDS_OF_OURS

    try_one()
