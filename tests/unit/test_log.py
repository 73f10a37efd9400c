"""No secret in a log line, whoever wrote it."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
import structlog
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.concurrency.solo import TaskPool
from celery.schedules import schedule

from fulfillment import log
from tests.support import TOKEN, TRADE_URL

PASSWORD = "pw-c4n4ry"


@contextmanager
def configured(style: str) -> Iterator[None]:
    """Configure logging for one test, and leave no trace of it."""
    root = logging.getLogger()
    level, levels = root.level, {name: each.level for name, each in _loggers()}
    log.configure("DEBUG", style)
    (handler,) = root.handlers
    yield
    root.removeHandler(handler)
    root.setLevel(level)
    for name, each in _loggers():
        each.setLevel(levels.get(name, logging.NOTSET))
    structlog.reset_defaults()


@pytest.fixture(params=["text", "json"])
def lines(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], str]]:
    """Configure logging in one of its styles; give what it wrote."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with configured(request.param):
        yield stream.getvalue


def _loggers() -> list[tuple[str, logging.Logger]]:
    found = logging.getLogger().manager.loggerDict.items()
    return [(name, each) for name, each in found if isinstance(each, logging.Logger)]


ADDRESSES = [
    f"amqp://guest:{PASSWORD}@rabbit:5672//",
    f"postgresql+psycopg://app:{PASSWORD}@db:5432/x",
    f"redis://:{PASSWORD}@127.0.0.1:6379/0",
    f"connecting to amqps://a.b:{PASSWORD}@h failed; retrying amqps://a.b:{PASSWORD}@h",
    f"http://user:{PASSWORD}@flower.example/",
    f"amqp://guest:p@{PASSWORD}@rabbit//",
    f"amqp://guest:p/{PASSWORD}@rabbit//",
    f"postgresql://h/d?user=u&password={PASSWORD}",
    f"host=h password='{PASSWORD}'",
    f"Authorization: Bearer {PASSWORD}",
    f'{{"password": "{PASSWORD}"}}',
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_passwords_inside_addresses_are_masked(address: str) -> None:
    assert PASSWORD not in log.masked(address)
    assert "***" in log.masked(address)


@pytest.mark.parametrize(
    "text",
    [
        TRADE_URL,
        TRADE_URL.replace("token", "TOKEN"),
        f"x {TRADE_URL} y {TRADE_URL}",
        f"?token={TOKEN}&partner=1",
        repr({"u": TRADE_URL}),
        quote(TRADE_URL, safe=""),
        quote(quote(TRADE_URL, safe=""), safe=""),
        # As Go, .NET, HTML and Python write it inside something else.
        TRADE_URL.replace("&", "\\u0026"),
        TRADE_URL.replace("&", "\\u0026").replace("=", "\\u003d"),
        TRADE_URL.replace("&", "\\\\u0026"),
        TRADE_URL.replace("&", "&amp;"),
        f"token={TOKEN}",
        json.dumps({"token": TOKEN}),
        json.dumps(json.dumps({"token": TOKEN})),
    ],
)
def test_trade_tokens_are_masked(text: str) -> None:
    assert TOKEN not in log.masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "order_100042 moved",
        "http://127.0.0.1:8080/webhooks/main",
        "a: b@c",
        "token bucket",
        "FULFILLMENT_API_TOKEN: is not set",
        "expected 1 to 16 of a token's letters",
        "redis+socket:///tmp/redis.sock",
        "at 12:30:00 somebody@example.com wrote",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert log.masked(text) == text


@pytest.mark.parametrize(
    "key",
    [
        "client_secret",
        "previous_secret",
        "api_key",
        "api_token",
        "password",
        "trade_url",
        "tradeUrl",
        "x_signature",
        "token",
        "encryption_keys",
        "authorization",
    ],
)
def test_a_value_is_masked_by_its_name(lines: Callable[[], str], key: str) -> None:
    log.get_logger("test").info("event", **{key: PASSWORD})

    assert PASSWORD not in lines()


def test_a_secret_inside_a_value_is_masked(lines: Callable[[], str]) -> None:
    log.get_logger("test").warning("event", why=f"cannot send to {TRADE_URL}", url=ADDRESSES[0])

    written = lines()
    assert "cannot send to" in written
    assert TOKEN not in written
    assert PASSWORD not in written


def test_a_secret_inside_a_nested_value_is_masked(lines: Callable[[], str]) -> None:
    log.get_logger("test").info(
        "event", order={"tradeUrl": TRADE_URL, "more": [{"client_secret": PASSWORD}]}
    )

    written = lines()
    assert TOKEN not in written
    assert PASSWORD not in written


def test_a_secret_inside_an_object_is_masked(lines: Callable[[], str]) -> None:
    log.get_logger("test").info("event", error=ValueError(f"no route for {TRADE_URL}"))

    assert TOKEN not in lines()


def test_a_secret_in_an_exception_is_masked(lines: Callable[[], str]) -> None:
    try:
        raise ValueError(f"{TRADE_URL} {ADDRESSES[0]}")
    except ValueError:
        log.get_logger("test").exception("event")

    written = lines()
    assert "ValueError" in written
    assert TOKEN not in written
    assert PASSWORD not in written


def test_foreign_libraries_are_masked_too(lines: Callable[[], str]) -> None:
    foreign = logging.getLogger("some.library")

    foreign.warning("connected to %s for %s", ADDRESSES[0], TRADE_URL)
    try:
        raise OSError(ADDRESSES[1])
    except OSError:
        foreign.exception("failed")

    written = lines()
    assert "OSError" in written
    assert PASSWORD not in written
    assert TOKEN not in written


def test_a_foreign_text_writes_no_line_of_its_own_and_commands_no_terminal(
    lines: Callable[[], str],
) -> None:
    log.get_logger("test").info("event", order_id="a\n2026-11-20_forged\x1b[2J\x9b31m\r")

    written = lines()
    assert len(written.splitlines()) == 1
    assert written.rstrip("\n").isprintable()


def test_the_last_words_of_a_thread_are_masked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for hooks, name in ((sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(hooks, name, getattr(hooks, name))
    log.mask_crashes()

    def die() -> None:
        raise ValueError(ADDRESSES[0])

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()

    written = capsys.readouterr().err
    assert "ValueError" in written
    assert "in die" in written
    assert PASSWORD not in written


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_json_lines_can_be_read_by_a_machine(lines: Callable[[], str]) -> None:
    log.get_logger("test").info("order.transition", order_id="order_1")

    line = json.loads(lines())
    assert line["event"] == "order.transition"
    assert line["order_id"] == "order_1"
    assert line["level"] == "info"


def test_celery_writes_down_no_message_also_when_everything_is_logged(
    lines: Callable[[], str],
) -> None:
    request = ("task", "id", {"argsrepr": "canaryTk", "headers": "canaryTk"})
    done: list[object] = []
    TaskPool().apply_async(
        lambda *args: args, request, {}, callback=done.append, accept_callback=lambda *args: None
    )

    assert done == [request]
    assert logging.getLogger().isEnabledFor(logging.DEBUG)
    assert "canaryTk" not in lines()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_tick_that_cannot_be_sent_is_one_line(
    lines: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several a second, while a broker is away for an hour."""
    app = Celery(broker="memory://")
    scheduler = Scheduler(app, lazy=True)
    monkeypatch.setattr(scheduler, "apply_async", mock.Mock(side_effect=ConnectionRefusedError))

    scheduler.apply_entry(
        ScheduleEntry("sweep", "sweep.resume_stuck", schedule=schedule(1), app=app)
    )

    written = lines()
    assert written.count("\n") == 2  # the first says that it is due
    assert "a tick was not sent: ConnectionRefusedError" in written


@pytest.mark.parametrize("is_lossy", [False, True])
def test_a_process_outlives_a_disk_that_keeps_none_of_its_lines(is_lossy: bool) -> None:
    program = (
        "import sys; from fulfillment import log; "
        f"{'log.outlive_a_full_disk(); ' * is_lossy}log.configure(); "
        "print('banner', file=sys.__stdout__, flush=True); log.get_logger('test').error('line'); "
        "print('more' * 10_000); sys.exit(7)"
    )
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full)

    assert (ended.returncode == 7) is is_lossy
