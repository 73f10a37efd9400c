"""One order that nobody can deal with must not stop those beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fulfillment.errors import FulfillmentError, ProviderNotReached
from fulfillment.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def apart(
    act: Callable[[Sequence[T]], R], members: Sequence[T], name: Callable[[T], str]
) -> list[R]:
    """Act on all at once; where that fails as nobody expects, on each by itself.

    What fails alone is set aside, and comes up again when it is due. Our own errors are raised.
    """
    try:
        return [act(members)]
    except FulfillmentError:
        raise
    except Exception as error:
        if len(members) == 1:
            set_aside(name(members[0]), error)
            return []
    return [result for member in members for result in apart(act, [member], name)]


@dataclass
class Halves(Generic[T, R]):
    """What came of acting on all, on halves, and so on; `failed` are those that fail alone.

    With an `error` and nobody who failed, no member is to blame.
    """

    results: list[R] = field(default_factory=list)
    failed: list[T] = field(default_factory=list)
    error: Exception | None = None


def halved(act: Callable[[Sequence[T]], R], members: Sequence[T]) -> Halves[T, R]:
    """Act on all at once; where that fails as nobody expects, find out who makes it fail.

    What is acted on again must do nothing but look. Our own errors are raised.
    """
    whole = tried(act, members)
    if whole.error is None or tried(act, []).error is not None:
        return Halves(whole.results, error=whole.error)
    return _apart_by_halves(act, members, whole)


def _apart_by_halves(
    act: Callable[[Sequence[T]], R], members: Sequence[T], whole: Halves[T, R]
) -> Halves[T, R]:
    if whole.error is None:
        return whole
    if len(members) == 1:
        return Halves(failed=list(members), error=whole.error)
    middle = len(members) // 2
    halves = Halves[T, R](error=whole.error)
    for half in (members[:middle], members[middle:]):
        found = _apart_by_halves(act, half, tried(act, half))
        halves.results += found.results
        halves.failed += found.failed
    return halves


def tried(act: Callable[[Sequence[T]], R], members: Sequence[T]) -> Halves[T, R]:
    """Act on all at once, and give what came of it. Our own errors are raised."""
    try:
        return Halves([act(members)])
    except FulfillmentError:
        raise
    except Exception as error:
        return Halves(error=error)


def alone(act: Callable[[], R], order: str, otherwise: Callable[[str], R]) -> R:
    """Do something about one order; give `otherwise` of a reason where it fails unexpectedly."""
    try:
        return act()
    except FulfillmentError:
        raise
    except Exception as error:
        set_aside(order, error)
        return otherwise(_unreadable(error))


def left_to_others(act: Callable[[], R], event: str) -> tuple[R | None, bool]:
    """Do what somebody else will do again where it fails; say whether it did."""
    try:
        return act(), False
    except FulfillmentError as error:
        log.warning(event, reason=str(error))
    except Exception as error:
        note_bug(event, error)
    return None, True


def read(ask: Callable[[], R], what: str) -> R:
    """Ask a provider for something that changes nothing there.

    An answer that our code fails at is as good as none: raises ProviderNotReached then, like any
    other error of ours that `ask` raises.
    """
    try:
        return ask()
    except FulfillmentError:
        raise
    except Exception as error:
        note_bug("answer.set_aside", error, what=what)
        raise ProviderNotReached(_unreadable(error)) from None


def _unreadable(error: Exception) -> str:
    return f"an answer that we fail at: {type(error).__name__}"


def set_aside(order: str, error: Exception) -> None:
    """Say which order made a step fail in a way that is a bug."""
    note_bug("order.set_aside", error, order_id=order)


def note_bug(event: str, error: Exception, **what: str) -> None:
    """Tell of an error that is ours, without its text, which may quote what came in."""
    log.error(event, reason=type(error).__name__, **what)
