"""Planted bugs: each breaks a promise by a few characters, and some test must find it out.

`python -m tests.faults.mutate` plants them one at a time.
"""

from tests.faults.mutants.beside import BESIDE
from tests.faults.mutants.buying import BUYING
from tests.faults.mutants.mutant import ROOT, Mutant
from tests.faults.mutants.telling import TELLING

__all__ = ["MUTANTS", "ROOT", "Mutant"]

MUTANTS = (*BUYING, *TELLING, *BESIDE)
