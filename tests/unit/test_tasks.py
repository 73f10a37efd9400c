"""What Flower and logs get to see of a task's arguments, and how long it is asked for."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from celery.beat import Scheduler
from celery.worker.consumer import Consumer
from structlog.testing import capture_logs

from fulfillment.broker import app
from schemas import messages
from schemas.messages import HINTS
from tasks import base
from tasks.base import is_hint, put_back_later, shown
from tasks.consumer import SafeConsumer
from tests.support import until

EVENT = {"externalId": "order_1", "tradeUrl": "https://steamcommunity.com/?token=canaryTk"}


def test_a_batch_shows_its_orders_names() -> None:
    batch = {"account": "main", "token": "t", "ids": [1, 2], "names": ["a.1", "b-2"]}

    assert shown([batch], is_foreign=False) == "main: a.1 b-2"


def test_a_foreign_event_shows_its_id_and_nothing_else() -> None:
    assert shown([EVENT], is_foreign=True) == "externalId=order_1 ***"
    assert shown([EVENT, "canaryTk"], is_foreign=True) == "externalId=order_1 ***, ***"
    assert shown(["canaryTk"], is_foreign=True) == "***"
    assert shown([EVENT | {"externalId": "x canaryTk"}], is_foreign=True) == "***"
    assert shown({"any": "canaryTk"}, is_foreign=True) == "***"


def test_a_text_in_the_place_of_an_id_is_masked_as_a_log_line_is() -> None:
    url = EVENT["tradeUrl"]
    # Cut before its @, which a text is not before it was masked, nobody would know a password.
    address = "-" * 46 + " amqp://u:canaryTk@host"
    hint = [url, "a token=canaryTk", address, {"account": url, "names": [url]}]

    assert "canaryTk" not in shown(hint, is_foreign=False)


def test_celerys_own_tasks_are_as_unknown_as_any_that_we_do_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their requests are not ours, and Flower would show what a store sends to them."""
    app.loader.import_default_modules()
    consumer = object.__new__(SafeConsumer)
    consumer.strategies = {}
    of_all = staticmethod(lambda: consumer.strategies.update(dict.fromkeys(app.tasks)))
    monkeypatch.setattr(Consumer, "update_strategies", of_all)

    consumer.update_strategies()

    assert {messages.RECEIVE, *HINTS} == set(consumer.strategies)


def test_beat_sends_none_of_celerys_own_tasks() -> None:
    scheduler = Scheduler(app, lazy=True)
    scheduler.setup_schedule()

    assert {entry.task for entry in scheduler.schedule.values()} <= HINTS.keys()


def test_what_cannot_be_put_aside_is_told_of_and_put_back_a_second_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once it would come again at once, and go round as fast as a worker can read."""
    done: list[Any] = []
    monkeypatch.setattr(base, "_note_not_put_aside", lambda: done.append("told"))
    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=done.append))

    put_back_later(lambda: done.append("put back"))

    until(lambda: "put back" in done)
    assert done == ["told", 1.0, "put back"]


BATCH = {"account": "main", "token": "0f", "ids": [1, 2], "names": ["a.1", "b-2"]}
GOOD: list[tuple[str, tuple[Any, ...]]] = [
    (messages.DISPATCH, ("main", "second")),
    (messages.SUBMIT_ORDERS, (BATCH,)),
    (messages.POLL_ORDERS, (BATCH | {"token": ""},)),
    (messages.POLL_DUE, ()),
    (messages.APPLY_WEBHOOK, ("a.1",)),
    (messages.RESUME_STUCK, ()),
    (messages.RESUME_STUCK, (True,)),
]
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    (messages.DISPATCH, ({"a": "canaryTk"},), {}),
    (messages.DISPATCH, ("canaryTk",), {}),  # no account has such a name
    (messages.DISPATCH, ("main\n",), {}),
    (messages.SUBMIT_ORDERS, ({"account": "main", "names": ["canaryTk"]},), {}),
    (messages.SUBMIT_ORDERS, (BATCH | {"ids": ["canaryTk"]},), {}),
    (messages.SUBMIT_ORDERS, (BATCH | {"ids": [2**63]},), {}),
    (messages.SUBMIT_ORDERS, (BATCH | {"token": "canaryTk\0"},), {}),
    (messages.SUBMIT_ORDERS, (BATCH, BATCH), {}),
    (messages.SUBMIT_ORDERS, (), {}),
    (messages.POLL_ORDERS, ("canaryTk", ["canaryTk"]), {}),
    (messages.POLL_DUE, ("canaryTk",), {}),
    (messages.POLL_DUE, (), {"canaryTk": 1}),
    (messages.POLL_DUE, (), {"self": "canaryTk"}),
    (messages.APPLY_WEBHOOK, (["canaryTk"],), {}),
    (messages.RESUME_STUCK, ("canaryTk",), {}),
    (messages.RESUME_STUCK, (True, True), {}),
]


def test_every_task_but_the_stores_own_says_what_its_arguments_are() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if not name.startswith("celery.")}

    assert {messages.RECEIVE, *HINTS} == ours


@pytest.mark.parametrize(("task", "args"), GOOD)
def test_what_we_send_is_a_hint(task: str, args: tuple[Any, ...]) -> None:
    assert is_hint(task, args, {})


@pytest.mark.parametrize(("task", "args", "kwargs"), BAD)
def test_a_hint_with_wrong_arguments_is_dropped_in_one_line_without_them(
    task: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    app.loader.import_default_modules()

    with capture_logs() as logs:
        app.tasks[task](*args, **kwargs)

    assert [each["event"] for each in logs] == ["task.dropped"]
    assert "canaryTk" not in str(logs)


HINT = (
    "import time; from fulfillment.broker import hint; began = time.monotonic(); "
    "is_taken = hint('checkout.dispatch', 'main'); print(is_taken, time.monotonic() - began < 2)"
)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_a_hint_to_a_broker_that_is_away_is_waited_for_by_nobody(url: str) -> None:
    """kombu would try for six seconds, and a step of a worker that is under way with it."""
    environment = os.environ | {"FULFILLMENT_BROKER_URL": url}

    done = subprocess.run(
        [sys.executable, "-c", HINT], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split()[-2:] == ["False", "True"]
