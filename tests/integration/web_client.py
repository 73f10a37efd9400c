"""Drives the web application as the outside does: a real server, a client, the hints it gave."""

import hashlib
import hmac
import json
import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import hypothesis
import psycopg
from sqlalchemy.engine import URL, make_url

from fulfillment.services.context import Context
from fulfillment.settings import Settings
from fulfillment.store.engine import Database
from fulfillment.store.sealing import Seal
from fulfillment.web.app import build_server, create_app, listen
from tests.conftest import TEST_PREFIX
from tests.support import TOKEN

API_TOKEN = "canary-api-token"
CLIENT_SECRET = "canary-client-secret"
BEARER = {"Authorization": f"Bearer {API_TOKEN}"}
ACCOUNT = {"client_id": "cid", "client_secret": CLIENT_SECRET}
#: What `make_settings` is told, for a store with two accounts.
TWO_ACCOUNTS = {
    "api_token": API_TOKEN,
    "accounts": {"main": ACCOUNT, "second": {**ACCOUNT, "client_id": "merchant-2"}},
}
SECRETS = (API_TOKEN, CLIENT_SECRET, TOKEN)
#: So many examples does Hypothesis explore: always the same ones, unless more are asked for.
EXAMPLES = int(os.environ.get(f"{TEST_PREFIX}EXAMPLES", "20"))
NOWHERE = "postgresql+psycopg://user:canary-password@127.0.0.1:1/none"


def explored(**more: Any) -> hypothesis.settings:
    """Let Hypothesis explore for seconds, or as long as it was told to."""
    return hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=EXAMPLES == 20,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **more,
    )


class Store:
    """A client with the token, and the hints that the application gave."""

    def __init__(self, client: httpx.Client, hints: "queue.Queue[tuple[Any, ...]]") -> None:
        self.client = client
        self.hints = hints

    @property
    def port(self) -> int:
        port = self.client.base_url.port
        assert port is not None
        return port

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params)

    def post(self, body: Any, path: str = "/v1/checkouts") -> httpx.Response:
        if isinstance(body, bytes):
            return self.client.post(path, content=body)
        return self.client.post(path, json=body)

    def deliver(self, body: bytes, account: str = "main", **changed: str) -> httpx.Response:
        return self.client.post(
            f"/webhooks/{account}", content=body, headers={**signed(body), **changed}
        )

    def next_hint(self) -> tuple[Any, ...]:
        return self.hints.get(timeout=5)


@contextmanager
def serving(context: Context, hint: Callable[..., object] | None = None) -> Iterator[Store]:
    hints: queue.Queue[tuple[Any, ...]] = queue.Queue()
    app = create_app(context, hint or (lambda *call: hints.put(call)))
    server = build_server(app, context.settings.web_trusted_proxies)
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=url, headers=BEARER, timeout=30) as client:
            yield Store(client, hints)
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def signed(body: bytes, at: datetime | None = None, secret: str = CLIENT_SECRET) -> dict[str, str]:
    stamp = (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    message = stamp.encode() + b"." + body
    signature = hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
    return {"x-timestamp": stamp, "x-signature": signature, "x-event-type": "order.updated"}


def news(external_id: str, status: str = "sent") -> bytes:
    order = {
        "externalId": external_id,
        "status": status,
        "steamOfferId": "7193849201",
        "amount": "1840",
        "currency": "USD",
        "error": None,
        "timestamps": {"updatedAt": "2026-11-20T12:36:12.000Z"},
    }
    return json.dumps(order).encode()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"code", "message", "field"}
    return error


def exchange(store: Store, *pieces: bytes) -> bytes:
    """Send bytes as they are; give all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
        return answer


@contextmanager
def empty_database(database_url: str) -> Iterator[str]:
    """Give the URL of an empty database beside this one, for as long as it is needed."""
    url = make_url(database_url).set(drivername="postgresql")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(_text(url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield _text(url.set(database=name, drivername="postgresql+psycopg"))
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def context_without_tables(url: str, settings: Settings) -> Context:
    """Give a context over a database that nobody has prepared, or that is not there."""
    seal = Seal(settings.encryption_keys.get_secret_value())
    return Context(settings=settings, database=Database(url), seal=seal)
