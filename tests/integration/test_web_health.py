"""Health, metrics and documentation, a database that is not there, and the process itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fulfillment.errors import ConfigurationError, ProviderNotReached
from fulfillment.services import funds, intake, pulse, updates
from fulfillment.services.context import Context
from fulfillment.store import leases
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from fulfillment.web.app import listen
from tests.conftest import MakeContext, MakeSettings
from tests.integration.web_client import (
    API_TOKEN,
    BEARER,
    CLIENT_SECRET,
    SECRETS,
    TWO_ACCOUNTS,
    Store,
    context_without_tables,
    empty_database,
    error_of,
    news,
    serving,
    signed,
)
from tests.support import FakeClock, FakeProvider, checkout, take_figure, until


def test_ready_only_while_everything_turns(web_context: Context, store: Store) -> None:
    waiting = store.get("/readyz")
    with web_context.database.transaction() as session:
        for name in (pulse.SWEEP, pulse.CONSUMER, pulse.RELAY):
            leases.beat(session, name, web_context.now())
    ready = store.get("/readyz")

    assert waiting.status_code == 503
    assert waiting.json()["status"] == "unavailable"
    assert waiting.json()["checks"]["ticks"]["ok"] is False
    assert ready.status_code == 200
    assert ready.json()["checks"]["database"] == {"ok": True, "detail": ""}
    assert ready.json()["checks"]["ticks"]["detail"].startswith("last_tick_at ")


def test_a_queue_of_the_store_that_refuses_is_told_of_and_takes_nobody_out_of_service(
    web_context: Context, store: Store, clock: FakeClock
) -> None:
    def answer() -> httpx.Response:
        with web_context.database.transaction() as session:
            for name in (pulse.SWEEP, pulse.CONSUMER, pulse.RELAY):
                leases.beat(session, name, web_context.now())
        return store.get("/readyz")

    updates.note_refused(web_context, ["order.updated"])
    refused = answer()
    clock.advance(31)
    over = answer()

    assert (refused.status_code, over.status_code) == (200, 200)
    told = refused.json()["checks"]["updates taken"]
    assert told["ok"] is False
    assert told["detail"].startswith("order.updated wait")
    assert "updates taken" not in over.json()["checks"]


def test_checkouts_that_can_be_put_nowhere_are_told_of_as_long_as_they_go_round(
    web_context: Context, store: Store, clock: FakeClock
) -> None:
    def answer() -> httpx.Response:
        with web_context.database.transaction() as session:
            for name in (pulse.SWEEP, pulse.CONSUMER, pulse.RELAY):
                leases.beat(session, name, web_context.now())
        return store.get("/readyz")

    intake.note_not_put_aside(web_context)
    going_round = answer()
    clock.advance(31)
    over = answer()

    assert (going_round.status_code, over.status_code) == (503, 200)
    assert going_round.json()["checks"]["dead letters"]["ok"] is False
    assert "dead letters" not in over.json()["checks"]


def test_without_a_database_everything_says_so(lonely_store: Store) -> None:
    store = lonely_store
    refused = [
        store.post(checkout()),
        store.post([checkout()], "/v1/checkouts/batch"),
        store.get("/v1/orders"),
        store.get("/v1/orders/order_1"),
        store.get("/v1/wallets"),
        store.deliver(news("order_1")),
    ]

    for response in refused:
        assert error_of(response, 503)["code"] == "unavailable"
        assert int(response.headers["retry-after"]) > 0
        assert "canary" not in response.text
    assert error_of(store.post(checkout(expectedPrice=0)), 422)["field"] == "expectedPrice"
    error_of(store.deliver(b"forged", **signed(b"other")), 401)
    assert store.hints.empty()
    assert store.get("/healthz").status_code == 200
    ready = store.get("/readyz")
    assert ready.status_code == 503
    assert "cannot be used" in ready.json()["checks"]["database"]["detail"]
    assert "fulfillment_database_up 0.0" in store.get("/metrics").text


def test_a_database_without_its_schema_is_waited_for(
    database_url: str, make_settings: MakeSettings
) -> None:
    with empty_database(database_url) as url:
        context = context_without_tables(url, make_settings(**TWO_ACCOUNTS))
        with serving(context) as store:
            ready = store.get("/readyz")
            assert ready.json()["checks"]["schema"] == {
                "ok": False,
                "detail": "run `fulfillment migrate`",
            }
            error_of(store.post(checkout()), 503)

            database = Database(url)
            migrate(database)
            database.close()

            assert store.post(checkout()).status_code == 202
            until(lambda: len(store.get("/v1/wallets").json()["wallets"]) == 2)
        context.close()


def test_metrics_count_by_route_and_never_by_what_the_client_made_up(store: Store) -> None:
    store.post(checkout(externalId="order_1"))
    store.post(checkout(externalId="order_1", expectedPrice=1))
    store.get("/v1/orders/order_1")
    store.get("/made-up-path")
    store.client.request("MADEUP", "/v1/orders/made-up-id")
    store.post(b"", "/webhooks/made-up-account")
    store.deliver(news("order_1"))
    store.deliver(b"made-up-body", **signed(b"other"))

    text = store.get("/metrics").text

    for line in (
        'fulfillment_http_requests_total{method="POST",route="/v1/checkouts",status="202"} 1.0',
        'fulfillment_http_requests_total{method="GET",route="/v1/orders/{external_id}",'
        'status="200"} 1.0',
        'fulfillment_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'fulfillment_http_request_duration_seconds_count{route="/webhooks/{account}"} 3.0',
        'fulfillment_checkouts_total{result="new"} 1.0',
        'fulfillment_checkouts_total{result="conflict"} 1.0',
        'fulfillment_webhooks_total{account="main",verdict="stored"} 1.0',
        'fulfillment_webhooks_total{account="main",verdict="rejected"} 1.0',
        'fulfillment_orders{account="main",status="received"} 1.0',
        "fulfillment_database_up 1.0",
        "fulfillment_orders_overdue 0.0",
        "fulfillment_outbox_waiting 1.0",
        "fulfillment_updates_unheard 0.0",
    ):
        assert line in text
    assert "made-up" not in text
    assert "MADEUP" not in text
    assert not [secret for secret in SECRETS if secret in text]


def test_metrics_show_the_longest_queue_of_the_store_and_none_where_nobody_can_tell(
    web_context: Context, clock: FakeClock
) -> None:
    name = "fulfillment_updates_unread"
    with serving(web_context) as store:
        assert f"\n{name} " not in store.get("/metrics").text
        updates.note_unread(web_context, {"a": 3, "store.updates": 12_345})
        clock.advance(3)  # until it is measured anew

        assert f"\n{name} 12345.0\n" in store.get("/metrics").text
        clock.advance(301)  # nobody has looked since
        assert f"\n{name} " not in store.get("/metrics").text


def test_metrics_tell_for_how_long_a_balance_could_not_be_read(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, **TWO_ACCOUNTS)
    take_figure(context)

    def fail(what: str) -> None:
        raise ProviderNotReached("HTTP 503", is_outage=True)

    provider.on_read = fail
    for _ in range(4):
        clock.advance(3000)
        funds.prove_wallets(context)

    with serving(context) as store:
        text = store.get("/metrics").text
    assert '\nfulfillment_balance_age_seconds{account="main"} 12000.0\n' in text


def test_the_documentation_names_every_answer(store: Store) -> None:
    document = store.get("/openapi.json").json()

    post = document["paths"]["/v1/checkouts"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["example"]["externalId"] == "order_100042"
    assert body["schema"]["properties"].keys() >= body["example"].keys()
    assert set(post["responses"]) >= {"200", "202", "400", "401", "409", "413", "422", "503"}
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert post["security"] == [{"bearer": []}]
    assert "security" not in document["paths"]["/webhooks/{account}"]["post"]
    assert store.get("/docs").status_code == 200


# The process


@contextmanager
def process(**environment: str) -> Iterator["subprocess.Popen[str]"]:
    code = "from fulfillment.settings import load_settings as load\n"
    code += "from fulfillment.web.app import serve\nserve(load())"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FULFILLMENT_")}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def environment(web_context: Context, tmp_path: Path) -> dict[str, str]:
    with listen("127.0.0.1", 0) as found:
        port = found.getsockname()[1]
    return {
        "FULFILLMENT_DATABASE_URL": web_context.settings.database_url.get_secret_value(),
        "FULFILLMENT_BROKER_URL": "redis://127.0.0.1:1/0",
        "FULFILLMENT_ENCRYPTION_KEYS": web_context.settings.encryption_keys.get_secret_value(),
        "FULFILLMENT_API_TOKEN": API_TOKEN,
        "FULFILLMENT_DATA_DIR": str(tmp_path),
        "FULFILLMENT_WEB_PORT": str(port),
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_ID": "cid",
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_SECRET": CLIENT_SECRET,
    }


def test_it_stops_within_seconds_in_the_middle_of_requests_and_works_without_a_broker(
    environment: dict[str, str],
) -> None:
    port = int(environment["FULFILLMENT_WEB_PORT"])
    with process(**environment) as child, httpx.Client(headers=BEARER) as client:
        assert child.stderr
        while "web.listening" not in (line := child.stderr.readline()):
            assert line, "the process ended"
        answer = client.post(f"http://127.0.0.1:{port}/v1/checkouts", json=checkout())
        assert answer.status_code == 202
        assert "server" not in answer.headers
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /webhooks/main HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200

            started = time.monotonic()
            child.send_signal(signal.SIGTERM)
            child.wait(10)

            assert time.monotonic() - started < 3
        output = child.stderr.read()
    assert "Traceback" not in output
    assert not [secret for secret in SECRETS if secret in output]


def test_without_a_token_it_does_not_start(environment: dict[str, str]) -> None:
    with process(**environment | {"FULFILLMENT_API_TOKEN": ""}) as child:
        _, output = child.communicate(timeout=20)

    assert child.returncode != 0
    assert "FULFILLMENT_API_TOKEN" in output


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigurationError, match="WEB_PORT"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "no.such.host.invalid", "::1%nowhere", "\u00e4" * 70, "x\udcff"]
)
def test_a_host_that_is_none_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_WEB_HOST"):
        listen(host, 0)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_is_answered_as_get_is_without_a_body(store: Store, path: str) -> None:
    asked, answer = store.get(path), store.client.head(path)

    assert (answer.status_code, answer.content) == (asked.status_code, b"")
    assert answer.headers["content-type"] == asked.headers["content-type"]
    assert store.get(path).status_code == asked.status_code  # on the same connection
