"""What Flower, logs and pages show: order ids, and no secret."""

from typing import Any

import httpx
from celery import Celery

from tests.acceptance.driver import Driver, until


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
    (external_id,) = stack.send([stack.checkout()])
    stack.wait_final([external_id])
    chain = {
        "checkout.refresh_catalog",
        "checkout.check_wallet",
        "checkout.submit_orders",
        "checkout.schedule_reconciliation",
    }

    def steps() -> set[str]:
        tasks = _tasks(stack).values()
        return {t["name"] for t in tasks if external_id in (t["args"] or "")}

    until("the chain in Flower", lambda: steps() >= chain)
    page = _flower(stack, "/api/tasks?limit=1000").text + _flower(stack, "/tasks").text
    assert not [secret for secret in stack.secrets() if secret in page]


def test_a_foreign_senders_trade_token_is_masked_by_the_worker(stack: Driver) -> None:
    event = stack.checkout()
    foreign = Celery(broker=stack.stack.settings.broker_url.get_secret_value())

    foreign.send_task("checkout.receive", [event])
    foreign.send_task("checkout.receive", kwargs=stack.checkout(externalId="by-keywords"))
    foreign.send_task("checkout.receive", [event | {"tradeUrl": event["tradeUrl"] + "&x=1;"}])
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


def test_no_secret_is_in_any_log_or_page(stack: Driver) -> None:
    ids = stack.send([stack.checkout("timeout_after_accept"), stack.checkout("html_answer")])
    stack.wait_final(ids)

    seen = stack.logs() + "".join(
        stack.web.get(path).text
        for path in ("/metrics", "/readyz", "/v1/wallets", "/v1/orders", "/openapi.json")
    )

    assert ids[0] in seen
    assert not [secret for secret in stack.secrets() if secret in seen]
