"""A planted bug: where it is, what stands there, what is written in its place, which promise that
breaks, and the tests that are asked first.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
UNIT, INTEGRATION = "tests/unit/test_", "tests/integration/test_"


@dataclass(frozen=True)
class Mutant:
    """One bug; `old` stands exactly once in `path`, and `tests` are pytest's arguments."""

    name: str
    promise: str
    why: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Plant the bug. Raises ValueError where the code has changed under it."""
        if text.count(self.old) != 1:
            found = text.count(self.old)
            raise ValueError(f"{self.name}: expected its place once in {self.path}, found {found}")
        return text.replace(self.old, self.new)


def within(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{package}{name}.py" for name in names)


def integration(*names: str) -> tuple[str, ...]:
    return within(INTEGRATION, *names)


SERVICES, STORE = "fulfillment/services/", "fulfillment/store/"
