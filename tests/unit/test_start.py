"""Ctrl-C ends a command with 130 and no trace, also while it still imports what it needs."""

import subprocess
import sys

import pytest

#: Presses Ctrl-C when a module is looked for.
INTERRUPTED = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background has none

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from fulfillment.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["fulfillment.cli", "typer", "fulfillment.terminal"])
def test_ctrl_c_in_the_middle_of_an_import_ends_with_130_and_without_a_word(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_it_is_run_by_its_package_as_well() -> None:
    command = [sys.executable, "-m", "fulfillment", "states"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# ")
