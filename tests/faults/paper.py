"""What was tried, written into docs/reliability.md, and at which commit that was."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/reliability.md"


def insert(mark: str, text: str) -> None:
    """Put this between the marks of that name."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, _, rest = PAPER.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAPER.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def commit() -> str:
    """Name what is tested; with a "+" where the tree is not as committed."""
    describe = ("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*")
    found = subprocess.run(describe, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "?"
