"""Exact money: integers inside, parsed from text through Decimal at the edge (DESIGN section 5).

The store's prices and caps are cents; wallets, ledger and charges are mills (a thousandth of a
dollar). Nothing here rounds silently.
"""

import re
from decimal import Context, Decimal
from functools import lru_cache

MILLS_PER_CENT = 10
MILLS_PER_DOLLAR = 1000
# What a signed 64-bit column holds, with room to add up many of them.
MAX_MILLS = 10**15
# An amount as providers write it. Decimal itself would read "1_000" and other scripts' digits too.
_AMOUNT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
# Wide enough for whatever the pattern lets through, so that no digit is dropped unseen.
_EXACT = Context(prec=1200)


class InexactMoney(ValueError):
    """The text is no amount, or one that whole units of the target cannot express."""


def cents_to_mills(cents: int) -> int:
    return cents * MILLS_PER_CENT


def charge_in_cents(mills: int) -> int:
    """Show a charge in cents; a part of a cent rounds up, so that a charge never looks smaller."""
    return -(-mills // MILLS_PER_CENT)


def cap_in_cents(mills: int) -> int:
    """Show a cap in cents; a part of a cent rounds down, so that a cap never looks larger."""
    return mills // MILLS_PER_CENT


def _exact(text: str | int, factor: int, unit: str, most: int) -> int:
    if isinstance(text, bool | float) or not _AMOUNT.fullmatch(str(text)):
        raise InexactMoney(f"expected an amount in {unit}, found {str(text)[:40]!r}")
    value = _EXACT.multiply(Decimal(text), factor)
    if abs(value) > most:
        raise InexactMoney(f"expected an amount in {unit}, found {str(text)[:40]!r}")
    if value != value.to_integral_value():
        raise InexactMoney(f"expected whole {unit}, found {str(text)[:40]!r}")
    return int(value)


def mills_from_cents(text: str | int) -> int:
    """Parse whole cents ("1840" or 1840) into mills. Raises InexactMoney."""
    return _exact(text, 1, "cents", MAX_MILLS // MILLS_PER_CENT) * MILLS_PER_CENT


@lru_cache(maxsize=4096, typed=True)  # the same prices are read over and over
def mills_from_dollars(text: str | int) -> int:
    """Parse dollars as written ("6.125") into mills. Raises InexactMoney."""
    return _exact(text, MILLS_PER_DOLLAR, "mills", MAX_MILLS)
