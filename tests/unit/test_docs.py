"""What the papers say and the code does agree, and no paper names a machine of ours."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fulfillment.cli import cli
from fulfillment.setting_names import OF_SIMULATOR
from fulfillment.settings import PREFIX, AccountSettings, Settings
from fulfillment.simulator import scenarios
from fulfillment.simulator.faults import FAULTS
from fulfillment.simulator.options import SWITCHES
from fulfillment.simulator.recipients import PROBLEMS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
#: Defaults that the table puts into words.
IN_WORDS = {"embedded", "none", "the provider's", "`http://{WEB_HOST}:{WEB_PORT}`"}


def tracked() -> list[Path]:
    """List the files of the repository, those not yet committed too."""
    command = ["/usr/bin/env", "git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository here: which files belong to it is not known")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def papers() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def table(text: str, head: str) -> list[list[str]]:
    """Give the cells of the one table that begins with this head."""
    (rows,) = re.findall(rf"^{re.escape(head)}\n\|[ |-]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def default_of(value: Any) -> str | None:
    """Write a default as the table does; None where there is none."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    match value:
        case None | "":
            return None
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"`{value:g}`"
    return f"`{value}`"


def settings() -> Iterator[tuple[str, str | None]]:
    for name, field in Settings.model_fields.items():
        if name == "routes":
            yield "ROUTES__<NAME>", None
        elif name != "accounts":
            yield name.upper(), default_of(field.get_default(call_default_factory=True))
    for name, field in AccountSettings.model_fields.items():
        yield f"ACCOUNTS__<NAME>__{name.upper()}", default_of(field.get_default())


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    rows = table(README, "| name | default | meaning |")
    shown = {name.strip("`"): default for name, default, _meaning in rows}
    real = dict(settings())

    assert len(shown) == len(rows)
    assert shown.keys() == real.keys()
    for name, default in real.items():
        assert shown[name] in IN_WORDS if default is None else shown[name] == default, name


def test_every_setting_that_the_papers_name_exists() -> None:
    known = {f"{PREFIX}{name}" for name, _default in settings()}
    known |= {name.replace("<NAME>", each) for name in known for each in ("MAIN", "BACKUP", "ANY")}
    known |= {f"{PREFIX}{name}" for name in OF_SIMULATOR}
    known |= {f"{PREFIX}TEST_DATABASE_URL", f"{PREFIX}TEST_BROKER_URL"}
    known |= {f"{PREFIX}TEST_SOAK_S", f"{PREFIX}TEST_SOAK_SEED"}
    known |= {f"{PREFIX}TEST_REDIS_URL", f"{PREFIX}TEST_EXAMPLES", f"{PREFIX}TEST_BACKLOG"}
    for paper in papers():
        named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_<>]*[A-Z>]\b", paper.read_text()))
        assert named <= known, paper.name


def test_the_simulators_tables_are_those_of_the_code() -> None:
    text = (ROOT / "docs/simulator.md").read_text()
    shown = table(text, "| scenario | what happens |")

    assert [(name.strip("`"), what) for name, what in shown] == scenarios.describe()
    faults = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.partition("The faults:")[2], re.MULTILINE)
    assert dict(faults) == {name: fault.description for name, fault in FAULTS.items()}
    head = (
        "| problem | token | | SkinsBack `user_inventory` | SkinsBack purchase | Skinslink, 400 |"
    )
    named = [tuple(cell.strip("`") for cell in row[:3]) for row in table(text, head)]
    assert named == [(p.name, p.token, p.description) for p in PROBLEMS.values()]
    switches = {
        name
        for row in table(text, "| switch | default | |")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert switches <= SWITCHES


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_every_relative_link_leads_somewhere() -> None:
    for paper in papers():
        for link in re.findall(r"\]\(([^)\s]+)\)", paper.read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = paper.parent / path if path else paper
            assert target.exists(), f"{paper.name}: {link}"
            if anchor:
                assert anchor in anchors(target.read_text()), f"{paper.name}: {link}"


def test_the_papers_name_only_targets_and_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {c.name or c.callback.__name__ for c in cli.registered_commands if c.callback}
    commands |= {group.name for group in cli.registered_groups if group.name}
    for paper in papers():
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", paper.read_text(), re.DOTALL))
        assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets, paper.name
        named = re.findall(r"(?<![\w/.-])(?:\.venv/bin/)?fulfillment ([a-z-]+)\b", code)
        assert set(named) <= commands, paper.name
    assert {"demo", "test", "up", "check", "help"} <= targets


def test_decisions_have_their_five_headings() -> None:
    found = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))

    assert [int(path.name[:4]) for path in found] == list(range(1, len(found) + 1))
    for path in found:
        heads = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
        assert heads == ["Context", "Decision", "Consequences", "Alternatives", "References"], path


def test_files_that_the_papers_name_exist() -> None:
    for paper in papers():
        for name in re.findall(
            r"`((?:fulfillment|tasks|schemas|docs|tests)/[\w./]+)`", paper.read_text()
        ):
            assert (ROOT / name).exists(), f"{paper.name}: {name}"


def test_tests_that_the_papers_name_exist() -> None:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {
        name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    }
    for paper in papers():
        named = set(re.findall(r"`(test_\w+)`", paper.read_text()))
        assert named <= defined, f"{paper.name}: {named - defined}"


def test_no_file_names_a_machine_of_ours_or_a_package_registry() -> None:
    # Written in parts, since this file is one of those that are searched.
    foreign = [
        "/".join(("", "work", "")),
        "/".join(("", "root", "")),
        "/".join(("", "opt", "pypi")),
        "/".join(("", "opt", "wheels")),
        "pypi" + ".org",
        "python" + "hosted",
        "/.lib" + "rary",
        "registry.npmjs" + ".org",
        "index" + "-url",
    ]
    for path in tracked():
        text = path.read_text(errors="replace")
        for word in foreign:
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"
