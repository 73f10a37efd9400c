"""Search SkinsBack for names: as many at once as it takes, and alone what spoils every answer.

What spoils an answer (an error of no known meaning, a 5xx, no JSON) may be one name, their number
or an outage; the contract has no word for any of them (contracts/skinsback.md).
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from fulfillment.errors import OverBudget, ProviderNotReached

MOST_NAMES = 1_000  # in one search; the documentation names no maximum
_WITNESSES = 3

#: Searches these names. Raises Spoilt.
Ask = Callable[[Sequence[str]], None]


class Spoilt(ProviderNotReached):
    """An answer of no use: for one of what was asked, for their number, or for an outage."""


@dataclass
class Searched:
    """Which names a search was answered for; which it refuses, and why; which it did not reach."""

    answered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)
    #: A witness was taken since the last name that was searched alone.
    is_up: bool = False


class NameSearch:
    """One project's searches; it remembers how many names they take and a few that were taken."""

    def __init__(self) -> None:
        self._turns = count()
        self._most = MOST_NAMES
        self._taken: deque[str] = deque(maxlen=_WITNESSES)

    def run(self, names: Collection[str], ask: Ask) -> Searched:
        """Ask for all names, as far as the rate budget goes; one that spoils it alone is refused.

        Why it is refused nobody knows; that no item has this name is nowhere said. Raises what
        `ask` raises, and ProviderNotReached where nothing else is taken either.
        """
        found = Searched(unasked=self._in_turn(names))
        try:
            while found.unasked:
                self._go_on(found, ask)
        except OverBudget:
            if not found.answered:
                raise
        return found

    def _go_on(self, found: Searched, ask: Ask) -> None:
        """Search the next names together; where that is spoilt fewer are next."""
        group = found.unasked[: self._most]
        try:
            ask(group)
        except Spoilt as error:
            if error.is_outage and not found.is_up:
                self._check_is_up(group, ask, error)
            found.is_up = len(group) > 1
            if found.is_up:
                self._most = len(group) // 2
                return
            found.refused[group[0]] = str(error)
        else:
            found.answered += group
            self._remember(group[0])
            self._most = min(self._most * 2, MOST_NAMES)
        del found.unasked[: len(group)]
        if found.refused and not found.answered and (len(found.refused) > 1 or not found.unasked):
            self._check_is_taken(found.refused, ask)

    def _in_turn(self, names: Collection[str]) -> list[str]:
        """Give the names in order, from another one on each time: the budget may end anywhere."""
        first = next(self._turns) % len(names) if names else 0
        ordered = sorted(names)
        return ordered[first:] + ordered[:first]

    def _remember(self, name: str) -> None:
        if name not in self._taken:
            self._taken.append(name)

    def _check_is_up(self, group: Sequence[str], ask: Ask, error: Spoilt) -> None:
        """Raise the error where no search is answered: a provider that is down is asked no more.

        Where no witness is known, one name is to become one: the next search begins with it alone.
        """
        if not self._is_any_taken(group if len(group) == 1 else (), ask):
            if not self._taken:
                self._most = 1
            raise error

    def _check_is_taken(self, refused: Mapping[str, str], ask: Ask) -> None:
        """Raise ProviderNotReached if what was taken before is not now, or nothing ever was.

        A search that takes no name is broken, and not the names.
        """
        if not self._is_any_taken(refused, ask):
            self._most = MOST_NAMES
            raise ProviderNotReached(f"every name is refused, {next(iter(refused.values()))}")

    def _is_any_taken(self, but: Collection[str], ask: Ask) -> bool:
        """Search names that were taken before, two at most, each alone."""
        for name in [name for name in tuple(self._taken) if name not in but][-2:]:
            try:
                ask([name])
            except Spoilt:
                continue
            return True
        return False
