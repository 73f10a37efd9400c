"""A Celery chain of four tasks that do nothing: the most orders that the engine can chain.

The last one writes a byte into a pipe, so that the end is seen without costing anything.
"""

import os

from celery import Celery, chain

app = Celery("noop", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(task_ignore_result=True, task_default_queue="noop_chain")
_pipe = -1


@app.task
def step(place: int) -> int:
    return place


@app.task
def last(place: int) -> None:
    del place
    global _pipe
    if _pipe < 0:
        _pipe = os.open(os.environ["BENCH_PIPE"], os.O_WRONLY)
    os.write(_pipe, b".")


def send(_: str) -> None:
    """Start one chain."""
    chain(step.s(0), step.s(), step.s(), last.s())()
