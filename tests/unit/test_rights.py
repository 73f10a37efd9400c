"""The rights that are asked for are the ones that the statements use, no more and no fewer."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fulfillment.store import rights
from schemas.tables import OrderRow

STORE = Path(rights.__file__).parent
ROOT = STORE.parent.parent
USES = {
    "SELECT": r"\b(?:FROM|JOIN) (\w+)",
    "INSERT": r"\bINSERT INTO (\w+)",
    "UPDATE": r"(?<!FOR )(?<!DO )\bUPDATE (\w+)",
    "DELETE": r"\bDELETE FROM (\w+)",
}
#: An insert that changes what is there already.
UPSERT = r"\bINSERT INTO (\w+)(?:(?!INSERT INTO).)*?\bON CONFLICT(?:(?!INSERT INTO).)*?\bDO UPDATE"


def texts(module: Path) -> Iterator[str]:
    """Give the texts of a module, each written on one line; those of an f-string are one."""
    for node in ast.walk(ast.parse(module.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        constants = [each.value for each in parts if isinstance(each, ast.Constant)]
        yield " ".join(" ".join(str(each) for each in constants).split())


def test_each_right_that_a_statement_uses_is_asked_for_and_no_other() -> None:
    known = {*OrderRow.metadata.tables, "alembic_version"}
    used: dict[str, set[str]] = defaultdict(set)
    for module in STORE.glob("*.py"):
        for text in texts(module):
            for right, pattern in (*USES.items(), ("UPDATE", UPSERT)):
                for table in known.intersection(re.findall(pattern, text)):
                    used[table].add(right)

    assert {name: set(each) for name, each in rights.NEEDED.items()} == used


def test_nothing_but_the_store_writes_statements() -> None:
    statement = re.compile(f"{USES['INSERT']}|UPDATE \\w+ SET|{USES['DELETE']}")
    modules = [
        path for top in ("fulfillment", "tasks", "schemas") for path in (ROOT / top).rglob("*.py")
    ]

    found = [str(m) for m in modules if any(statement.search(text) for text in texts(m))]

    assert [each for each in found if not Path(each).is_relative_to(STORE)] == []
