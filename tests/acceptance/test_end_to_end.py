"""Checkouts go in by every way and come to their true ends; the provider's ledger agrees."""

import json
import subprocess
import sys
from typing import Any

import httpx
import kombu
import pytest
from celery import Celery

from schemas.messages import CHECKOUT_KEY, DEAD_QUEUE, REASON_HEADER, STORE_EXCHANGE
from tests.acceptance.driver import TOKEN, Driver, until

EXPECTED_ENDS = {
    "delivered": "completed",
    "webhooks_lost": "completed",
    "webhooks_doubled": "completed",
    "webhooks_reordered": "completed",
    "webhooks_forged": "completed",
    "webhooks_stale": "completed",
    "webhook_before_answer": "completed",
    "completed_before_answer": "completed",
    "fails_after_accept": "failed",
    "price_changes_after_accept": "failed",
    "funds_fail_after_accept": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
    "reversed": "reversed",
    "timeout_after_accept": "completed",
    "timeout_before_accept": "completed",
    "error_after_accept": "completed",
    "error_before_accept": "completed",
    "dropped_after_accept": "completed",
    "garbage_answer": "completed",
    "html_answer": "completed",
    "foreign_answer": "completed",
    "rate_limited": "completed",
    "unknown_status": "completed",
    "item_gone": "failed",
}


def test_every_scenario_ends_as_the_provider_says_and_is_bought_once(stack: Driver) -> None:
    events = [stack.checkout(scenario) for scenario in EXPECTED_ENDS]

    ids = stack.send(events)
    stack.wait_for(dict(zip(ids, EXPECTED_ENDS.values(), strict=True)))

    stack.assert_agreement(ids)


def test_an_unknown_outcome_is_resolved_by_the_same_bytes_and_bought_once(
    stack: Driver,
) -> None:
    (external_id,) = stack.send([stack.checkout("timeout_before_accept")])

    stack.wait_final([external_id])

    notes = [entry["note"] for entry in stack.order(external_id)["timeline"]]
    assert any("outcome unknown" in note for note in notes), notes
    (purchase,) = stack.purchases()[external_id]
    assert purchase["conflictingPosts"] == 0


def test_the_same_checkout_sent_every_way_is_one_order(stack: Driver) -> None:
    event = stack.checkout()
    expected = (httpx.codes.ACCEPTED, httpx.codes.OK)

    answers = [stack.web.post("/v1/checkouts", json=event).status_code for _ in range(2)]
    _publish(stack, event)
    _send_task(stack, event)
    stack.wait_final([event["externalId"]])

    assert tuple(answers) == expected
    assert len(stack.purchases()[event["externalId"]]) == 1
    changed = event | {"expectedPrice": event["expectedPrice"] + 1}
    assert stack.web.post("/v1/checkouts", json=changed).status_code == httpx.codes.CONFLICT


def test_a_checkout_from_the_exchange_is_fulfilled_and_the_store_hears_of_each_step(
    stack: Driver,
) -> None:
    event = stack.checkout()
    with _connection(stack) as connection:
        exchange = kombu.Exchange(STORE_EXCHANGE, type="topic", durable=True)
        mine = kombu.Queue("test.mine", exchange, routing_key="order.updated", durable=True)
        mine(connection.default_channel).declare()

        _publish(stack, event)
        heard = until("the last update", lambda: _heard(connection, mine, event["externalId"]))

    sequences = [message["sequence"] for message in heard]
    assert sequences == sorted(sequences)
    assert heard[0]["order"]["status"] == "received"
    assert heard[-1]["order"]["status"] == "completed"
    assert TOKEN not in json.dumps(heard)


_seen: dict[str, list[dict[str, Any]]] = {}


def _heard(
    connection: kombu.Connection, queue: kombu.Queue, external_id: str
) -> list[dict[str, Any]] | None:
    bound = queue(connection.default_channel)
    while message := bound.get():
        body = json.loads(message.body or "")
        _seen.setdefault(body["externalId"], []).append(body)
        message.ack()
    found = _seen.get(external_id, [])
    return found if found and found[-1]["order"]["status"] == "completed" else None


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"garbage{", "application/json", "not valid JSON"),
        (b'{"externalId": "x"}', "application/json", "catalogItemId"),
        (b"\x80\x04\x95", "application/x-python-serialize", "not valid JSON"),
        (b"[1, 2]", "application/json", "expected a JSON object"),
    ],
)
def test_what_cannot_be_taken_in_is_dead_lettered_with_its_reason(
    stack: Driver, body: bytes, content_type: str, reason: str
) -> None:
    with _connection(stack) as connection:
        exchange = kombu.Exchange(STORE_EXCHANGE, type="topic", durable=True)
        producer = kombu.Producer(connection, exchange=exchange)
        producer.publish(
            body, routing_key=CHECKOUT_KEY, content_type=content_type, content_encoding="binary"
        )

        queue = kombu.Queue(DEAD_QUEUE, durable=True)(connection.default_channel)
        found = until("the dead letter", lambda: _dead_letter(queue, body))

    assert reason in found


def _dead_letter(queue: kombu.Queue, body: bytes) -> str | None:
    """Take the next dead letter; give its reason if it is the one with this body."""
    message = queue.get()
    if message is None:
        return None
    message.ack()
    text = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    return message.headers[REASON_HEADER] if text == body else None


def test_the_command_line_takes_checkouts_and_shows_orders(stack: Driver) -> None:
    event = stack.checkout()
    lines = json.dumps(event) + "\n" + json.dumps(event | {"externalId": "bad/id"}) + "\n"

    taken = _run(stack, "checkout", "-", stdin=lines)
    stack.wait_final([event["externalId"]])
    shown = _run(stack, "order", event["externalId"], "--json")

    assert taken.returncode == 1
    assert "externalId" in taken.stderr
    assert json.loads(shown.stdout)["status"] == "completed"
    assert _run(stack, "order", "nobody").returncode == 1
    assert _run(stack, "resolve", event["externalId"]).returncode == 2


def test_an_order_waits_for_funds_and_goes_on_when_the_balance_rises(stack: Driver) -> None:
    balance = stack.ledger()["wallet"]["balance"]
    stack.change_balance(1 - balance)
    event = stack.checkout()

    (external_id,) = stack.send([event])
    until("waiting", lambda: stack.order(external_id)["status"] == "awaiting_funds")
    stack.change_balance(balance)
    stack.wait_final([external_id])

    assert stack.order(external_id)["status"] == "completed"
    stack.assert_agreement([external_id])


def _connection(stack: Driver) -> kombu.Connection:
    return kombu.Connection(stack.stack.settings.broker_url.get_secret_value())


def _publish(stack: Driver, event: dict[str, Any]) -> None:
    exchange = kombu.Exchange(STORE_EXCHANGE, type="topic", durable=True)
    with _connection(stack) as connection:
        kombu.Producer(connection, exchange=exchange).publish(event, routing_key=CHECKOUT_KEY)


def _send_task(stack: Driver, event: dict[str, Any]) -> None:
    foreign = Celery(broker=stack.stack.settings.broker_url.get_secret_value())
    foreign.send_task("checkout.receive", [event])
    foreign.close()


def _run(stack: Driver, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fulfillment.cli", *words],
        env=stack.stack.env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
