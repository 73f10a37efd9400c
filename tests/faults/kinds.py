"""The kinds of faults that a seed draws from, and the dice that decide when one strikes.

`rows` name the lines of the fault matrix that a kind belongs to; `most` is how often it may strike
in one seed.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which things go wrong."""

    name: str
    rows: str
    most: int
    description: str


# fmt: off
_TABLE = (
    Kind("message_lost", "B1 B2", 8, "a Celery message never arrives"),
    Kind("message_doubled", "B5 A7", 8, "a Celery message arrives twice, the second one later"),
    Kind("message_delayed", "B5", 8, "a Celery message arrives up to three minutes late"),
    Kind("broker_away", "B3", 4, "the broker takes no message for up to a minute"),
    Kind("process_killed", "A1-A11 A15", 4, "a worker or web process dies between two calls"),
    Kind("process_frozen", "A13", 3, "a process stands still past its lease, then goes on"),
    Kind("beat_dead", "F3", 1, "no tick for one to four minutes"),
    Kind("beat_doubled", "F4", 20, "every tick comes twice"),
    Kind("commit_unacknowledged", "C2", 4, "a commit is done, but its answer is lost"),
    Kind("connection_lost", "C1 C3", 4, "the database goes away before a commit"),
    Kind("serialization_failure", "C4 C5", 4, "the database wants the transaction repeated"),
    Kind("clock_jumped", "F1 F2", 2, "our clock jumps by up to ten minutes and back"),
    Kind("not_reached", "D1", 4, "the provider cannot be connected"),
    Kind("timeout_before", "D2", 4, "a request gets no answer and did nothing"),
    Kind("timeout_after", "D2", 4, "a request gets no answer and was done"),
    Kind("late_arrival", "D2", 3, "a purchase gets no answer and is done up to 35 s later"),
    Kind("error_before", "D3", 4, "5xx, nothing was done"),
    Kind("error_after", "D3", 4, "5xx, it was done"),
    Kind("throttled", "D4", 4, "429 or the provider's own word for it"),
    Kind("reset_after", "B4 D6", 4, "the connection breaks after the request was done"),
    Kind("garbled", "D6 D7 D8 D11", 6, "an answer cut short, no JSON, or of other things"),
    Kind("odd_refusal", "D8", 4, "a purchase is done and answered with a 4xx of no contract"),
    Kind("denied", "D14", 1, "credentials are revoked for up to two minutes"),
    Kind("outage", "D18", 1, "5xx for everything for up to five minutes"),
    Kind("stale_lookup", "D12", 6, "lookups do not know a fresh order for 25 s"),
    Kind("bad_catalog", "D15", 3, "a catalog without items, with half of them, or with free ones"),
    Kind("webhook_lost", "E4", 30, "a webhook never comes"),
    Kind("webhook_doubled", "E1", 10, "a webhook comes twice"),
    Kind("webhook_delayed", "E2", 10, "a webhook comes up to ten minutes late"),
    Kind("webhook_forged", "E5 E6", 10, "forged webhooks claim a delivery"),
    Kind("webhook_replayed", "E7 E8", 6, "an old webhook comes again under another delivery id"),
    Kind("webhook_first", "E3", 6, "webhooks come before the purchase is answered"),
    Kind("ends_badly", "G4 K7", 8, "an accepted order fails, is cancelled, declined or expires"),
    Kind("undone", "F6 G10", 4, "a delivered order is reversed"),
    Kind("never_ends", "D17", 2, "an accepted order never ends"),
    Kind("price_moved", "G3", 6, "a price changes between quote and purchase"),
    Kind("item_sold", "D15", 4, "somebody else buys the item first"),
    Kind("foreign_spending", "G5", 3, "somebody else spends from the wallet"),
    Kind("stopped", "H2", 1, "a person stops an account, or all, for up to five minutes"),
    Kind("settings_changed", "H2", 1, "an account is missing from the settings for a while"),
    Kind("rows_lost", "C6 C12", 1, "a backup is read back, up to three minutes old"),
)
# fmt: on
KINDS = {kind.name: kind for kind in _TABLE}
#: Drawn beside the others, so that these strike the same seeds as before there were any.
UPHEAVALS = frozenset({"stopped", "settings_changed", "rows_lost"})
#: Fixed for an order when it is planned, so they strike as soon as it is bought.
BY_SCENARIO = ("webhook_first", "ends_badly", "undone", "never_ends", "stale_lookup")


class Faults:
    """Decides what strikes; each kind has a number of strikes and a rate that the seed drew."""

    def __init__(
        self,
        source: random.Random,
        chosen: Iterable[str],
        statuses: Callable[[Sequence[str]], Iterable[str]],
    ) -> None:
        self.source = source
        self.chosen = tuple(chosen)
        self.is_on = True
        self.fired: Counter[tuple[str, str]] = Counter()
        self._statuses = statuses
        self._left = {name: source.randint(1, KINDS[name].most) for name in self.chosen}
        self._rate = {name: source.uniform(0.1, 0.6) for name in self.chosen}

    def strikes(self, *names: str, orders: Sequence[str] = (), weight: float = 1.0) -> str | None:
        """Say which of these kinds strikes now, if any.

        `orders` are the ids it is about; a small `weight` spreads the strikes over many chances.
        """
        if not self.is_on:
            return None
        for name in names:
            if self._left.get(name, 0) > 0 and self.source.random() < weight * self._rate[name]:
                self._left[name] -= 1
                self.note(name, orders)
                return name
        return None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let nothing strike to the end of the block."""
        was_on, self.is_on = self.is_on, False
        yield
        self.is_on = was_on

    def note(self, name: str, orders: Sequence[str] = ()) -> None:
        """Count a strike, by the status of the orders that it is about."""
        for status in set(self._statuses(orders)) if orders else {"-"}:
            self.fired[name, status] += 1

    @property
    def kinds_fired(self) -> set[str]:
        return {name for name, _ in self.fired}
