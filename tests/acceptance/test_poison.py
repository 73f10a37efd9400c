"""Messages that are none, or are not ours: put aside, in no log, and everything else goes on."""

import base64
import json
import pickle
import re
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis
from celery import signature
from kombu import Connection
from psycopg import sql
from sqlalchemy.engine import make_url

from fulfillment.devstack.stack import StackOptions
from fulfillment.messaging.store_client import send_checkout
from schemas.messages import CHECKOUT_QUEUE, DEAD_QUEUE, REASON_HEADER
from tests.acceptance.driver import SPEED, TOKEN, Driver, running_stack, until

TASK = "checkout.receive"
TASKS = "celery"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Run a stack with one worker."""
    options = StackOptions(
        children=("simulator", "web", "worker", "beat", "intake"),
        workers=1,
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    with running_stack(tmp_path_factory.mktemp("poison"), options) as driver:
        yield driver


@pytest.fixture
def broker(shop: Driver) -> Iterator[redis.Redis]:
    """Give the broker itself, without dead letters."""
    client = redis.Redis(unix_socket_path=_url(shop).removeprefix("redis+socket://"))
    client.delete(DEAD_QUEUE)
    yield client
    client.close()


def _url(shop: Driver) -> str:
    return shop.stack.settings.broker_url.get_secret_value()


def _envelope(queue: str, **changes: Any) -> str:
    properties = {
        "body_encoding": "base64",
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    envelope = {
        "body": base64.b64encode(b"[[], {}, {}]").decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": TASK, "id": "1"},
        "properties": properties | changes.pop("properties", {}),
    }
    return json.dumps(envelope | changes)


@pytest.mark.parametrize("queue", [CHECKOUT_QUEUE, TASKS])
def test_bytes_that_are_no_message_are_put_aside_and_nobody_dies(
    shop: Driver, broker: redis.Redis, queue: str
) -> None:
    before = shop.stack.processes.pids
    poison: list[str | bytes] = [
        *("garbage", b"\xff\xfe", "{}", "[]", '"text"', "null", "7", '{"properties": {}}'),
        _envelope(queue, body=5),
        _envelope(queue, body={"externalId": "o1"}),
        _envelope(queue, body=["o1"]),
        _envelope(queue, body="\ud800", properties={"body_encoding": None}),
        _envelope(queue, properties={"delivery_tag": "\ud800"}),
        _envelope(queue, properties={"delivery_tag": "TAG"}).encode().replace(b"TAG", b"\xff\xfe"),
        '{"body": ' + "[" * 3000 + "]" * 3000 + "}",
        _envelope(queue, headers=5),
        _envelope(queue, headers={"compression": "application/x-gzip"}),
        _envelope(queue, headers={"compression": "rot13"}),
        _envelope(queue, headers={"compression": ["rot13"]}),
        _envelope(queue, properties={"body_encoding": "zip"}),
        _envelope(queue, properties={"delivery_tag": ["1"]}),
        _envelope(queue, properties={"delivery_info": None}),
    ]

    for item in poison:
        broker.lpush(queue, item)
    ids = [_send_by_message(shop), _send_by_task(shop)]

    until("all of it put aside", lambda: broker.llen(DEAD_QUEUE) == len(poison))
    assert set(shop.wait_final(ids).values()) == {"completed"}
    assert shop.stack.processes.pids == before


@pytest.mark.parametrize("queue", [CHECKOUT_QUEUE, TASKS])
def test_a_packed_checkout_is_unpacked_by_nobody_and_put_aside(
    shop: Driver, broker: redis.Redis, queue: str
) -> None:
    event = shop.checkout()
    packed = zlib.compress(json.dumps([[event], {}, {}] if queue == TASKS else event).encode())
    headers = {"task": TASK, "id": "packed", "compression": "application/x-gzip"}

    broker.lpush(queue, _envelope(queue, body=base64.b64encode(packed).decode(), headers=headers))

    until("it is put aside", lambda: broker.llen(DEAD_QUEUE) == 1)
    letter = json.loads(broker.lindex(DEAD_QUEUE, 0) or "")
    assert base64.b64decode(letter["body"]) == packed
    assert "not compressed, found application/x-gzip" in letter["headers"][REASON_HEADER]


def test_a_broadcast_that_is_no_message_ends_nobody(shop: Driver, broker: redis.Redis) -> None:
    before = shop.stack.processes.pids
    for item in ("garbage", "5", "[]", "null", '{"properties": {}}', _envelope("", body=5)):
        assert broker.publish("/0.celery.pidbox", item)
    external_id = _send_by_task(shop)

    assert set(shop.wait_final([external_id]).values()) == {"completed"}
    assert shop.stack.processes.pids == before


def _send_by_message(shop: Driver) -> str:
    event = shop.checkout()
    with Connection(_url(shop)) as connection:
        connection.Producer().publish(event, routing_key=CHECKOUT_QUEUE)
    return str(event["externalId"])


def _send_by_task(shop: Driver) -> str:
    event = shop.checkout()
    send_checkout(_url(shop), event)
    return str(event["externalId"])


def _foreign(shop: Driver) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Write messages of senders that are wrong about ours: body, content type, headers."""
    event = shop.checkout()
    task = json.dumps([[event], {}, {}])
    as_json, as_pickle = "application/json", "application/x-python-serialize"
    yield task, as_json, {"task": "checkout.recieve", "id": "1"}
    # As Go and .NET write it: no trade URL that a pattern would find.
    yield task.replace("&", "\\u0026"), as_json, {"task": "checkout.recieve", "id": "2"}
    yield task, as_json, {"task": [TOKEN], "id": "3"}
    for name in ("accumulate", "chain", "chord", "group", "chord_unlock", "backend_cleanup"):
        yield task, as_json, {"task": f"celery.{name}", "id": name}
    yield task, as_json, {"task": TASK}
    yield json.dumps(event), as_json, {"task": TASK, "id": "4"}
    yield f'"{TOKEN}"', as_json, {"task": TASK, "id": "5"}
    yield "7", as_json, {"task": TASK, "id": "6"}
    yield f'{{"a": {TOKEN}', as_json, {"task": TASK, "id": "7"}
    yield task, as_json, {"task": TASK, "id": "8", "eta": TOKEN}
    yield pickle.dumps([[{"token": TOKEN}], {}, {}]), as_pickle, {"task": TASK, "id": "9"}
    yield pickle.dumps({"token": TOKEN}), as_pickle, {}
    yield json.dumps({"token": TOKEN}), as_json, {}
    yield json.dumps({"task": "checkout.recieve", "id": "10", "args": [TOKEN]}), as_json, {}


