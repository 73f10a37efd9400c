"""Logging: an event name and key-values, as text for people or JSON for machines.

What looks like a secret is masked in every line, whoever wrote it.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

_SECRETS = (
    # Also where the address stands escaped inside another one.
    (re.compile(r"(?i)((?:[?&]|%3F|%26)token(?:=|%3D))[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
)
_SECRET_KEYS = re.compile(
    r"(?i)secret|token$|password|api_?key|trade_?url|signature|encryption_keys|authorization"
)


def masked(text: str) -> str:
    """Mask trade tokens and passwords inside addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


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
    return value


class _MaskingFormatter(structlog.stdlib.ProcessorFormatter):
    """Masks the finished line, so that no exception, object or foreign message goes past it."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


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
    # These tell of every request, with its whole address.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # These tell of every tick, several a second; Flower shows the same.
    if level != "DEBUG":
        for ticking in ("celery.beat", "celery.app.trace", "celery.worker.strategy", "alembic"):
            logging.getLogger(ticking).setLevel(logging.WARNING)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Give a logger that takes an event name and key-values."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
