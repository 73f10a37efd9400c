"""What Flower, logs and pages show: order ids, and no secret."""

import base64
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import redis
from celery import Celery
from psycopg import sql
from sqlalchemy.engine import make_url

from fulfillment.settings import RUNTIME_FILE
from tests.acceptance.driver import NAMED_TOKEN, TOKEN, Driver, until


def _flower(stack: Driver, path: str) -> httpx.Response:
    user, _, password = stack.stack.settings.flower_basic_auth.get_secret_value().partition(":")
    url = f"{stack.stack.flower_url}{path}"
    return httpx.get(url, auth=(user, password), timeout=20, trust_env=False)


def _tasks(stack: Driver) -> dict[str, Any]:
    answer = _flower(stack, "/api/tasks?limit=1000")
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_flower_shows_the_chain_with_order_ids_and_no_secret(stack: Driver) -> None:
    chain = {
        "checkout.refresh_catalog",
        "checkout.check_wallet",
        "checkout.submit_orders",
        "checkout.schedule_reconciliation",
    }
    sent: list[str] = []

    def is_shown() -> bool:
        # Flower may listen only after the stack is ready: what came before, it does not know.
        sent.extend(stack.send([stack.checkout()]))
        stack.wait_final(sent[-1:])
        shown = [t for t in _tasks(stack).values() if t["args"]]
        return any({t["name"] for t in shown if name in t["args"]} >= chain for name in sent)

    until("the chain in Flower", is_shown)
    page = _flower(stack, "/api/tasks?limit=1000").text + _flower(stack, "/tasks").text
    assert not [secret for secret in stack.secrets() if secret in page]


def test_a_foreign_senders_trade_token_is_masked_by_the_worker(stack: Driver) -> None:
    event = stack.checkout()
    foreign = Celery(broker=stack.stack.settings.broker_url.get_secret_value())

    foreign.send_task("checkout.receive", [event])
    foreign.send_task("checkout.receive", kwargs=stack.checkout(externalId="by-keywords"))
    foreign.send_task(
        "checkout.receive",
        [event | {"tradeUrl": event["tradeUrl"] + "&x=1;"}],
        shadow=event["tradeUrl"],
    )
    foreign.close()
    stack.wait_final([event["externalId"]])
    until(
        "all three in Flower",
        lambda: len([t for t in _tasks(stack).values() if t["name"] == "checkout.receive"]) >= 3,
    )

    shown = _flower(stack, "/api/tasks?limit=1000").text + _flower(stack, "/api/workers").text
    assert event["externalId"] in shown
    assert not [secret for secret in stack.secrets() if secret in shown]


def test_flower_is_closed_without_its_password_and_read_only_with_it(stack: Driver) -> None:
    bare = httpx.get(f"{stack.stack.flower_url}/tasks", timeout=20, trust_env=False)
    user, _, password = stack.stack.settings.flower_basic_auth.get_secret_value().partition(":")

    applied = httpx.post(
        f"{stack.stack.flower_url}/api/task/async-apply/sweep.resume_stuck",
        auth=(user, password),
        json={"args": []},
        timeout=20,
        trust_env=False,
    )

    assert bare.status_code == httpx.codes.UNAUTHORIZED
    assert applied.status_code == httpx.codes.FORBIDDEN


def _pages(stack: Driver) -> dict[str, str]:
    """Give what web answers, refusals too."""
    bearer = {"Authorization": f"Bearer {NAMED_TOKEN}"}
    event = stack.checkout()
    stack.send([event])
    asked = [
        stack.web.get(path, headers=bearer)
        for path in (
            *("/metrics", "/readyz", "/healthz", "/docs", "/openapi.json"),
            *("/v1/wallets", "/v1/orders?limit=500", f"/v1/orders/{event['externalId']}"),
            *("/v1/orders/nobody", "/v1/orders?limit=0", f"/v1/orders/{TOKEN}%00"),
        )
    ]
    asked += [
        stack.web.post("/v1/checkouts", json=body)
        for body in (event, event | {"expectedPrice": 1}, event | {"tradeUrl": TOKEN}, [event])
    ]
    asked += [
        stack.web.post("/webhooks/main", json=event, headers={"x-signature": "0" * 64}),
        stack.web.get("/v1/wallets", headers={"Authorization": f"Bearer {NAMED_TOKEN}x"}),
    ]
    return {f"{a.request.method} {a.request.url.path} {a.status_code}": a.text for a in asked}


def _database(stack: Driver) -> str:
    """Dump every column of every table; sealed bytes as the characters that they would be."""
    url = make_url(stack.stack.settings.database_url.get_secret_value())
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    cells: list[Any] = []
    with psycopg.connect(address) as connection:
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        for (name,) in connection.execute(tables).fetchall():
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))
            cells += [cell for row in connection.execute(query) for cell in row]
    return "\n".join(c.decode("latin-1") if isinstance(c, bytes) else str(c) for c in cells)


@contextmanager
def _messages(stack: Driver) -> Iterator[list[str]]:
    """Listen to all that goes through the broker, bodies decoded."""
    heard: list[str] = []
    url = stack.stack.settings.broker_url.get_secret_value()
    client = redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))

    def listen() -> None:
        with client.monitor() as monitor:  # type: ignore[no-untyped-call]
            for command in monitor.listen():
                text = command["command"]
                bodies = re.findall(r'"body": ?"([A-Za-z0-9+/=]+)"', text.replace('\\"', '"'))
                heard.extend([text, *(base64.b64decode(body).decode() for body in bodies)])
                if "the hunt is over" in text:
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    until("the broker's commands", lambda: client.ping() and heard)
    yield heard
    client.echo("the hunt is over")
    thread.join(20)
    client.close()


def test_no_secret_is_in_any_output_of_the_whole_run(stack: Driver) -> None:
    with _messages(stack) as messages:
        scenarios = ("timeout_after_accept", "html_answer", "fails_after_accept", "webhooks_forged")
        ids = stack.send(stack.checkout(scenario) for scenario in scenarios)
        stack.wait_final(ids)
    outputs = {
        **_pages(stack),
        "logs": stack.logs(),
        "the database": _database(stack),
        "messages": "\n".join(messages),
        "command lines": subprocess.check_output(["/bin/ps", "-ax", "-o", "args="], text=True),
    }
    flower = ("/tasks", "/workers", "/broker", "/api/tasks", "/api/workers", "/metrics")
    outputs |= {f"Flower {path}": _flower(stack, path).text for path in flower}

    for name, text in outputs.items():
        assert not [secret for secret in stack.secrets() if secret in text], name
    for name in ("logs", "the database", "messages", "GET /v1/orders 200", "Flower /api/tasks"):
        assert ids[0] in outputs[name], name
    # The sweep of the database's own files finds even what was deleted.
    for path in (stack.stack.data_dir / "postgres").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_what_holds_secrets_is_for_our_eyes_only(stack: Driver) -> None:
    token = stack.stack.settings.api_token.get_secret_value().encode()
    files = [path for path in stack.stack.data_dir.iterdir() if path.is_file()]

    holding = [path for path in files if token in path.read_bytes()]

    assert RUNTIME_FILE in {path.name for path in holding}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert stat.S_IMODE(stack.stack.data_dir.stat().st_mode) == 0o700
