"""The one base class of all tasks: context, log fields, errors, and what Flower gets to see."""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from celery import Task
from celery.exceptions import Reject
from celery.signals import worker_shutting_down
from celery.utils.time import timezone
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.asynchronous.timer import to_timestamp

from celeryconfig import INTAKE
from fulfillment.crash import crash_point
from fulfillment.errors import FulfillmentError, InvalidInput, NotPutAside, WrongClock
from fulfillment.log import get_logger, masked
from fulfillment.messaging import dead_letters
from fulfillment.services import clock_guard, intake
from fulfillment.services.context import Context, build_context, register_accounts
from fulfillment.settings import load_settings
from schemas.messages import HINTS, RECEIVE

log = get_logger(__name__)

_MOST_NAMES = 20
#: Whoever sends more has it searched for secrets no further.
_MOST_MASKED = 1000
_PAUSE_S = 1.0
#: What a task's message may say of what comes after it, beside its arguments.
_FOLLOWING = ("callbacks", "errbacks", "chain", "chord")
#: What Celery would read of a message when its task begins. Nobody uses it: threads are ended by no
#: limit of time, and nothing here is revoked by a stamp.
_NOT_READ = ("timelimit", "stamped_headers", "stamps")
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_lock = threading.Lock()
_context: Context | None = None


def context() -> Context:
    """Give this process's context; made at first use, so that no connection crosses a fork.

    Raises WrongClock while this machine's clock is not the database's.
    """
    global _context
    with _lock:
        if _context is None:
            settings = load_settings()
            made = build_context(settings, threads=settings.worker_threads + 2)
            try:
                clock_guard.check(made)
                register_accounts(made)
            except BaseException:
                made.close()  # or each task that comes meanwhile would leave connections behind
                raise
            _context = made
    clock_guard.check(_context)
    return _context


def put_back_later(put_back: Callable[[], object]) -> None:
    """Have what could not be put aside put back in a while, and `/readyz` tell of it.

    Its consumer goes on meanwhile, and the message keeps its place among those that it may hold.
    """
    threading.Thread(target=_put_back, args=(put_back,), daemon=True).start()


def _put_back(put_back: Callable[[], object]) -> None:
    try:
        _note_not_put_aside()
    finally:
        time.sleep(_PAUSE_S)
        put_back()


def _note_not_put_aside() -> None:
    with suppress(FulfillmentError):  # without a database `/readyz` tells of that
        intake.note_not_put_aside(context())


def shown(args: Any, *, is_foreign: bool) -> str:
    """Describe a task's arguments for Flower and logs: accounts and order ids, nothing else.

    A batch shows its orders' names. What a foreign sender put in shows at the most the id of a
    checkout event: the rest of it holds a trade token.
    """
    if not isinstance(args, list | tuple):
        return "***"
    more = f", (+{len(args) - _MOST_NAMES})" if len(args) > _MOST_NAMES else ""
    one = _event_id if is_foreign else _shown
    return ", ".join(one(arg) for arg in args[:_MOST_NAMES]) + more


def _event_id(arg: Any) -> str:
    found = arg.get("externalId") if isinstance(arg, dict) else None
    is_id = isinstance(found, str) and ID.fullmatch(found)
    return f"externalId={found} ***" if is_id else "***"


def _shown(arg: Any) -> str:
    if isinstance(arg, str | int) or arg is None:
        return _cut(arg, 64)
    if not isinstance(arg, dict):
        return "***"
    if isinstance(names := arg.get("names"), list):
        more = f" (+{len(names) - _MOST_NAMES})" if len(names) > _MOST_NAMES else ""
        listed = " ".join(_cut(name, 64) for name in names[:_MOST_NAMES])
        return f"{_cut(arg.get('account'), 32)}: {listed}{more}"
    return "***"


def _cut(value: Any, most: int) -> str:
    """Mask first: of a secret that is cut nobody would know that it is one."""
    return masked(str(value)[:_MOST_MASKED])[:most]


def _following(embed: Any, headers: Mapping[str, Any]) -> list[str]:
    """Name what a sender wants to happen after its task."""
    if embed and not isinstance(embed, dict):
        return ["what is no object"]
    return [name for name in _FOLLOWING if (embed or {}).get(name) or headers.get(name)]


def _require_a_time(eta: Any) -> None:
    """Refuse a time for which Celery could set no timer, as it finds out too late."""
    if eta is None:
        return
    try:
        to_timestamp(timezone.to_system(eta))
    except (OverflowError, ValueError):
        raise InvalidInput("eta", "expected a time that this machine's clock can show") from None


