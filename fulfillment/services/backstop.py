"""One order that nobody can deal with must not stop those beside it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from fulfillment.errors import FulfillmentError
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


def alone(act: Callable[[], R], order: str, otherwise: Callable[[str], R]) -> R:
    """Do something about one order; give `otherwise` of a reason where it fails unexpectedly."""
    try:
        return act()
    except FulfillmentError:
        raise
    except Exception as error:
        set_aside(order, error)
        return otherwise(f"an answer that we fail at: {type(error).__name__}")


def set_aside(order: str, error: Exception) -> None:
    """Say which order made a step fail in a way that is a bug; its text may quote what came in."""
    log.error("order.set_aside", order_id=order, reason=type(error).__name__)