def test_what_is_no_task_of_ours_is_put_aside_and_stands_in_no_log(
    shop: Driver, broker: redis.Redis
) -> None:
    before = shop.stack.processes.pids
    messages = list(_foreign(shop))

    with Connection(_url(shop)) as connection:
        for body, kind, headers in messages:
            encoding = "binary" if isinstance(body, bytes) else "utf-8"
            connection.Producer().publish(
                body,
                routing_key=TASKS,
                content_type=kind,
                content_encoding=encoding,
                headers=headers,
            )
    external_id = _send_by_task(shop)

    until("all of it put aside", lambda: broker.llen(DEAD_QUEUE) == len(messages))
    assert set(shop.wait_final([external_id]).values()) == {"completed"}
    assert shop.stack.processes.pids == before
    assert TOKEN not in shop.logs()


def test_a_refused_checkout_with_a_time_of_python_is_put_aside(
    shop: Driver, broker: redis.Redis
) -> None:
    """Celery's JSON brings a store's own datetime back as one."""
    naive = datetime(2026, 11, 28, 12, 0)  # noqa: DTZ001 - as a store may send it
    event = shop.checkout() | {"submitBy": naive}

    with Connection(_url(shop)) as connection:
        connection.Producer().publish(
            [[event], {}, {}], routing_key=TASKS, serializer="json",
            headers={"task": TASK, "id": "time", "x-test": "a run"},
        )  # fmt: skip

    until("it is put aside", lambda: broker.llen(DEAD_QUEUE) == 1)
    letter = json.loads(broker.lindex(DEAD_QUEUE, 0) or "")
    kept = json.loads(base64.b64decode(letter["body"]))
    assert (kept["externalId"], kept["submitBy"]) == (event["externalId"], str(naive))
    assert letter["headers"]["x-test"] == "a run"