def is_hint(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a task can be run with these arguments; of what a store sends intake says so."""
    if task not in HINTS:
        return True
    try:
        msgspec.convert(args, HINTS[task])
    except msgspec.ValidationError:
        return False
    return not kwargs


class ShownRequest(Request):
    """A request whose arguments are shown in events, logs and `inspect` only as `shown` says.

    What the sender put into the message's own `argsrepr` is not trusted to hold no secret. Raises
    InvalidInput for what Celery would drop, or never acknowledge, once it is under way.
    """

    if TYPE_CHECKING:  # Celery's stubs leave these out.
        _args: Any
        _kwargs: Any
        _eta: Any
        _payload: Any
        _request_dict: dict[str, Any]
        _message: Any
        _already_revoked: bool
        time_limits: tuple[float | None, float | None]
        name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of an odd one it dies then; at a time set by the sender nobody would hear of that.
        self.time_limits = (None, None)
        for name in _NOT_READ:
            self._request_dict.pop(name, None)
        _require_a_time(self._eta)
        is_foreign = self._request_dict["task"] == RECEIVE
        if is_foreign:
            self._keep_what_is_clear()
        self._argsrepr = shown(self._args, is_foreign=is_foreign)
        self._kwargsrepr = "{***}" if self._kwargs else "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr
        # A sender may call its task anything in events, its secrets among it.
        self.name, self._request_dict["shadow"] = self._request_dict["task"], None

    def _keep_what_is_clear(self) -> None:
        """Make arguments of what a store sent, and leave out what is to follow upon them.

        Celery would publish that in our name; of what it cannot, it dies past acknowledging.
        """
        args, kwargs = self._args or [], self._kwargs or {}
        if not isinstance(args, list | tuple):
            raise InvalidInput("args", "expected a list")
        if not isinstance(kwargs, dict):
            raise InvalidInput("kwargs", "expected an object")
        if dropped := _following(self._payload[2], self._request_dict):
            log.warning("task.not_followed", task=RECEIVE, dropped=dropped)
        self._args = self._request_dict["args"] = args
        self._kwargs = self._request_dict["kwargs"] = kwargs
        # As Celery has it of a message that is decoded: the worker reads no other.
        self._body = self._payload = (args, kwargs, dict.fromkeys(_FOLLOWING))
        self._content_type = self._content_encoding = None

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell Flower; an exception's text is masked as a log line is."""
        for name in ("exception", "traceback"):
            if fields.get(name):
                fields[name] = masked(str(fields[name]))
        super().send_event(type, **fields)

    def _announce_revoked(self, reason: str, terminated: bool, *args: Any) -> None:
        """Put aside a checkout whose sender's time for it is over, or that was revoked.

        One that cannot be is not acknowledged; it comes again, and is revoked again.
        """
        if self.name == RECEIVE and not terminated:
            kind, headers = self._message.content_type, self._message.headers
            told = f"expected a task message that is neither expired nor revoked, found it {reason}"
            log.error("task.unreadable", queue=INTAKE, reason=told)
            try:
                dead_letters.bury(load_settings(), self._message.body, kind, told, headers)
            except NotPutAside:
                task_ready(self)
                self._already_revoked = True  # this copy is run by nobody
                put_back_later(partial(self.reject, requeue=True))
                return
        super()._announce_revoked(reason, terminated, *args)  # type: ignore[misc]  # not in stubs

    def info(self, safe: bool = False) -> Any:
        del safe
        return super().info(safe=True)


@worker_shutting_down.connect
def _note_end(**_: Any) -> None:
    """Leave to others what they can do: who is told to stop has a minute at the most, often."""
    if _context is not None:
        _context.threads.is_ending = True


class FulfillmentTask(Task[..., Any]):
    """Runs a body with log fields bound; an error that we know is logged and never a stack trace.

    Nothing is retried through Celery: what failed is due again by its row. Only a task that
    acknowledges late has no row yet, and its message is put back.
    """

    Request = "tasks.base:ShownRequest"
    abstract = True

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        with structlog.contextvars.bound_contextvars(task=self.name, task_id=self.request.id):
            if not is_hint(self.name, args, kwargs):
                # Nothing is lost: what is due is found by the sweep.
                log.warning("task.dropped", reason="its arguments are none of this task's")
                self.stop_chain()
                return {"failed": "arguments"}
            try:
                crash_point("task.begun")
                result = self.run(*args, **kwargs)
                crash_point("task.done")
                return result
            except FulfillmentError as error:
                log.warning("task.failed", reason=str(error))
                self.stop_chain()
                if isinstance(error, NotPutAside):
                    _note_not_put_aside()
                if isinstance(error, WrongClock):
                    time.sleep(_PAUSE_S)  # so that most messages come to those whose clock is right
                if self.acks_late:
                    time.sleep(_PAUSE_S)  # what it waits for is mostly the database
                    raise Reject(str(error), requeue=True) from None
                return {"failed": type(error).__name__}
            except Exception as error:
                log.exception("task.crashed", error=type(error).__name__)
                self.stop_chain()
                raise

    def stop_chain(self) -> None:
        """Let the chain end after this step, as a success (CELERY.md section 3)."""
        self.request.chain = None
        self.request.callbacks = None
