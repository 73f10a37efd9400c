"""Money is exact or refused; what is shown never flatters."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.money import (
    MAX_MILLS,
    InexactMoney,
    cap_in_cents,
    cents_to_mills,
    charge_in_cents,
    mills_from_cents,
    mills_from_dollars,
)

MILLS = st.integers(0, 10**14)


@given(MILLS)
def test_dollars_as_written_are_read_exactly(mills: int) -> None:
    text = f"{mills // 1000}.{mills % 1000:03d}"

    assert mills_from_dollars(text) == mills


@given(st.integers(0, 10**13))
def test_whole_cents_are_read_exactly_as_text_and_as_number(cents: int) -> None:
    assert mills_from_cents(str(cents)) == mills_from_cents(cents) == cents_to_mills(cents)


@given(MILLS, st.integers(1, 999))
def test_a_part_of_a_mill_is_refused_and_never_rounded(mills: int, rest: int) -> None:
    text = f"{mills // 1000}.{mills % 1000:03d}{rest:03d}"

    with pytest.raises(InexactMoney):
        mills_from_dollars(text)


@given(st.integers(0, 10**12), st.integers(1, 9))
def test_a_part_of_a_cent_is_refused_where_cents_are_told(cents: int, rest: int) -> None:
    with pytest.raises(InexactMoney):
        mills_from_cents(f"{cents}.{rest}")


@given(MILLS)
def test_a_charge_rounds_up_and_a_cap_rounds_down_by_less_than_a_cent(mills: int) -> None:
    assert 0 <= charge_in_cents(mills) * 10 - mills < 10
    assert 0 <= mills - cap_in_cents(mills) * 10 < 10


@given(st.integers(0, 10**12))
def test_whole_cents_are_shown_as_they_are(cents: int) -> None:
    mills = cents_to_mills(cents)

    assert charge_in_cents(mills) == cap_in_cents(mills) == cents


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12))
def test_whatever_is_read_is_worth_exactly_what_was_written(value: Decimal) -> None:
    try:
        mills = mills_from_dollars(str(value))
    except InexactMoney:
        return

    assert Decimal(mills) == value * 1000


@pytest.mark.parametrize(
    ("text", "mills"),
    [("6.12", 6120), ("0.1", 100), ("45.989", 45_989), ("45.989000", 45_989), ("1e2", 100_000)],
)
def test_a_float_as_text_is_the_amount_that_it_shows(text: str, mills: int) -> None:
    assert mills_from_dollars(text) == mills


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "NaN",
        "sNaN",
        "Infinity",
        "-Infinity",
        "1e308",
        "1e999999",
        "9" * 40,
        "0x10",
        "1,000",
        "12 34",
        "$5",
        "45.989999",
        "5e-4",
        "١٢٣.٤٥٦٧",
        "\x00",
        "1\n2",
        "--1",
    ],
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(InexactMoney):
        mills_from_dollars(text)


@pytest.mark.parametrize("value", [True, False, 18.0, 0.1, None, [], b"1"])
def test_only_text_and_whole_numbers_are_amounts(value: Any) -> None:
    with pytest.raises(InexactMoney):
        mills_from_cents(value)


@pytest.mark.parametrize("zeros", [10, 30, 200, 5000])
def test_a_rest_behind_any_number_of_zeros_is_refused(zeros: int) -> None:
    with pytest.raises(InexactMoney):
        mills_from_dollars(f"1.{'0' * zeros}1")


def test_an_amount_that_no_column_holds_is_refused() -> None:
    assert mills_from_dollars(str(MAX_MILLS // 1000)) == MAX_MILLS

    with pytest.raises(InexactMoney):
        mills_from_dollars(str(MAX_MILLS // 1000 + 1))


def test_an_amount_in_cents_that_no_column_holds_is_refused() -> None:
    with pytest.raises(InexactMoney):
        mills_from_cents(MAX_MILLS // 10 + 1)


def test_a_refusal_shows_no_more_than_the_beginning() -> None:
    with pytest.raises(InexactMoney) as refusal:
        mills_from_dollars("x" * 10_000)

    assert len(str(refusal.value)) < 120
