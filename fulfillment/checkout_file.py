"""What `fulfillment checkout` reads: one JSON object, or one on each line."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulfillment.errors import InvalidInput

if TYPE_CHECKING:
    from fulfillment.services.intake import Received

#: Windows puts it before a text.
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Line:
    """A decoded event, or the error that says why there is none, and on which line it stands."""

    number: int | None
    event: Any


def read(file: str) -> list[Line]:
    """Read a file, or standard input for `-`. Raises InvalidInput where nothing comes of it."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("FILE", f"expected a readable text file: {error}") from None
    lines = _lines(text.removeprefix(_BYTE_ORDER_MARK))
    if not lines:
        raise InvalidInput("FILE", "expected a JSON object, or one on each line; nothing came in")
    return lines


def _lines(text: str) -> list[Line]:
    whole = _decoded(text)
    if isinstance(whole, dict):
        return [Line(None, whole)]
    # A JSON text may hold what else ends a line.
    numbered = enumerate(text.split("\n"), 1)
    return [Line(number, _decoded(part)) for number, part in numbered if part.strip()]


def _decoded(part: str) -> Any:
    from fulfillment.services.intake import parse_json

    try:
        return parse_json(part)
    except InvalidInput as error:
        return error


def refusals(lines: Sequence[Line], results: Sequence["Received"]) -> list[str]:
    """Say of what was refused where it stands, what it is, and why."""
    told = []
    for line, result in zip(lines, results, strict=True):
        if result.error is None:
            continue
        place = f"line {line.number}" if line.number else None
        name = (result.external_id or "").encode(errors="backslashreplace").decode()
        told.append(": ".join(part for part in (place, name, str(result.error)) if part))
    return told
