"""Logging: an event name and key-values, as text for people or JSON for machines.

What looks like a secret is masked in every line, whoever wrote it.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRETS = (
    (re.compile(r"(?i)([?&]token=)[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
)
_SECRET_KEYS = re.compile(r"(?i)secret|token$|password|api_key|trade_url|signature")


def masked(text: str) -> str:
    """Mask trade tokens and passwords inside addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = masked(value)
    return event


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
        structlog.stdlib.ProcessorFormatter(
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
