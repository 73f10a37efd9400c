"""A plain Celery chain per order: four tasks, acknowledged late, each one step of the order.

Workers: `celery -A benchmarks.baselines.celery_chain worker`.
"""

import os
from typing import Any

from celery import Celery, chain

from benchmarks.baselines import work

app = Celery("plain", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=1)
app.conf.task_default_queue = "celery_chain"


@app.task
def refresh_catalog(external_id: str) -> str:
    work.refresh_catalog(external_id)
    return external_id


@app.task
def check_wallet(external_id: str) -> str:
    work.check_wallet(external_id)
    return external_id


@app.task
def submit_order(external_id: str) -> dict[str, Any]:
    return work.submit_order(external_id)


@app.task
def record_accepted(answer: dict[str, Any]) -> None:
    work.record_accepted(answer)


def send(external_id: str) -> None:
    """Start an order that is stored."""
    chain(refresh_catalog.s(external_id), check_wallet.s(), submit_order.s(), record_accepted.s())()
