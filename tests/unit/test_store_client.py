"""The store's helper for Celery: everything arrives, and only the id is to be seen on the way."""

import json
from typing import Any

import pytest
from celery import Celery
from kombu import Message, Queue

from fulfillment import broker
from fulfillment.messaging import store_client
from schemas.messages import RECEIVE

EVENT = {
    "externalId": "order_100042",
    "catalogItemId": "0b0f4f0e-7c1e-4d0e-9a51-0d6c5a6c7f10",
    "expectedPrice": 1840,
    "tradeUrl": "https://steamcommunity.com/tradeoffer/new/?partner=123&token=canaryTk",
}


def published(app: Celery) -> Message:
    with app.connection_for_read() as connection:
        message = Queue(store_client.QUEUE.name, channel=connection.channel()).get(no_ack=True)
    assert isinstance(message, Message)
    return message


@pytest.mark.parametrize("how", ["app", "url"])
def test_the_event_arrives_and_its_description_holds_the_id_only(how: str) -> None:
    url = "memory://"
    app = store_client._application(url) if how == "url" else Celery("shop", broker=url)

    task_id = store_client.send_checkout(url if how == "url" else app, EVENT)

    message = published(app)
    headers: dict[str, Any] = message.headers
    args, kwargs, _ = json.loads(message.body or "")
    assert (headers["task"], headers["id"], args, kwargs) == (RECEIVE, task_id, [EVENT], {})
    assert headers["argsrepr"] == "(externalId=order_100042 ***,)"
    assert "canaryTk" not in json.dumps(headers)


def test_a_store_whose_own_default_queue_differs_still_sends_to_ours() -> None:
    app = Celery("shop", broker="memory://")
    app.conf.task_default_queue = "shop"
    app.conf.task_default_queue_type = "quorum"

    store_client.send_checkout(app, EVENT)

    assert published(app).delivery_info["routing_key"] == "celery"


def test_the_queue_is_the_one_that_the_workers_declare() -> None:
    ours = broker.app.amqp.queues["celery"]
    assert ours == store_client.QUEUE
    assert store_client.TASK == RECEIVE
