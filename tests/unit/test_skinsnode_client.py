"""What each HTTP answer of SkinsNode means, for a purchase and for a read."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import Provider
from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsnode.client import SkinsNode
from schemas.provider import PurchaseCommand, ReportState

COMMAND = PurchaseCommand(
    external_id="order.1",
    catalog_item_id="0b0f",
    market_hash_name=None,
    price_mills=6120,
    trade_url="https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh",
    webhook_url="http://127.0.0.1:8080/webhooks/main",
)
TAKEN = {"externalId": "order.1", "status": "accepted", "acceptedAt": "2026-11-20T12:30:00.000Z"}


def answering(respond: Callable[[httpx.Request], httpx.Response]) -> Provider:
    http = HTTPClient("http://provider.test", transport=httpx.MockTransport(respond))
    return SkinsNode(http, "client_test_4242", "cs_test_7f3a9c", ["cs_test_7f3a9c"])


def provider(status: int, content: Any = None) -> Provider:
    return answering(lambda request: httpx.Response(status, json=content))


def buy(provider: Provider) -> Any:
    return provider.purchase(provider.purchase_body(COMMAND))


def test_a_purchase_sends_the_stored_bytes_with_both_headers() -> None:
    requests = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(202, json=TAKEN)

    adapter = answering(respond)
    adapter.purchase(adapter.purchase_body(COMMAND) + b"\n")

    [request] = requests
    assert (request.method, str(request.url)) == ("POST", "http://provider.test/v1/orders")
    assert request.headers["x-client-id"] == "client_test_4242"
    assert request.headers["x-client-secret"] == "cs_test_7f3a9c"
    assert request.read() == adapter.purchase_body(COMMAND) + b"\n"


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("word", ["accepted", "queued", "sent", "completed", "failed", "novel"])
def test_a_replay_may_answer_with_a_later_status(status: int, word: str) -> None:
    report = buy(provider(status, {**TAKEN, "status": word}))

    assert report.raw_status == word
    assert report.state is (ReportState.UNKNOWN if word == "novel" else ReportState(word))


@pytest.mark.parametrize(
    ("status", "code"), [(404, "item_unavailable"), (422, "refused_by_provider")]
)
def test_only_documented_refusals_are_definite(status: int, code: str) -> None:
    with pytest.raises(ProviderRefused) as caught:
        buy(provider(status, {"error": {"message": COMMAND.trade_url}}))

    assert caught.value.code == code
    assert "AbCdEfGh" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 402, 405, 409, 410, 413, 415, 418, 425, 451])
def test_an_undocumented_refusal_is_not_definite_by_itself_and_no_absence(status: int) -> None:
    with pytest.raises(ProviderRefused, match=str(status)) as refused:
        buy(provider(status, TAKEN))
    assert not refused.value.is_documented
    with pytest.raises(ProviderNotReached, match=str(status)):
        provider(status, TAKEN).reports(["order.1"])
    with pytest.raises(ProviderNotReached, match=str(status)):
        provider(status).wallet_mills()


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {**TAKEN, "externalId": "order.2"},
        {**TAKEN, "externalId": None},
        {"data": TAKEN},
    ],
)
def test_an_answer_that_does_not_confirm_this_order_is_unknown(content: Any) -> None:
    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider(202, content))
    with pytest.raises(ProviderNotReached):
        provider(200, content).reports(["order.1"])


@pytest.mark.parametrize(
    ("odd", "word"),
    [
        ({"status": None}, "(unreadable)"),
        ({"pricing": {"amount": "1.5", "currency": "USD"}}, "accepted (unreadable)"),
        ({"pricing": {"amount": "612", "currency": "EUR"}}, "accepted (unreadable)"),
        ({"status": "on AbCdEfGh", "item": 7, "amount": "x"}, "on [removed] (unreadable)"),
    ],
)
def test_an_order_that_is_there_and_cannot_be_read_is_told_of_as_such(
    odd: dict[str, Any], word: str
) -> None:
    content = {**TAKEN, "tradeUrl": COMMAND.trade_url, **odd}

    report = provider(200, content).reports(["order.1"])["order.1"]

    assert (report.state, report.raw_status) == (ReportState.UNKNOWN, word)
    assert report.charged_mills is None
    assert report.alarm
    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider(202, content))


def test_a_purchase_in_an_outage_is_unknown_and_a_read_is_not() -> None:
    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider(503))
    with pytest.raises(ProviderNotReached):
        provider(503).reports(["order.1"])


@pytest.mark.parametrize("accepted_at", [None, "", "yesterday", 5])
def test_an_odd_time_of_acceptance_does_not_undo_the_acceptance(accepted_at: Any) -> None:
    report = buy(provider(202, {**TAKEN, "acceptedAt": accepted_at}))

    assert report.state is ReportState.ACCEPTED
    assert report.reported_at is None


@pytest.mark.parametrize(
    ("external_id", "path"),
    [
        ("order-1.a_b", b"/v1/orders/order-1.a_b"),
        ("...", b"/v1/orders/..."),
        ("a/b", b"/v1/orders/a%2Fb"),
        ("../wallet", b"/v1/orders/..%2Fwallet"),
        ("a?b#c", b"/v1/orders/a%3Fb%23c"),
        ("%2e", b"/v1/orders/%252e"),
        ("a\r\nb\x00", b"/v1/orders/a%0D%0Ab%00"),
        ("é", b"/v1/orders/%C3%A9"),
    ],
)
def test_an_id_stays_inside_its_path_segment(external_id: str, path: bytes) -> None:
    paths = []

    def respond(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(404)

    assert answering(respond).reports([external_id]) == {}
    assert paths == [path]


@pytest.mark.parametrize("external_id", ["", ".", ".."])
def test_an_id_that_would_change_the_path_is_not_asked_for(external_id: str) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise AssertionError("no request was expected")

    assert answering(respond).reports([external_id]) == {}


@pytest.mark.parametrize(
    ("status", "content", "is_healthy"),
    [
        (200, {"status": "ok", "service": "skinsnode"}, True),
        (200, {"status": "degraded"}, False),
        (200, [], False),
        (404, {"status": "ok"}, False),
        (503, {"status": "ok"}, False),
    ],
)
def test_health_is_a_word(status: int, content: Any, is_healthy: bool) -> None:
    assert provider(status, content).healthy() is is_healthy


def test_health_is_asked_without_credentials() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert "x-client-secret" not in request.headers
        return httpx.Response(200, json={"status": "ok"})

    assert answering(respond).healthy()
