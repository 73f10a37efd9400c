"""What the OpenAPI document promises, Schemathesis tries to catch us breaking."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.integration.web_client import BEARER, Store

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
EXAMPLES = 40
#: What is sent to each operation, and which checks its own documentation answers.
OPERATIONS = [
    ("POST", "/v1/checkouts", POSITIVE, [positive_data_acceptance]),  # see `may_be_refused`
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
#: What no schema says: which accounts there are, and that a time has a zone.
FIELDS_OF_OURS = {"account", "submitBy"}


def test_every_answer_is_as_documented(store: Store, subtests: pytest.Subtests) -> None:
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{store.port}/openapi.json")
    assert {(method, path) for method, path, _, _ in OPERATIONS} == {
        (found.ok().method.upper(), found.ok().path) for found in document.get_all_operations()
    }

    for method, path, mode, answered in OPERATIONS:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=document[path][method].as_strategy(generation_mode=mode))
        def explore(case: Case) -> None:
            answer = case.call_and_validate(headers=BEARER, excluded_checks=answered)
            if mode is POSITIVE and answer.status_code == 422:
                assert json.loads(answer.content)["error"]["field"] in FIELDS_OF_OURS

        with subtests.test(method=method, path=path, mode=mode):
            explore()
