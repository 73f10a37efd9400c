"""Which names of settings there are, and which one a name that means nothing was meant for.

A misspelled brake would be none, and nobody would see it. Values are not looked at here.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import NamedTuple

#: Read by `fulfillment simulator` alone, which has no settings.
OF_SIMULATOR = frozenset(
    {"SIMULATOR_API_KEY", "SIMULATOR_CLIENT_ID", "SIMULATOR_CLIENT_SECRET", "SIMULATOR_WEBHOOK_URL"}
)
#: What this repository's tests are told by; processes that they start inherit it.
OF_TESTS = "TEST_"
#: What Kubernetes tells every pod of a service that is called `fulfillment`.
_OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_[A-Z]+(_\w+)?)?")
ACCOUNTS, ROUTES = "ACCOUNTS", "ROUTES"
FORMS = {ACCOUNTS: "ACCOUNTS__<NAME>__<SETTING>", ROUTES: "ROUTES__<NAME>"}
_BETWEEN = "__"
#: Of 1; at less, what is shown was hardly meant.
_NEAR = 0.8


class Names(NamedTuple):
    """Names in capitals, without the prefix: the settings of all, and those of one account."""

    of_all: Collection[str]
    of_account: Collection[str]

    def knows(self, name: str) -> bool:
        """Say whether a name means something; what is within a table of names, others check."""
        head, mark, _ = name.partition(_BETWEEN)
        is_in_table = bool(mark) and head in FORMS
        is_ours = name in OF_SIMULATOR or name.startswith(OF_TESTS)
        is_a_link = _OF_KUBERNETES.fullmatch(name) is not None
        return name in self.of_all or is_in_table or is_ours or is_a_link

    def meant_by(self, name: str) -> str | None:
        """Give the name that an unknown one was probably meant for."""
        head, mark, rest = name.partition(_BETWEEN)
        for table, form in FORMS.items():
            if mark and get_close_matches(head, [table], cutoff=_NEAR):
                return f"{table}{_BETWEEN}{rest}"
            if name.startswith(table[:-1]):
                return form
        whole = {each: f"{ACCOUNTS}{_BETWEEN}<NAME>{_BETWEEN}{each}" for each in self.of_account}
        whole |= {each: each for each in (*self.of_all, *OF_SIMULATOR)}
        return next((whole[near] for near in get_close_matches(name, whole, 1, _NEAR)), None)

    def meant_in_account(self, name: str) -> str | None:
        """Give the setting of an account that an unknown one was probably meant for."""
        return next(iter(get_close_matches(name, self.of_account, 1, _NEAR)), None)
