"""Search SkinsBack for names: as many at once as it takes, and alone what spoils every answer.

What spoils an answer (an error of no known meaning, a 5xx, no JSON) may be one name, their number
or an outage; the contract has no word for any of them (contracts/skinsback.md).
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import count

from fulfillment.errors import OverBudget, ProviderNotReached

MOST_NAMES = 1_000  # in one search; the documentation names no maximum
_WITNESSES = 3
#: So many names alone show that no search is answered; fewer where it was so before, or in a 5xx.
_SINGLES, _SINGLES_DOWN = 6, 2
#: A name that is refused again and again is searched once in so many wishes for it.
_LONGEST_REST = 8

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
    #: A name was taken since the last one that was refused.
    is_up: bool = False
    in_a_row: int = 0

    def take(self, names: Sequence[str]) -> None:
        """Take names that were asked for off those that were not."""
        asked = frozenset(names)
        self.unasked = [name for name in self.unasked if name not in asked]


@dataclass(slots=True)
class _Odd:
    """A name that was refused alone: so often in a row, for how many wishes it rests, and why."""

    times: int
    left: int
    why: str

    def rests(self) -> bool:
        """Say whether this wish for it is not to be followed."""
        self.left -= 1
        return self.left >= 0


class NameSearch:
    """One project's searches, and what they have taught: how many names one takes, and which none.

    A name that was refused alone is searched by itself, and more and more rarely.
    """

    def __init__(self) -> None:
        self._turns = count()
        self._most = MOST_NAMES
        self._patience = _SINGLES
        self._odd: dict[str, _Odd] = {}
        self._taken: deque[str] = deque(maxlen=_WITNESSES)

    def run(self, names: Set[str], ask: Ask) -> Searched:
        """Ask for all names, as far as the rate budget goes; one that spoils it alone is refused.

        Why it is refused nobody knows; that no item has this name is nowhere said, and where every
        name is refused the search is broken and not the names. Raises what `ask` raises.
        """
        turn = next(self._turns)
        resting = {n: odd.why for n in names if (odd := self._odd.get(n)) and odd.rests()}
        found = Searched(unasked=self._in_turn(names - resting.keys(), turn))
        try:
            while found.unasked:
                self._go_on(found, ask)
        except OverBudget:
            if not (found.answered or found.refused):
                raise
        except Spoilt:
            if not found.answered:
                raise
            # It has begun to refuse all: of these nothing is known.
            found.unasked = [*found.refused, *found.unasked]
            found.refused.clear()
        else:
            if found.answered or found.is_up:
                self._remember_odd(found.refused)
        found.refused |= resting
        return found

    def _go_on(self, found: Searched, ask: Ask) -> None:
        """Search the next names together; where that is spoilt fewer are next."""
        together = [name for name in found.unasked[: self._most] if name not in self._odd]
        group = together or found.unasked[:1]  # those that were refused come last, each alone
        try:
            ask(group)
        except Spoilt as error:
            if len(group) == 1:
                self._refuse(found, group[0], ask, error)
            elif found.is_up:
                self._most = len(group) // 2
            else:
                self._look_for_one(found, group, ask, error)
        else:
            self._answered(found, group)

    def _answered(self, found: Searched, group: Sequence[str]) -> None:
        found.take(group)
        found.answered += group
        found.in_a_row = 0
        for name in group:
            self._odd.pop(name, None)
        if group[0] not in self._taken:
            self._taken.append(group[0])
        self._most, self._patience = min(self._most * 2, MOST_NAMES), _SINGLES

    def _refuse(self, found: Searched, name: str, ask: Ask, error: Spoilt) -> None:
        """Leave one name out. Raises the error where that tells nothing about the name."""
        if not found.is_up and (error.is_outage or not found.answered):
            self._check_witnesses(found, ask, error, name)
        found.take([name])
        found.refused[name] = str(error)
        found.in_a_row += 1
        if found.in_a_row % self._patience == 0:
            found.is_up = False
            self._check_witnesses(found, ask, error)
        found.is_up = found.is_up and not error.is_outage
        if not (found.answered or found.is_up) and len(found.refused) >= self._patience:
            self._give_up(found, error)

    def _look_for_one(self, found: Searched, group: Sequence[str], ask: Ask, error: Spoilt) -> None:
        """See whether any name is taken: some of the group, each alone, or one that was before.

        A provider that is down is not asked for all of them. Raises the error where it is.
        """
        most = min(_SINGLES_DOWN if error.is_outage else self._patience, len(group))
        for place in range(most):
            name = group[place * len(group) // most + len(group) // most // 2]
            try:
                ask([name])
            except Spoilt as alone:
                error = alone
                found.take([name])
                found.refused[name] = str(alone)
            else:
                found.is_up = True
                self._answered(found, [name])
                self._most = max(len(group) // 2, 1)
                return
        self._check_witnesses(found, ask, error)
        if not found.is_up:
            self._give_up(found, error)

    def _give_up(self, found: Searched, error: Spoilt) -> None:
        """Take the search for broken: the next ones have less patience with it."""
        found.refused |= dict.fromkeys(found.unasked, f"every name is refused, {error}")
        found.unasked.clear()
        self._patience = _SINGLES_DOWN

    def _check_witnesses(
        self, found: Searched, ask: Ask, error: Spoilt, but: str | None = None
    ) -> None:
        """Search a name that was taken before, and where it is refused another one.

        Raises the error where they are refused now; or none is known, and a 5xx says that it is the
        provider's fault.
        """
        known = [n for n in tuple(self._taken) if n != but and n not in found.refused]
        for name in known[-2:]:
            try:
                ask([name])
            except Spoilt:
                continue
            found.is_up = True
            return
        if known or error.is_outage:
            self._most, self._patience = MOST_NAMES, _SINGLES_DOWN
            raise error

    def _remember_odd(self, refused: Mapping[str, str]) -> None:
        for name, why in refused.items():
            times = self._odd[name].times + 1 if name in self._odd else 1
            self._odd[name] = _Odd(times, min(2**times, _LONGEST_REST), why)
        while len(self._odd) > MOST_NAMES:
            del self._odd[next(iter(self._odd))]

    def _in_turn(self, names: Collection[str], turn: int) -> list[str]:
        """Give the names in order, from another one on each time: the budget may end anywhere.

        Those that were refused come last.
        """
        ordered = sorted(name for name in names if name not in self._odd)
        first = turn % len(ordered) if ordered else 0
        return ordered[first:] + ordered[:first] + sorted(n for n in names if n in self._odd)
