"""A Dramatiq pipeline per order, the other engine: four actors, each one step of the order.

Workers: `dramatiq benchmarks.baselines.dramatiq_pipeline`.
"""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.baselines import work

# Dramatiq has its own spelling for a Redis on a unix socket.
_url = (
    os.environ["BENCH_BROKER_URL"].replace("redis+socket:", "unix:").replace("virtual_host", "db")
)
dramatiq.set_broker(RabbitmqBroker(url=_url) if _url.startswith("amqp") else RedisBroker(url=_url))


@dramatiq.actor
def refresh_catalog(external_id: str) -> str:
    work.refresh_catalog(external_id)
    return external_id


@dramatiq.actor
def check_wallet(external_id: str) -> str:
    work.check_wallet(external_id)
    return external_id


@dramatiq.actor
def submit_order(external_id: str) -> dict[str, Any]:
    return work.submit_order(external_id)


@dramatiq.actor
def record_accepted(answer: dict[str, Any]) -> None:
    work.record_accepted(answer)


def send(external_id: str) -> None:
    """Start an order that is stored."""
    steps = [refresh_catalog.message(external_id), check_wallet.message()]
    dramatiq.pipeline([*steps, submit_order.message(), record_accepted.message()]).run()
