"""Write docs/benchmarks.md and its plots from the results."""

from pathlib import Path

from benchmarks.results import Results, Row


def cells(row: Row) -> list[str]:
    """Give figure, baseline, ratio, goal and verdict as text."""
    return [
        number(row.figure),
        f"{number(row.baseline)} ({row.baseline_name})" if row.baseline is not None else "",
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        str(row.goal or ""),
        {None: "", True: "yes", False: "no"}[row.is_met],
    ]


def number(value: float | None) -> str:
    """Write a number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(results: Results, data_dir: Path) -> None:
    """Write the report."""
