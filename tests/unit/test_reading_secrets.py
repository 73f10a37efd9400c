"""A provider that quotes our own secrets gets them into nothing that is kept."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fulfillment import log
from fulfillment.providers.reading import clean, unreadable
from fulfillment.providers.skinsback import wire as skinsback
from fulfillment.providers.skinslink import wire as skinslink
from fulfillment.providers.skinsnode import wire as skinsnode

#: Of a form that a word for an error could have.
SECRET = "canary_client_secret_0123456789"
QUOTED = [SECRET, f"no such client: {SECRET}!", f"{'x' * 50} {SECRET}", f"canary\x00{SECRET[6:]}"]


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell of one secret, as whoever reads the settings does."""
    monkeypatch.setattr(log, "_hidden", set())
    monkeypatch.setattr(log, "_hidden_pattern", None)
    log.hide([SECRET])


def _skinsnode(text: str) -> Any:
    order = {"externalId": "order_1", "amount": "1840", "currency": "USD", "status": text}
    return skinsnode.read_order(
        order | {"failure": {"code": text, "message": text}, "item": {"marketHashName": text}}
    )


def _skinslink(text: str) -> Any:
    purchase = {"merchant_tx_id": "order_1", "status": "failed", "fail_reason": text}
    return skinslink.read_purchase(purchase | {"item": {"id": text, "name": text}}, "order_1")


def _skinslink_refusal(text: str) -> Any:
    data = [{"code": text}, {"code": "documented"}]
    document = {"success": False, "message": "validation error", "data": data}
    return skinslink.read_envelope(json.dumps(document).encode())


def _skinsback(text: str) -> Any:
    purchase = {"custom_id": "order_1", "offer_status": "trade_create_error", "error_reason": text}
    return skinsback.read_purchase(purchase | {"item": {"id": text, "name": text}})


def _skinsback_refusal(text: str) -> Any:
    document = {"status": "error", "error_code": -99, "error_message": text}
    return skinsback.read_answer(json.dumps(document).encode())


@pytest.mark.parametrize("text", QUOTED)
@pytest.mark.parametrize(
    "read",
    [
        *(_skinsnode, _skinslink, _skinslink_refusal, _skinsback, _skinsback_refusal),
        lambda text: unreadable("order_1", text, "why"),
    ],
)
def test_a_secret_that_a_provider_quotes_is_not_kept(read: Callable[[str], Any], text: str) -> None:
    told = str(read(text))

    assert told
    assert SECRET[:12] not in told


def test_a_bearer_token_that_a_provider_quotes_is_not_kept() -> None:
    found = clean("refused Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc", 200)

    assert found == "refused Authorization: Bearer ***"
