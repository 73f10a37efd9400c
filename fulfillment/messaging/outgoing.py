"""What leaves for the store, and what the relay asks of whoever publishes it."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from kombu.exceptions import OperationalError

from fulfillment.store.bindings import Binding

TYPE, ENCODING = "application/json", "utf-8"
PERSISTENT = 2

#: A routing key, a body in JSON, headers.
Outgoing = tuple[str, bytes, dict[str, str]]


class RefusedByQueue(OperationalError):
    """RabbitMQ answers, and a queue of the store takes none of what has these routing keys."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = sorted(keys)
        super().__init__(f"a queue of the store refused messages of {', '.join(self.keys)}")


class Publisher(Protocol):
    """Publishes for the one relay that has the lease.

    `confirmed` says what the broker surely has of the group last published, by place; of each
    order only what has nothing unconfirmed before it.
    `known` is where queues of the store are bound, or were when one was; who has the lease sets it
    to what was known before. `is_unheard` says that none of them was there for the last group, and
    `is_in_doubt` that one was not for long, while it cannot be told whether the store still wants
    it: then `settle` is called.
    """

    broker: str
    confirmed: Sequence[int]
    known: frozenset[Binding]
    is_unheard: bool
    #: By routing key a message that has reached the store, where that has to be found out.
    told_before: dict[str, Outgoing]

    @property
    def is_in_doubt(self) -> bool: ...

    def publish(self, group: Sequence[Outgoing], within_s: float) -> None:
        """Publish in order. Raises what `broker.PUBLISH_ERRORS` names.

        RefusedByQueue is raised at the end, when all else is published that may be.
        """

    def settle(self, within_s: float) -> None:
        """Find out what the store wants no more, by what was told before. Raises the same."""

    def look(self) -> bool:
        """See where queues are bound; say whether the broker has forgotten it. Raises the same."""

    def bind_again(self) -> None:
        """Tell a broker that has forgotten it where queues were bound. Raises the same."""

    def unread(self, names: Iterable[str]) -> dict[str, int]:
        """Count what waits in the store's queues, in these where the broker names none.

        One that is not there, or may not be looked at, is left out. Raises the same.
        """

    def backlog(self) -> int:
        """Count what waits in the store's shortest queue; 0 where nobody tells. Raises the same."""
