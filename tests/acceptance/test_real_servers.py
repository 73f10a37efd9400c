"""The same processes on real servers: PostgreSQL with RabbitMQ and with Redis.

Skipped where none is named.
"""

from collections.abc import Iterator

import kombu
import pytest

from fulfillment.devstack.stack import StackOptions
from schemas.messages import CHECKOUT_KEY, STORE_EXCHANGE
from tests.acceptance.driver import SPEED, Driver, running_stack

ENDS = {
    "delivered": "completed",
    "webhooks_lost": "completed",
    "webhook_before_answer": "completed",
    "fails_after_accept": "failed",
    "cancelled": "cancelled",
    "reversed": "reversed",
    "timeout_before_accept": "completed",
    "dropped_after_accept": "completed",
    "item_gone": "failed",
}


@pytest.fixture(scope="module", params=["rabbitmq", "redis"])
def real(
    tmp_path_factory: pytest.TempPathFactory, empty_database: str, request: pytest.FixtureRequest
) -> Iterator[Driver]:
    name = "broker_url" if request.param == "rabbitmq" else "redis_url"
    broker_url: str = request.getfixturevalue(name)
    options = StackOptions(
        children=("simulator", "web", "worker", "beat", "intake"),
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    with running_stack(
        tmp_path_factory.mktemp("real"),
        options,
        database_url=empty_database,
        broker_url=broker_url,
    ) as driver:
        yield driver


def test_scenarios_end_as_scripted_on_real_servers(real: Driver) -> None:
    ids = real.send(real.checkout(scenario) for scenario in ENDS)

    real.wait_for(dict(zip(ids, ENDS.values(), strict=True)))

    real.assert_agreement(ids)


def test_no_secret_or_password_of_a_server_is_in_any_log_or_page(real: Driver) -> None:
    ids = real.send([real.checkout()])
    real.wait_final(ids)

    seen = real.logs() + "".join(
        real.web.get(path).text for path in ("/metrics", "/readyz", "/v1/orders", "/v1/wallets")
    )

    assert ids[0] in seen
    assert not [secret for secret in real.secrets() if secret in seen]


def test_garbage_between_good_checkouts_strands_none_of_them(real: Driver) -> None:
    events = [real.checkout("webhooks_lost") for _ in range(100)]
    exchange = kombu.Exchange(STORE_EXCHANGE, type="topic", durable=True)
    with kombu.Connection(real.stack.settings.broker_url.get_secret_value()) as connection:
        producer = kombu.Producer(connection, exchange=exchange)
        for place, event in enumerate(events):
            producer.publish(event, routing_key=CHECKOUT_KEY)
            if place % 5 == 0:
                producer.publish(
                    b"junk",
                    routing_key=CHECKOUT_KEY,
                    content_type="application/json",
                    content_encoding="utf-8",
                )

    ids = [event["externalId"] for event in events]
    assert set(real.wait_final(ids).values()) == {"completed"}
    real.assert_agreement(ids)


def test_workers_killed_under_load_on_real_servers_lose_and_double_nothing(real: Driver) -> None:
    ids = real.send(real.checkout("webhooks_lost") for _ in range(60))

    for name in ("worker-1", "worker-2", "worker-1"):
        real.kill_and_revive(name)

    assert set(real.wait_final(ids).values()) == {"completed"}
    real.assert_agreement(ids)
