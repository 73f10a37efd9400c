"""What the demo shows: a live table on a terminal, plain lines elsewhere, and the summary."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fulfillment.clock import SystemClock
from fulfillment.devstack.demo_books import Books, dollars
from fulfillment.devstack.demo_script import Run

WIDTH = 150  # where there is no terminal to ask
WIDE = 110
REFRESH_PER_S = 4


class Screen:
    """Prints one demo, and knows how long it has been going on."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._seen: dict[str, int] = {}
        self._live: Live | None = None

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Keep what `show` shows in its place, where there is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, refresh_per_second=REFRESH_PER_S, transient=True
        ) as self._live:
            yield

    def elapsed_s(self) -> float:
        return self._clock.monotonic() - self._began

    def say(self, line: str, style: str = "") -> None:
        soft_wrap = not self.console.is_terminal
        self.console.print(Text(line, style=style), soft_wrap=soft_wrap)

    def step(self, line: str) -> None:
        self.say(f"{self.elapsed_s():6.1f} s  {line}")

    def heading(self, line: str) -> None:
        self.say(f"\n{line}", "bold")

    def note(self, line: str) -> None:
        self.say(" " * 10 + line)

    def show(self, runs: Sequence[Run]) -> None:
        """Show how the orders stand now."""
        if self._live is not None:
            self._live.update(self._moving(runs))
            return
        for run in runs:
            path = [status for _, status in run.path]
            if run.refused and run.external_id not in self._seen:
                path = [run.end]
            seen = self._seen.get(run.external_id, 0)
            if len(path) > seen:
                self._seen[run.external_id] = len(path)
                way = " > ".join(path[max(seen - 1, 0) :])
                price = f"  {_price(run)}" if run.is_over else ""
                self.step(f"{run.external_id:<35} {run.case.account:<10} {way}{price}")

    def _moving(self, runs: Sequence[Run]) -> Table:
        """Fit what matters into the window: what is under way, then what ended last."""
        sent = [run for run in runs if run.sent_at is not None]
        over = [run for run in sent if run.is_over]
        room = max(self.console.height - 5, 5)
        shown = sent
        if len(runs) > room:
            ended = sorted(over, key=lambda run: run.path[-1:], reverse=True)
            shown = [run for run in sent if not run.is_over] + ended
        title = f"{len(sent)} of {len(runs)} checkouts sent, {len(over)} orders at their end"
        table = Table(
            title=f"{title}, {self.elapsed_s():.0f} s", box=None, padding=(0, 1), title_style="bold"
        )
        table.add_column("order", no_wrap=True)
        table.add_column("account", no_wrap=True)
        for name in self._where_wide("sent by"):
            table.add_column(name, no_wrap=True)
        for name in ("status", *self._where_wide("provider")):
            table.add_column(name, no_wrap=True, min_width=14)
        table.add_column("price", no_wrap=True, justify="right", min_width=9)
        table.add_column("s", no_wrap=True, justify="right", min_width=4)
        for run in shown[:room]:
            said = (run.view or {}).get("providerStatus") or ""
            table.add_row(
                *(run.external_id, run.case.account, *self._where_wide(run.case.way)),
                Text(run.status or run.end, style=_style(run)),
                *self._where_wide(Text(said, style="dim")),
                *(_price(run), _seconds(run)),
            )
        return table

    def _where_wide(self, cell: RenderableType) -> tuple[RenderableType, ...]:
        return (cell,) if self.console.width >= WIDE else ()

    def summary(self, runs: Sequence[Run]) -> None:
        """Print what was to happen beside what happened."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", justify="right", style="dim")
        table.add_column("scenario", no_wrap=True)
        table.add_column("account", no_wrap=True)
        for name in self._where_wide("sent by"):
            table.add_column(name, style="dim")
        table.add_column("expected end", overflow="fold")
        table.add_column("actual end", overflow="fold")
        table.add_column("s", justify="right", no_wrap=True)
        table.add_column("charged", justify="right", no_wrap=True)
        for run in runs:
            actual = Text(run.end if run.is_as_scripted else f"{run.end} !", style=_style(run))
            names = (run.case.title, run.case.account, *self._where_wide(run.case.way))
            cells = (run.case.end, actual, _seconds(run), _price(run))
            table.add_row(str(run.number), *names, *cells)
        self.console.print()
        self.console.print(table)

    def books(self, books: Mapping[str, Books]) -> None:
        """Print what the books of every account say, beside each other."""
        figures = {account: found.figures() for account, found in books.items()}
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", no_wrap=True)
        for account in figures:
            table.add_column(account, justify="right", no_wrap=True)
        for name in next(iter(figures.values())):
            table.add_row(name, *(column[name] for column in figures.values()))
        self.console.print(table)

    def timeline(self, run: Run) -> None:
        """Tell one order's story, as its event log has it."""
        self.heading(f"The story of {run.external_id}: {run.case.title}")
        table = Table(box=None, padding=(0, 1), show_header=False)
        for entry in run.view["timeline"] if run.view else []:
            since = datetime.fromisoformat(entry["at"]) - run.path[0][0]
            at = f"+{since.total_seconds():.2f} s"
            table.add_row(at, entry["source"], entry["to"], Text(entry["note"], style="dim"))
        self.console.print(table)


def _style(run: Run) -> str:
    if not run.is_over:
        return "cyan"
    if not run.is_as_scripted:
        return "bold red"
    return "green" if run.end == "completed" else "yellow"


def _price(run: Run) -> str:
    if run.view is None:
        return ""
    charged = run.view["chargedPrice"]
    return "-" if charged is None and run.is_over else dollars(charged or run.view["expectedPrice"])


def _seconds(run: Run) -> str:
    """Give the time from intake to the last change of status, or to now."""
    if not run.path:
        return ""
    until = run.path[-1][0] if run.is_over else SystemClock().now()
    return f"{(until - run.path[0][0]).total_seconds():.1f}"
