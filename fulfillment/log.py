"""Logging: an event name and key-values, as text for people or JSON for machines.

What looks like a secret is masked in every line, whoever wrote it.
"""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

# How JSON, HTML and other addresses escape the characters around a name.
_IS = r"(?:=\\*[\"']?|%(?:25)*3D|\\+(?:u003d|x3d)|\\*[\"']\s*:\s*\\*[\"'])"
_SECRETS = (
    (re.compile(rf"(?i)((?<![a-z])token{_IS})[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(rf"(?i)((?<![a-z])(?:password|secret){_IS})[^\s&'\"\\,;]+"), r"\1***"),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    # Up to the last @: a password may hold one.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^:/@\s]{0,300}):[^\s\"']{1,300}@"), r"\1:***@"),
)
#: Where none of these stands, no pattern above finds anything: one look in place of four.
_SUSPECT = re.compile(r"(?i)token|password|secret|bearer|://")
#: Shorter ones, such as `guest`, are words that stand in many a line.
_SHORTEST_HIDDEN = 8
# What would let a foreign text write lines of its own or command a terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SECRET_KEYS = re.compile(
    r"(?i)secret|token$|password|api[_-]?key|trade[_-]?url|signature|encryption_keys|authorization"
)


_hidden: set[str] = set()
_hidden_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """Mask these values too, wherever they stand; short ones are left as they are."""
    global _hidden_pattern
    _hidden.update(secret for secret in secrets if len(secret) >= _SHORTEST_HIDDEN)
    longest_first = sorted(_hidden, key=len, reverse=True)
    _hidden_pattern = re.compile("|".join(map(re.escape, longest_first))) if _hidden else None


def masked_field(name: str, value: str) -> str:
    """Mask a field of a foreign message as it would be in a log line."""
    return masked(str(_masked_value(name, value)))


def masked(text: str) -> str:
    """Mask what `hide` was told, trade tokens, and passwords inside addresses."""
    if _SUSPECT.search(text):
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return _hidden_pattern.sub("***", text) if _hidden_pattern else text


class _Lossy:
    """A standard stream whose lines are lost where they cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_a_full_disk() -> None:
    """Have this process lose its lines where the disk of its log is full, and go on."""
    for name in ("stdout", "stderr"):
        stream = _Lossy(getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # which Celery prefers


def mask_crashes() -> None:
    """Mask the last words of a process or thread that dies of an error nobody caught."""

    def tell(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))

    def tell_of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            tell(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = tell
    threading.excepthook = tell_of_thread


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = _masked_value(key, value)
    return event


def _masked_value(key: Any, value: Any) -> Any:
    if _SECRET_KEYS.search(str(key)):
        return "***"
    if isinstance(value, Mapping):
        return {name: _masked_value(name, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_value("", each) for each in value]
    if isinstance(value, str) and not value.isprintable():
        return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], value)
    return value


class _MaskingFormatter(structlog.stdlib.ProcessorFormatter):
    """Masks the finished line, so that no exception, object or foreign message goes past it."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def _shorten_lost_tick(record: logging.LogRecord) -> bool:
    """Make one line of a tick that beat could not send: it writes two stacks, several a second."""
    if str(record.msg).startswith("Message Error") and record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = "a tick was not sent: %s", (kind.__name__ if kind else "",)
        record.exc_info = None
    return True


def configure(level: str = "INFO", style: str = "text") -> None:
    """Set up logging of this process, foreign libraries included."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _MaskingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These tell of every request, with its whole address; and of each message, with all that its
    # sender put in.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "amqp", "celery.pool", "kombu.pidbox"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("celery.beat").addFilter(_shorten_lost_tick)
    # These tell of every tick, several a second; Flower shows the same.
    if level != "DEBUG":
        for ticking in ("celery.beat", "celery.app.trace", "celery.worker.strategy", "alembic"):
            logging.getLogger(ticking).setLevel(logging.WARNING)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Give a logger that takes an event name and key-values."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