def _send_task(shop: Driver, body: Any, queue: str = TASKS, **headers: Any) -> None:
    headers = {"task": TASK, "id": uuid.uuid4().hex, **headers}
    with Connection(_url(shop)) as connection:
        producer = connection.Producer()
        producer.publish(body, routing_key=queue, serializer="json", headers=headers)


def test_a_checkout_whose_other_arguments_are_empty_in_any_form_is_taken(
    shop: Driver, broker: redis.Redis
) -> None:
    """Celery acknowledges what has no object of keywords, and never runs it."""
    events = [shop.checkout() for _ in range(5)]
    empty: tuple[Any, ...] = (None, [], "")
    for event, kwargs in zip(events, empty, strict=False):
        _send_task(shop, [[event], kwargs, {}])
    for event, args in zip(events[3:], (None, ""), strict=True):
        _send_task(shop, [args, event, None])

    assert set(shop.wait_final([each["externalId"] for each in events]).values()) == {"completed"}
    assert not broker.llen(DEAD_QUEUE)


def test_a_checkout_whose_arguments_or_time_mean_nothing_is_put_aside_with_the_reason(
    shop: Driver, broker: redis.Redis
) -> None:
    event, before = shop.checkout(), shop.logs().count("Traceback")
    bodies = (
        *([[event], [1], {}], [[event], TOKEN, {}], [[event], 7, {}], [[event], None]),
        *([event, {}, {}], [TOKEN, {}, {}], [None, None, None]),
    )
    times = ("0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00")
    for body in bodies:
        _send_task(shop, body)
    for eta in times:
        _send_task(shop, [[event], {}, {}], eta=eta)
    _send_task(shop, [[event], [1], {}], "fulfillment.follow")

    until("all of it put aside", lambda: broker.llen(DEAD_QUEUE) == len(bodies) + len(times) + 1)
    letters = [json.loads(letter) for letter in broker.lrange(DEAD_QUEUE, 0, -1)]
    reasons = [letter["headers"][REASON_HEADER] for letter in letters]
    assert sum("eta: expected a time" in reason for reason in reasons) == len(times)
    assert sum("kwargs: expected an object" in reason for reason in reasons) == 4
    assert sum("args: expected a list" in reason for reason in reasons) == 2
    assert shop.logs().count("Traceback") == before
    assert TOKEN not in shop.logs()


@pytest.mark.parametrize("name", ["timelimit", "stamped_headers"])
def test_a_checkout_for_later_with_an_odd_header_is_taken_and_kept_by_no_worker(
    shop: Driver, broker: redis.Redis, name: str
) -> None:
    """Celery reads these when the time has come, and then refuses no message any more."""
    event, before = shop.checkout(), shop.logs().count("Traceback")
    eta = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    odd: tuple[Any, ...] = (5, True, [["a"]], {"a": 1}, "xyz", [1, 2, 3])
    ids = [f"{event['externalId']}-{number}" for number in range(2 * len(odd))]
    for each, value, at in zip(ids, odd * 2, [eta, None] * len(odd), strict=True):
        changes = {name: value, "eta": at}
        _send_task(shop, [[event | {"externalId": each}], {}, {}], **changes)

    until("all are taken", lambda: all(shop.statuses(ids).values()))
    until("none is kept", lambda: not broker.hlen("unacked"))
    assert shop.logs().count("Traceback") == before
    assert not broker.llen(DEAD_QUEUE)


FOLLOWING: tuple[Any, ...] = (
    *({"chain": [{"task": "x"}]}, {"chain": 5}, {"callbacks": [5]}, {"errbacks": ["x"]}),
    *({"chord": []}, {"chord": {"task": []}}, {"delivery_info": 5}, {"args": 5}, [5], "x", 5),
    # Well formed, to a queue that no worker of ours knows.
    {"callbacks": [signature("x", queue="a.store")]},
)


