"""Routing keys of which a queue of the store takes nothing: it is full, and set to refuse.

Each attempt may repeat a message at the other queues of its key, so they grow rare.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass

_SHORTEST_S, _LONGEST_S = 1.0, 10.0
#: What was not tried for so long, since another relay had its turn, says nothing of now.
_BELIEVED_S = 60.0


@dataclass(slots=True)
class _Rest:
    pause_s: float
    until_s: float


class Refusals:
    """What is refused now, by routing key, and until when it is not tried again."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}

    @property
    def keys(self) -> set[str]:
        now_s = time.monotonic()
        return {key for key, rest in self._rests.items() if now_s < rest.until_s + _BELIEVED_S}

    @property
    def resting(self) -> set[str]:
        """Name the keys that it is too early to try."""
        now_s = time.monotonic()
        return {key for key, rest in self._rests.items() if now_s < rest.until_s}

    def note(self, refused: Collection[str], heard: Collection[str], back: Collection[str]) -> None:
        """Note what was refused, has reached a queue, and has come back, in one group.

        A key may be in several: what was heard of a key that is refused shows that it comes on.
        """
        for key in {*heard, *back} - {*refused}:
            self._rests.pop(key, None)
        for key in refused:
            before = None if key in heard else self._rests.get(key)
            pause_s = min(before.pause_s * 2, _LONGEST_S) if before else _SHORTEST_S
            self._rests[key] = _Rest(pause_s, time.monotonic() + pause_s)
