"""What was said of an order and not applied: words name no account, and keep none from it."""

from datetime import UTC, datetime, timedelta

import pytest

from fulfillment.services.decide import decide
from fulfillment.services.hearsay import (
    FOUND_AT,
    HAD_BY,
    HINTED_BY,
    accounts_named,
    late_words,
    under,
    with_account,
    with_late,
    without_accounts,
)
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.support import report, some_order

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MERCHANT = "skinsnode http://127.0.0.1:9 2e7d2c03a9507ae2"
OTHER = MERCHANT.replace("2e7d", "7e2d")
PREFIXES = [HAD_BY, HINTED_BY]
FORGED = ["had by main at x", "had by main", "hinted at by main", "odd\nhad by main at x"]


def ordered(*words: str) -> Order:
    return some_order(late_words="\n".join(words) or None)


def named(words: str | None) -> list[list[tuple[str, str]]]:
    assert words is not None
    return [accounts_named(some_order(late_words=words), prefix) for prefix in PREFIXES]


@pytest.mark.parametrize("word", FORGED)
def test_a_word_of_a_provider_names_no_account(word: str) -> None:
    assert named(with_late(ordered(), word)) == [[], []]


@pytest.mark.parametrize("word", FORGED)
@pytest.mark.parametrize(("status", "state"), [(S.SENT, R.PENDING), (S.ACCEPTED, R.UNKNOWN)])
def test_a_report_whose_raw_status_reads_as_an_account_names_none(
    status: S, state: R, word: str
) -> None:
    said = report(state, raw_status=word)
    changes = decide(some_order(status=status), said, NOW, timedelta(minutes=10), 6120).changes

    assert named(changes["late_words"]) == [[], []]


@pytest.mark.parametrize("word", FORGED)
def test_a_report_after_the_end_whose_raw_status_reads_as_an_account_names_none(word: str) -> None:
    order = some_order(status=S.FAILED, told_status="failed")
    said = report(R.SENT, raw_status=word)
    changes = decide(order, said, NOW, timedelta(minutes=10), 6120, as_of=NOW).changes

    assert named(changes["late_words"]) == [[], []]


def test_a_word_is_kept_once_and_in_one_line() -> None:
    order = ordered("first")

    words = with_late(order, "of two\nlines")

    assert words == "first\nof two lines"
    assert with_late(some_order(late_words=words), "of two\nlines") is None


@pytest.mark.parametrize("prefix", PREFIXES)
def test_odd_words_keep_no_account_from_being_named(prefix: str) -> None:
    order = ordered()
    for n in range(10):
        order = some_order(late_words=with_late(order, f"odd {n}"))
    assert with_late(order, "one more") is None

    after = some_order(late_words=with_account(order, prefix, "main", MERCHANT))

    assert accounts_named(after, prefix) == [("main", MERCHANT)]
    assert late_words(after)[:10] == late_words(order)


@pytest.mark.parametrize("merchant", [MERCHANT, "skinsnode http://host/at%20 1", ""])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_accounts_are_read_as_they_were_written(prefix: str, merchant: str) -> None:
    order = ordered("odd")
    for account in ("main", "backup"):
        order = some_order(late_words=with_account(order, prefix, account, merchant))
        assert with_account(order, prefix, account, merchant) is None

    assert accounts_named(order, prefix) == [("main", merchant), ("backup", merchant)]
    assert sum(map(len, named(order.late_words))) == 2


def test_an_account_is_named_anew_as_another_merchants() -> None:
    order = ordered(f"{HAD_BY}main at {MERCHANT}")

    words = with_account(order, HAD_BY, "main", OTHER)

    assert named(words) == [[("main", MERCHANT), ("main", OTHER)], []]


def test_an_account_is_called_otherwise_where_it_is_named_and_nothing_else_is() -> None:
    others = ["odd", f"{HAD_BY}main2 at one", f"{HAD_BY}main", f"'{HAD_BY}main at one'"]
    order = ordered(f"{HAD_BY}main at one", f"{HINTED_BY}main at two", *others)

    words = under(order, "main", "now").split("\n")

    assert words == [f"{HAD_BY}main at now", f"{HINTED_BY}main at now", *others]


def test_an_account_that_was_two_merchants_is_one_once_it_is_the_same() -> None:
    order = ordered(f"{HAD_BY}main at one", f"{HAD_BY}main at two")

    assert under(order, "main", "now") == f"{HAD_BY}main at now"


def test_an_account_that_denied_an_order_is_named_no_more_until_it_tells_again() -> None:
    order = ordered("odd", f"{HAD_BY}main at {MERCHANT}", f"{HINTED_BY}backup at {MERCHANT}")

    after = some_order(late_words=without_accounts(order))

    assert named(after.late_words) == [[], []]
    assert late_words(after)[0] == "odd"
    assert named(with_account(after, HINTED_BY, "backup", OTHER)) == [[], [("backup", OTHER)]]
    assert named(with_account(after, HAD_BY, "main", MERCHANT)) == [[("main", MERCHANT)], []]
    assert accounts_named(ordered(f"{FOUND_AT}main"), FOUND_AT) == [("main", "")]


def test_a_word_of_a_version_before_that_reads_as_an_account_is_of_no_merchant() -> None:
    assert accounts_named(ordered(f"{HAD_BY}main at lunch"), HAD_BY) == [("main", "")]