def test_what_is_to_follow_upon_a_checkout_is_dropped_and_the_worker_stays_able(
    shop: Driver, broker: redis.Redis
) -> None:
    """Celery raises past acknowledging, and each such message keeps a worker's thread for good."""
    event, before = shop.checkout(), shop.logs().count("Traceback")
    ids = [f"{event['externalId']}-{number}" for number in range(2 * len(FOLLOWING))]
    assert len(ids) > shop.stack.settings.worker_threads
    for name, following in zip(ids, FOLLOWING * 2, strict=True):
        body = [[event | {"externalId": name}], {}, following]
        _send_task(shop, body, chain=5, errbacks=5)
    external_id = _send_by_task(shop)

    assert set(shop.wait_final([external_id]).values()) == {"completed"}
    until("all are taken", lambda: all(shop.statuses(ids).values()))
    until("none is kept", lambda: not broker.hlen("unacked"))
    assert shop.logs().count("Traceback") == before
    assert not broker.llen(DEAD_QUEUE)


@pytest.mark.parametrize("expires", ["2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00"])
def test_a_checkout_whose_senders_time_is_over_is_put_aside(
    shop: Driver, broker: redis.Redis, expires: str
) -> None:
    """Celery drops such a task, and whatever bears its id from then on."""
    event = shop.checkout()

    with Connection(_url(shop)) as connection:
        connection.Producer().publish(
            [[event], {}, {}], routing_key=TASKS, serializer="json",
            headers={"task": TASK, "id": "expired", "expires": expires},
        )  # fmt: skip

    until("it is put aside", lambda: broker.llen(DEAD_QUEUE) == 1)
    letter = json.loads(broker.lindex(DEAD_QUEUE, 0) or "")
    assert json.loads(base64.b64decode(letter["body"]))[0][0]["externalId"] == event["externalId"]
    assert letter["headers"][REASON_HEADER].endswith("found it expired")
    assert TOKEN not in shop.logs()


def test_hints_that_nobody_understands_are_dropped(shop: Driver, broker: redis.Redis) -> None:
    before = shop.stack.processes.pids
    odd = json.dumps([[{"a": TOKEN}, [TOKEN]], {TOKEN: 1}, {}])

    with Connection(_url(shop)) as connection:
        for task in (
            *("checkout.dispatch", "checkout.submit_orders", "reconcile.poll_orders"),
            *("inbox.apply_webhook", "of.a.newer.version"),
        ):
            connection.Producer().publish(
                odd,
                routing_key="fulfillment.follow",
                content_type="application/json",
                content_encoding="utf-8",
                headers={"task": task, "id": task},
            )
    external_id = _send_by_task(shop)

    assert set(shop.wait_final([external_id]).values()) == {"completed"}
    until("none left", lambda: not broker.llen("fulfillment.follow"))
    assert shop.stack.processes.pids == before
    assert not broker.llen(DEAD_QUEUE)


@contextmanager
def _database_away(shop: Driver) -> Iterator[None]:
    url = make_url(shop.stack.settings.database_url.get_secret_value())
    admin = url.set(drivername="postgresql", database="template1")
    name = sql.Identifier(url.database or "")
    away = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    address = admin.render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(away.format(name, sql.SQL("false")))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [url.database],
            )
            yield
        finally:
            connection.execute(away.format(name, sql.SQL("true")))


def _failures(shop: Driver) -> int:
    """Count how often a checkout by Celery was put back."""
    return len(re.findall(rf"task\.failed.*task={TASK}", shop.logs()))


def test_checkouts_that_come_while_the_database_is_away_are_stored_when_it_is_back(
    shop: Driver, broker: redis.Redis
) -> None:
    with _database_away(shop):
        ids = [_send_by_message(shop), _send_by_task(shop)]
        until("the worker cannot store it", lambda: _failures(shop))

    assert set(shop.wait_final(ids).values()) == {"completed"}
    assert not broker.llen(DEAD_QUEUE)


def test_a_checkout_that_waits_for_the_database_outlives_its_worker(
    shop: Driver, broker: redis.Redis
) -> None:
    failures_before = _failures(shop)
    with _database_away(shop):
        external_id = _send_by_task(shop)
        until("it waits", lambda: _failures(shop) > failures_before)
        shop.stack.processes.end("worker-1", grace_s=20)
        until("it is back in its queue", lambda: broker.llen(TASKS) == 1)
    shop.stack.start_child("worker-1")

    assert set(shop.wait_final([external_id]).values()) == {"completed"}
