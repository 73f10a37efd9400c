"""The one base class of all tasks: context, log fields, errors, and what Flower gets to see."""

import threading
from typing import TYPE_CHECKING, Any

import structlog
from celery import Task
from celery.worker.request import Request

from fulfillment.errors import FulfillmentError
from fulfillment.log import get_logger
from fulfillment.services.context import Context, build_context, register_accounts
from fulfillment.settings import load_settings

log = get_logger(__name__)

_MOST_NAMES = 20
_lock = threading.Lock()
_context: Context | None = None


def context() -> Context:
    """Give this process's context; made at first use, so that no connection crosses a fork."""
    global _context
    with _lock:
        if _context is None:
            settings = load_settings()
            made = build_context(settings, threads=settings.worker_threads + 2)
            register_accounts(made)
            _context = made
        return _context


def shown(args: Any) -> str:
    """Describe a task's arguments for Flower and logs: accounts and order ids, nothing else.

    A batch shows its orders' names. A checkout event, which a foreign sender may have put in,
    shows its id only: the rest of it holds a trade token.
    """
    return ", ".join(_shown(arg) for arg in args) if isinstance(args, list | tuple) else "***"


def _shown(arg: Any) -> str:
    if isinstance(arg, str | int) or arg is None:
        return str(arg)[:64]
    if not isinstance(arg, dict):
        return "***"
    if isinstance(names := arg.get("names"), list):
        more = f" (+{len(names) - _MOST_NAMES})" if len(names) > _MOST_NAMES else ""
        listed = " ".join(str(name)[:64] for name in names[:_MOST_NAMES])
        return f"{str(arg.get('account'))[:32]}: {listed}{more}"
    return f"externalId={str(arg.get('externalId'))[:64]} ***"


class ShownRequest(Request):
    """A request whose arguments are shown in events, logs and `inspect` only as `shown` says.

    What the sender put into the message's own `argsrepr` is not trusted to hold no secret.
    """

    if TYPE_CHECKING:  # Celery's stubs leave these out.
        _args: Any
        _kwargs: Any
        _request_dict: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = shown(self._args)
        self._kwargsrepr = "{***}" if self._kwargs else "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def info(self, safe: bool = False) -> Any:
        del safe
        return super().info(safe=True)


class FulfillmentTask(Task[..., Any]):
    """Runs a body with log fields bound; an error that we know is logged and never a stack trace.

    Nothing is retried through Celery: what failed is due again by its row.
    """

    Request = "tasks.base:ShownRequest"
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with structlog.contextvars.bound_contextvars(task=self.name, task_id=self.request.id):
            try:
                return self.run(*args, **kwargs)
            except FulfillmentError as error:
                log.warning("task.failed", reason=str(error))
                self.stop_chain()
                return {"failed": type(error).__name__}
            except Exception as error:
                log.exception("task.crashed", error=type(error).__name__)
                self.stop_chain()
                raise

    def stop_chain(self) -> None:
        """Let the chain end after this step, as a success (CELERY.md section 3)."""
        self.request.chain = None
        self.request.callbacks = None
