"""Read a batch of checkouts: as strictly as one checkout, and no more of it than a batch may hold.

A body of millions of empty lists must not be built before somebody counts them.
"""

import json
from typing import Any

from fulfillment.errors import InvalidInput
from fulfillment.services.intake import MAX_BATCH, MAX_EVENT_BYTES, TooLarge, parse_json

#: A checkout has seven; a thousand of them may have many more fields of the store's own.
MAX_VALUES = 50 * MAX_BATCH
#: One of these stands before each value but the first; those in texts count, too.
_BEFORE_VALUES = b",[{"
#: Below this it does not matter of what a body is made: counting would take longer.
_SMALL_BYTES = 3 * MAX_VALUES


def parse_batch(body: bytes) -> list[Any]:
    """Decode a list of checkouts, or an object with `checkouts`. Raises InvalidBody, InvalidInput.

    An entry that is larger than a checkout may be is `TooLarge`.
    """
    if len(body) > _SMALL_BYTES and sum(map(body.count, _BEFORE_VALUES)) > MAX_VALUES:
        expected = f"expected 1 to {MAX_BATCH} entries, of at most {MAX_VALUES} values in all"
        raise InvalidInput("checkouts", expected)
    found = entries = parse_json(body)
    if isinstance(found, dict):
        entries = found.get("checkouts")
        if not isinstance(entries, list):
            raise InvalidInput("checkouts", "expected a list of checkout events")
    if not isinstance(entries, list):
        expected = "expected a list of checkout events or an object with `checkouts`"
        raise InvalidInput("checkouts", expected)
    if not 1 <= len(entries) <= MAX_BATCH:
        expected = f"expected 1 to {MAX_BATCH} entries, found {len(entries)}"
        raise InvalidInput("checkouts", expected)
    objects = sum(isinstance(entry, dict) for entry in entries) + (found is not entries)
    if _are_surely_small(body, objects):
        return entries
    return [TooLarge(entry) if _is_too_large(entry) else entry for entry in entries]


def _are_surely_small(body: bytes, objects: int) -> bool:
    """Say whether there are so few objects that none is within an entry, and all are small."""
    pieces = body.split(b"{")
    return len(pieces) - 1 <= objects and max(map(len, pieces)) < MAX_EVENT_BYTES


def _is_too_large(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    try:  # as it is written without blanks: the parser does not tell where it stood
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return True
    return len(text.encode(errors="surrogatepass")) > MAX_EVENT_BYTES
