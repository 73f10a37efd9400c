"""What the commands share: consoles, the context of one command, and how values are printed."""

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from fulfillment import log
from fulfillment.errors import InvalidInput, NotPrinted
from fulfillment.settings import load_settings

if TYPE_CHECKING:
    from fulfillment.services.context import Context

#: What commands a terminal: C0 (but for the line's end), DEL and C1.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


#: By which a full or broken disk says so.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

#: As wide as any table, for whoever reads a pipe by lines.
_WIDE = 10_000


class _Plain(Console):
    """Shows text from outside as it is: neither markup nor commands to the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        # What highlights takes minutes for a long word.
        super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr)

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        found = super().size
        is_given = self.is_terminal or self._width is not None
        return found if is_given else ConsoleDimensions(_WIDE, found.height)

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(_written_out(text), **more)


def _written_out(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


out = _Plain()
err = _Plain(stderr=True)

AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def make_usable(arguments: Sequence[str]) -> None:
    """Make closed streams empty ones, and have others take any text. Raises InvalidInput for an
    argument that is no text."""
    sys.stdin = sys.stdin or io.StringIO()
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for place, argument in enumerate(arguments):
        if any("\ud800" <= each <= "\udfff" for each in argument):
            raise InvalidInput(f"argument {place}", "expected text in UTF-8")


@contextmanager
def printing() -> Iterator[None]:
    """Have all that is printed written at the end. Raises NotPrinted where it cannot be."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise NotPrinted(os.strerror(error.errno)) from None
    finally:
        _write_rest()


def _write_rest() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its end, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read has seen enough
            raise SystemExit(1) from None
        raise NotPrinted(error.strerror or type(error).__name__) from None


def make_context() -> "Context":
    from fulfillment.services.context import build_context, register_accounts

    settings = load_settings()
    log.configure("WARNING", settings.log_format)
    settings.require("database_url", "encryption_keys")
    context = build_context(settings, threads=2)
    register_accounts(context)
    return context


def known_account(context: "Context", name: str) -> str:
    """Give the name of an account that a person has named. Raises InvalidInput."""
    known = sorted(context.settings.accounts)
    if name not in known:
        raise InvalidInput("NAME", f"no account {name!r}; there are {', '.join(known) or 'none'}")
    return name


def known_names(given: str, known: Iterable[str], option: str) -> str:
    """Give names by commas as they are written. Raises BadParameter where one is not known."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := sorted({*names} - {*known}):
        told = f"expected some of {', '.join(sorted(known))}; found {', '.join(unknown)}"
        raise typer.BadParameter(told, param_hint=option)
    return ",".join(names)


def print_json(value: Any) -> None:
    is_any_text = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, indent=2, ensure_ascii=not is_any_text)
    # A refused id may hold half a surrogate pair, which is no text.
    sys.stdout.write(_written_out(text).encode(errors="replace").decode() + "\n")


def print_table(table: Table) -> None:
    """Print a table of amounts, where it is too wide by a block of lines for each row: cut amounts
    are none."""
    needed = out.measure(table, options=out.options.update_width(_WIDE)).maximum
    if needed <= out.width:
        out.print(table)
        return
    names = [column.header for column in table.columns]
    for place, row in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        block = Table(show_header=False, box=None)
        for name, cell in zip(names, row, strict=True):
            if cell:
                block.add_row(name, cell)
        out.print(*([""] if place else []), block, sep="\n")


def dollars(cents: int | None) -> str:
    """Show cents as dollars."""
    return "" if cents is None else f"{cents // 100}.{cents % 100:02d}"
