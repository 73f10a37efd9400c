"""The house rules that a machine can check: who imports whom, and who may do what."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fulfillment", "schemas", "tasks")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MODULES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in FILES}

#: Where time itself is made. The embedded stack and the simulator live in real time.
CLOCK = "fulfillment/clock.py"
#: Calls that read the machine's clock, as they are written.
CLOCK_READS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time"}
#: Where a status may be assigned: the simulator's orders are the provider's and not ours.
OWNERS_OF_STATUS = ("fulfillment/store/", "fulfillment/simulator/")
#: Methods of a provider that go over the network.
REQUESTS = {"quote", "wallet_mills", "purchase", "reports", "healthy"}


def production(*left_out: str) -> Iterator[tuple[str, ast.Module]]:
    """Give production modules by their paths, but for those that begin like `left_out`."""
    assert MODULES
    for path, tree in MODULES.items():
        if not path.startswith(left_out):
            yield path, tree


def dotted(node: ast.expr) -> str:
    """Write a name as it stands in the code: `datetime.now`, `time.time`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls_in(node: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Call))


def imported_from(tree: ast.Module, module: str) -> set[str]:
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]

    result = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_module_is_longer_than_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_only_the_clock_reads_the_time() -> None:
    reads = [
        f"{path}:{call.lineno} {dotted(call.func)}"
        for path, tree in production(CLOCK)
        for call in calls_in(tree)
        if dotted(call.func).removeprefix("datetime.datetime.") in CLOCK_READS
        or dotted(call.func).endswith((".datetime.now", ".datetime.utcnow"))
    ]

    assert reads == []


def test_no_name_hides_where_the_time_comes_from() -> None:
    hidden = [path for path, tree in production(CLOCK) if "time" in imported_from(tree, "time")]

    assert hidden == []


def test_a_status_is_assigned_in_the_store_only() -> None:
    assigned = [
        f"{path}:{node.lineno}"
        for path, tree in production(*OWNERS_OF_STATUS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and target.attr == "status"
    ]

    assert assigned == []


def strings_in(tree: ast.Module) -> Iterator[str]:
    """Give every text of a module; of one with names in it, what stands between them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "?".join(str(e.value) for e in node.values if isinstance(e, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_an_order_changes_its_status_in_one_statement() -> None:
    updates = {
        path
        for path, tree in production("fulfillment/store/migrations/", "fulfillment/simulator/")
        for words in strings_in(tree)
        if re.search(r"UPDATE orders\b[^;]*?\bSET\b(?:(?!\bWHERE\b).)*\bstatus =", words, re.DOTALL)
    }

    assert updates == {"fulfillment/store/orders.py"}


#: The last places before a person or a client; each logs what it caught.
CATCHING_ALL = (
    "tasks/base.py",
    "tasks/consumer.py",
    "fulfillment/web/metrics.py",
    "fulfillment/simulator/",
    # What one order's answer breaks must not stop the others of its batch.
    "fulfillment/services/backstop.py",
    # Nor what one message breaks those behind it; without a heartbeat `/readyz` tells of it.
    "fulfillment/messaging/consumer.py",
    "fulfillment/messaging/relay.py",
)


def test_only_the_last_place_before_the_outside_catches_everything() -> None:
    broad = [
        f"{path}:{node.lineno}"
        for path, tree in production(*CATCHING_ALL)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or dotted(node.type) in ("Exception", "BaseException"))
        and not any(isinstance(each, ast.Raise) and each.exc is None for each in ast.walk(node))
    ]

    assert broad == []


def transactions() -> Iterator[tuple[str, ast.With]]:
    """Give every `with ...transaction()` block."""
    for path, tree in production():
        for node in ast.walk(tree):
            if isinstance(node, ast.With) and any(
                isinstance(item.context_expr, ast.Call)
                and dotted(item.context_expr.func).endswith("transaction")
                for item in node.items
            ):
                yield path, node


def test_no_transaction_is_open_while_a_provider_is_asked() -> None:
    blocks = list(transactions())

    asked = [
        f"{path}:{call.lineno}"
        for path, block in blocks
        for call in calls_in(block)
        if dotted(call.func).endswith(".provider")
        or (isinstance(call.func, ast.Attribute) and call.func.attr in REQUESTS)
    ]

    assert len(blocks) > 20
    assert asked == []


def test_what_is_run_again_after_a_conflict_asks_nobody_outside() -> None:
    """Not within the function itself; what it calls is held to it by the simulated seeds."""
    repeated = [
        (path, node)
        for path, tree in production()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(dotted(each) == "repeated" for each in node.decorator_list)
    ]

    asking = [
        f"{path}:{call.lineno}"
        for path, function in repeated
        for call in calls_in(function)
        if (
            isinstance(call.func, ast.Attribute)
            and call.func.attr in {*REQUESTS, "submit", "send_task", "publish"}
        )
        or dotted(call.func) == "hint"
    ]

    assert len(repeated) > 20
    assert asking == []


def test_no_transaction_is_open_inside_another_one() -> None:
    nested = [
        f"{path}:{inner.lineno}"
        for path, block in transactions()
        for inner in ast.walk(block)
        if inner is not block
        and isinstance(inner, ast.Call)
        and dotted(inner.func).endswith("transaction")
        and inner not in [item.context_expr for item in block.items]
    ]

    assert nested == []


def test_nobody_commits_by_hand() -> None:
    commits = [
        f"{path}:{call.lineno}"
        for path, tree in production("fulfillment/store/migrat", "fulfillment/store/engine.py")
        for call in calls_in(tree)
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("commit", "rollback")
    ]

    assert commits == []


def test_services_read_neither_the_environment_nor_chance_by_themselves() -> None:
    reading = [
        path
        for path, tree in MODULES.items()
        if path.startswith(("fulfillment/services/", "fulfillment/store/"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv")
    ]

    assert reading == []


def test_no_business_time_travels_in_a_message() -> None:
    delayed = [
        f"{path}:{call.lineno}"
        for path, tree in production()
        for call in calls_in(tree)
        if {keyword.arg for keyword in call.keywords} & {"eta", "countdown"}
    ]

    assert delayed == []


def test_a_task_body_is_at_most_ten_statements() -> None:
    long = [
        f"{path} {node.name}"
        for path, tree in MODULES.items()
        if path.startswith("tasks/")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("task" in ast.unparse(each) for each in node.decorator_list)
        and sum(isinstance(each, ast.stmt) for each in ast.walk(node)) - 1 > 11
    ]

    assert long == []
