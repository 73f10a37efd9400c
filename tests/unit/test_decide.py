"""What a report means for an order, over every status and every word."""

from datetime import UTC, datetime, timedelta
from itertools import permutations, product
from typing import Any

import pytest
from msgspec.structs import replace

from fulfillment.services.decide import NOTHING, REVERSAL_WATCH, Decision, Money, decide
from fulfillment.states import FINAL, FOLLOWED, LOCAL, RANK, UNFULFILLED, is_legal
from schemas.enums import OrderStatus as S
from schemas.provider import OrderReport
from schemas.provider import ReportState as R
from tests.support import PRICE_CENTS, report, some_order

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
WINDOW = timedelta(minutes=10)
CAP_MILLS = PRICE_CENTS * 10

WORDS = [state for state in R if state is not R.UNKNOWN]
#: One rank: the contract gives no order among them, so that the provider's own time decides.
EARLY = [S.ACCEPTED, S.QUEUED, S.PROCESSING]
NEVER_SENT = LOCAL - {S.SUBMITTING}
AT_PROVIDER = FOLLOWED | {S.SUBMITTING, S.NEEDS_REVIEW}


def decided(said: OrderReport, *, now: datetime = NOW, **order: Any) -> Decision:
    came = {"created_at": NOW - timedelta(hours=1)}
    return decide(some_order(**came | order), said, now, WINDOW, CAP_MILLS)


def moves_to(status: S, word: R) -> S:
    """Say where an order must be after a word of which no time is known."""
    target = S(word.value)
    if status is S.NEEDS_REVIEW:
        return target
    if status in FINAL:
        return S.REVERSED if (status, target) == (S.COMPLETED, S.REVERSED) else status
    if status in NEVER_SENT or RANK[target] < RANK[status]:
        return status
    if status in EARLY and target in EARLY:
        return max(status, target, key=EARLY.index)
    return target


def is_recorded_and_ignored(decision: Decision, status: S) -> bool:
    words = decision.changes.get("late_words", "")
    is_all = decision == Decision(status, decision.note, {"late_words": words})
    word = words.split("\n")[-1]
    return is_all and decision.note == f"{word!r} comes late: ignored"


def test_an_older_word_is_recorded_once_however_often_it_is_told() -> None:
    first = decided(report(R.PENDING), status=S.SENT)
    told_again = decided(report(R.PENDING), status=S.SENT, late_words="pending")
    other = decided(report(R.QUEUED), status=S.SENT, late_words="pending")
    in_turns = decided(report(R.PENDING), status=S.SENT, late_words="pending\nqueued")
    too_many = decided(report(R.PENDING), status=S.SENT, late_words="\n".join("abcdefghij"))

    assert is_recorded_and_ignored(first, S.SENT)
    assert is_recorded_and_ignored(other, S.SENT)
    assert told_again == in_turns == too_many == NOTHING


def test_an_unknown_word_is_alarmed_once_although_it_comes_in_turns_with_known_ones() -> None:
    said = report(R.UNKNOWN, raw_status="inspecting")
    order: dict[str, Any] = {"status": S.ACCEPTED, "provider_status": "accepted"}

    first = decided(said, **order)
    again = decided(said, **order, late_words=first.changes["late_words"])

    of_an_order_that_ended = decided(
        said, status=S.FAILED, failed_by="us", provider_status="accepted", late_words="inspecting"
    )

    assert first.is_alarm
    assert again == NOTHING
    assert of_an_order_that_ended.is_alarm
    assert of_an_order_that_ended.changes["told_status"] == S.ACCEPTED


@pytest.mark.parametrize("status", [S.SENT, S.COMPLETED])
def test_no_date_of_a_provider_lengthens_a_watch_beyond_a_month(status: S) -> None:
    far = NOW + timedelta(days=300 * 365)
    said = report(R.COMPLETED, raw_status="hold", reversible_until=far, charged_mills=CAP_MILLS)

    decision = decided(said, status=status, completed_at=NOW if status is S.COMPLETED else None)

    assert decision.changes["reversible_until"] == NOW + timedelta(days=30)


@pytest.mark.parametrize(("status", "word"), list(product(S, WORDS)))
def test_status_only_moves_forward(status: S, word: R) -> None:
    decision = decided(report(word), status=status)

    after = decision.target or status
    assert after is moves_to(status, word)
    assert after is status or is_legal(status, after)


@pytest.mark.parametrize("status", list(S))
def test_an_unknown_word_is_recorded_and_alarmed_and_changes_nothing_else(status: S) -> None:
    said = report(R.UNKNOWN, raw_status="inspecting", charged_mills=1, failure_code="x")

    decision = decided(said, status=status, provider_status="queued")

    if status in NEVER_SENT:  # but somebody has it: it is looked for before it is bought
        assert decision.target is status
        assert decision.changes == {"told_early_at": NOW, "late_words": "had by main"}
        assert decision.is_alarm
        return
    # Of a purchase that nobody understands there is nothing left to do but to look.
    assert decision.target is (S.NEEDS_REVIEW if status is S.SUBMITTING else status)
    words = {} if status is S.SUBMITTING else {"late_words": "inspecting"}
    assert decision.changes == {"provider_status": "inspecting"} | words
    assert decision.is_alarm
    assert decision.money == ()


@pytest.mark.parametrize("status", [S.PENDING, S.NEEDS_REVIEW])
def test_an_unknown_word_is_alarmed_once(status: S) -> None:
    said = report(R.UNKNOWN, raw_status="inspecting")

    decision = decided(said, status=status, provider_status="inspecting")

    assert decision == Decision()


@pytest.mark.parametrize(("status", "word"), list(product(sorted(NEVER_SENT), WORDS)))
def test_a_report_of_what_was_never_sent_is_an_alarm_and_has_it_looked_for(
    status: S, word: R
) -> None:
    decision = decided(report(word, charged_mills=CAP_MILLS), status=status)

    assert decision.target is status
    assert decision.is_alarm
    assert decision.changes == {"told_early_at": NOW, "late_words": "had by main"}
    assert decision.money == ()


@pytest.mark.parametrize("status", sorted(FOLLOWED))
def test_an_older_word_than_what_is_known_is_recorded_and_ignored(status: S) -> None:
    older = [w for w in WORDS if RANK[S(w.value)] < RANK[status]]

    decisions = [decided(report(word, charged_mills=1), status=status) for word in older]

    assert all(is_recorded_and_ignored(d, status) for d in decisions)


FINAL_NEWS = [
    (status, word)
    for status, word in product(sorted(FINAL), WORDS)
    if RANK[S(word.value)] >= RANK[status]
    and S(word.value) is not status
    and (status, word) != (S.COMPLETED, R.REVERSED)
]


@pytest.mark.parametrize(("status", "word"), FINAL_NEWS)
def test_news_that_contradicts_an_end_is_an_alarm_that_is_not_applied(status: S, word: R) -> None:
    said = report(word, charged_mills=CAP_MILLS)

    decision = decided(said, status=status, provider_status=status.value, failed_by="provider")

    assert decision.target is status
    assert decision.is_alarm
    # The end stays, but money that was spent belongs to this order.
    assert decision.money == ((Money.SETTLE,) if word is R.COMPLETED else ())
    assert ("charged_mills" in decision.changes) == (word is R.COMPLETED)


@pytest.mark.parametrize(("status", "word"), FINAL_NEWS)
def test_a_contradiction_is_alarmed_once(status: S, word: R) -> None:
    decision = decided(
        report(word), status=status, provider_status=word.value, failed_by="provider"
    )

    assert decision == Decision()


@pytest.mark.parametrize("word", WORDS)
def test_a_provider_that_has_an_order_that_we_refused_is_an_alarm(word: R) -> None:
    decision = decided(report(word), status=S.FAILED, failed_by="us")

    expected = word is not R.FAILED
    assert decision.is_alarm is expected
    assert decision.target in (S.FAILED, None)


@pytest.mark.parametrize("status", sorted(FINAL))
def test_an_older_word_after_the_providers_end_is_recorded_and_ignored(status: S) -> None:
    older = [w for w in WORDS if RANK[S(w.value)] < RANK[status]]
    told = status if status in UNFULFILLED else None
    order: dict[str, Any] = {"status": status, "failed_by": "provider", "told_status": told}
    order["sent_at"] = NOW

    decisions = [decided(report(word), **order) for word in older]

    assert all(is_recorded_and_ignored(d, status) for d in decisions)


def test_a_delivered_trade_that_was_undone_is_reversed_with_an_alarm() -> None:
    decision = decided(report(R.REVERSED), status=S.COMPLETED, charged_mills=CAP_MILLS)

    assert decision.target is S.REVERSED
    assert decision.is_alarm
    assert decision.money == ()


def test_a_reversal_gives_money_back_only_where_the_provider_says_so() -> None:
    said = report(R.REVERSED, refunded_at=NOW)

    known = decided(said, status=S.COMPLETED, charged_mills=CAP_MILLS)
    untold = decided(said, status=S.COMPLETED, charged_mills=None)

    assert known.money == (Money.REFUND,)
    assert untold.money == (Money.SETTLE, Money.REFUND)


def test_a_refund_that_comes_after_the_reversal_is_booked() -> None:
    decision = decided(report(R.REVERSED, refunded_at=NOW), status=S.REVERSED)

    assert decision.target is None
    assert decision.money == (Money.REFUND,)


@pytest.mark.parametrize("status", sorted(AT_PROVIDER))
def test_a_reversal_seen_at_once_is_both_charged_and_refunded(status: S) -> None:
    decision = decided(report(R.REVERSED, refunded_at=NOW), status=status)

    assert Money.SETTLE in decision.money
    assert decision.money[-1] is Money.REFUND


@pytest.mark.parametrize(("status", "word"), list(product([S.SUBMITTING, S.NEEDS_REVIEW], WORDS)))
def test_the_first_word_of_the_provider_confirms_the_hold(status: S, word: R) -> None:
    decision = decided(report(word), status=status)

    assert decision.money[0] is Money.CONFIRM


@pytest.mark.parametrize("status", sorted(FOLLOWED))
def test_a_delivery_settles_and_starts_the_reversal_watch(status: S) -> None:
    delivered_at = NOW - timedelta(seconds=5)

    said = report(R.COMPLETED, reported_at=delivered_at, charged_mills=CAP_MILLS)

    decision = decided(said, status=status, overdue=True)

    assert decision.target is S.COMPLETED
    assert decision.money == (Money.SETTLE,)
    assert decision.changes["completed_at"] == delivered_at
    assert decision.changes["reversible_until"] == delivered_at + REVERSAL_WATCH
    assert decision.changes["overdue"] is False


@pytest.mark.parametrize("status", sorted(FOLLOWED))
def test_a_delivery_whose_charge_is_untold_is_settled_when_it_is_told(status: S) -> None:
    delivered = decided(report(R.COMPLETED), status=status, charged_mills=None)
    told = decided(
        report(R.COMPLETED, charged_mills=CAP_MILLS - 10), status=S.COMPLETED, charged_mills=None
    )

    assert Money.SETTLE not in delivered.money
    assert told.money == (Money.SETTLE,)
    assert told.changes == {"charged_mills": CAP_MILLS - 10}
    assert not told.is_alarm


def test_the_reversal_watch_outlasts_trade_protection_by_a_day() -> None:
    assert timedelta(days=8) == REVERSAL_WATCH


def test_the_providers_own_end_of_the_hold_wins_over_ours() -> None:
    until = NOW + timedelta(days=3)

    decision = decided(report(R.COMPLETED, reversible_until=until), status=S.SENT)

    assert decision.changes["reversible_until"] == until


@pytest.mark.parametrize("word", [R.FAILED, R.CANCELLED, R.EXPIRED])
def test_an_end_without_the_item_keeps_the_hold_for_a_later_figure(word: R) -> None:
    said = report(word, failure_code="price_changed", failure_message="price moved")

    decision = decided(said, status=S.PENDING, charged_mills=CAP_MILLS)

    assert decision.money == (Money.END,)
    assert decision.changes["failure_code"] == "price_changed"
    assert decision.changes["failure_message"] == "price moved"
    assert decision.changes["failed_by"] == "provider"
    assert decision.changes["charged_mills"] is None


def test_an_end_without_a_code_still_has_one() -> None:
    codes = [
        decided(report(word), status=S.SENT).changes["failure_code"]
        for word in (R.FAILED, R.CANCELLED, R.EXPIRED)
    ]

    assert codes == ["unknown", "cancelled", "expired"]


def test_a_charge_above_the_agreed_price_is_booked_and_alarmed() -> None:
    decision = decided(report(R.COMPLETED, charged_mills=CAP_MILLS + 1), status=S.SENT)

    assert decision.target is S.COMPLETED
    assert decision.changes["charged_mills"] == CAP_MILLS + 1
    assert decision.is_alarm
    assert "613 cents" in decision.note


@pytest.mark.parametrize("charged", [CAP_MILLS, CAP_MILLS - 1])
def test_a_charge_up_to_the_agreed_price_is_no_alarm(charged: int) -> None:
    decision = decided(report(R.COMPLETED, charged_mills=charged), status=S.SENT)

    assert not decision.is_alarm


@pytest.mark.parametrize("status", [*sorted(FOLLOWED), S.COMPLETED])
def test_a_charge_of_nothing_is_a_charge_that_is_not_told_yet(status: S) -> None:
    known: dict[str, Any] = {"status": status, "provider_status": "completed"}

    decision = decided(report(R.COMPLETED, charged_mills=0), **known)

    assert decision == decided(report(R.COMPLETED), **known)


@pytest.mark.parametrize("status", sorted(FOLLOWED))
def test_a_charge_above_the_agreed_price_is_alarmed_in_a_repeated_word_too(status: S) -> None:
    said = report(R(status.value), charged_mills=CAP_MILLS + 10)

    decision = decided(said, status=status, provider_status=status.value)

    assert decision.changes["charged_mills"] == CAP_MILLS + 10
    assert decision.is_alarm


def test_a_sent_offer_starts_the_trade_window_at_the_providers_own_time() -> None:
    sent_at = NOW - timedelta(seconds=90)

    decision = decided(report(R.SENT, reported_at=sent_at, steam_offer_id="7"), status=S.PENDING)

    assert decision.changes["sent_at"] == sent_at
    assert decision.changes["trade_deadline_at"] == sent_at + WINDOW
    assert decision.changes["steam_offer_id"] == "7"


@pytest.mark.parametrize("word", [R.SENT, R.COMPLETED])
def test_nothing_has_happened_later_than_now(word: R) -> None:
    decision = decided(report(word, reported_at=NOW + timedelta(hours=2)), status=S.PENDING)

    times = [v for v in decision.changes.values() if isinstance(v, datetime)]
    assert min(times) == NOW
    assert max(times) <= NOW + REVERSAL_WATCH


def test_without_a_time_of_the_providers_the_window_starts_now() -> None:
    decision = decided(report(R.SENT), status=S.ACCEPTED)

    assert decision.changes["trade_deadline_at"] == NOW + WINDOW


@pytest.mark.parametrize(("seconds", "is_overdue"), [(-1, False), (0, True), (1, True)])
def test_an_offer_still_sent_after_its_deadline_is_flagged_and_never_expired(
    seconds: int, is_overdue: bool
) -> None:
    order: dict[str, Any] = {"status": S.SENT, "provider_status": "sent", "trade_deadline_at": NOW}

    decision = decided(report(R.SENT), now=NOW + timedelta(seconds=seconds), **order)

    assert decision.target in (None, S.SENT)
    assert decision.changes.get("overdue", False) is is_overdue


def test_an_overdue_offer_is_flagged_once() -> None:
    order: dict[str, Any] = {"status": S.SENT, "provider_status": "sent", "trade_deadline_at": NOW}

    decision = decided(report(R.SENT), now=NOW + timedelta(hours=1), overdue=True, **order)

    assert decision == Decision()


def test_an_overdue_offer_that_is_accepted_after_all_is_delivered() -> None:
    order: dict[str, Any] = {
        "status": S.SENT,
        "trade_deadline_at": NOW - timedelta(hours=1),
        "overdue": True,
    }

    decision = decided(report(R.COMPLETED), **order)

    assert decision.target is S.COMPLETED
    assert decision.changes["overdue"] is False


@pytest.mark.parametrize("status", sorted(FOLLOWED))
def test_the_same_word_again_adds_nothing(status: S) -> None:
    known: dict[str, Any] = {
        "provider_status": status.value,
        "charged_mills": 6120,
        "steam_offer_id": "7",
    }
    said = report(R(status.value), charged_mills=6120, steam_offer_id="7")

    assert decided(said, status=status, **known) == Decision()


@pytest.mark.parametrize(("held", "money"), [(6110, ()), (6109, (Money.CHARGE,))])
def test_the_same_word_with_more_in_it_records_what_is_new(
    held: int, money: tuple[Money, ...]
) -> None:
    said = report(R.PENDING, charged_mills=6110, steam_offer_id="7")

    decision = decided(said, status=S.PENDING, provider_status="pending", quoted_mills=held)

    assert decision.target is S.PENDING
    assert decision.changes == {"charged_mills": 6110, "steam_offer_id": "7"}
    assert decision.money == money


EARLY_PAIRS = [(old, R(new.value)) for old, new in permutations(EARLY, 2)]


@pytest.mark.parametrize(("status", "word"), EARLY_PAIRS)
def test_among_the_three_early_words_the_providers_newer_one_counts(status: S, word: R) -> None:
    known: dict[str, Any] = {"status": status, "provider_status": status.value, "reported_at": NOW}
    newer, older = NOW + timedelta(seconds=1), NOW - timedelta(seconds=1)

    after_newer = decided(report(word, reported_at=newer), **known)
    after_older = decided(report(word, reported_at=older), **known)

    assert after_newer.target is S(word.value)
    assert is_recorded_and_ignored(after_older, status)


@pytest.mark.parametrize("status", [S.SENT, S.COMPLETED])
def test_a_charge_or_an_offer_that_was_told_before_another_takes_nothing_back(status: S) -> None:
    first = {"charged_mills": 6110, "steam_offer_id": "7"}
    known: dict[str, Any] = {"status": status, "provider_status": status.value, **first}
    known |= {"reported_at": NOW, "completed_at": NOW if status is S.COMPLETED else None}
    said = report(R(status.value), charged_mills=6100, steam_offer_id="8")

    late = decided(replace(said, reported_at=NOW - timedelta(seconds=1)), **known)
    of_the_same_time = decided(replace(said, reported_at=NOW), **known)
    wrong = known | {"reported_at": NOW + timedelta(days=1)}
    by_a_wrong_clock = decided(replace(said, reported_at=NOW), **wrong)

    first_told = decided(
        replace(said, reported_at=NOW - timedelta(seconds=1)), **known | {"charged_mills": None}
    )

    held = {"reversible_until": NOW + timedelta(days=2), "is_held": False}
    of_the_hold = decided(
        replace(said, reported_at=NOW - timedelta(seconds=1), charged_mills=None, **held),
        **known | {"charged_mills": None, "reversible_until": NOW + timedelta(days=9)},
    )

    assert late == NOTHING
    assert "reversible_until" not in of_the_hold.changes
    assert first_told.changes["charged_mills"] == 6100
    assert "reported_at" not in first_told.changes
    assert of_the_same_time.changes["charged_mills"] == 6100
    assert by_a_wrong_clock.changes["charged_mills"] == 6100


def test_doubled_webhooks_never_send_an_order_to_and_fro_among_the_early_words() -> None:
    times = {word.value: NOW + timedelta(seconds=place) for place, word in enumerate(EARLY)}
    order = some_order(status=S.SUBMITTING)
    path = []

    for word in ["queued", "processing", "queued", "processing", "accepted", "queued"]:
        said = report(R(word), reported_at=times[word])
        decision = decide(order, said, NOW, WINDOW, CAP_MILLS)
        if decision.target not in (None, order.status):
            order = replace(order, status=decision.target, **decision.changes)
            path.append(word)

    assert path == ["queued", "processing"]


def test_a_report_is_judged_without_changing_the_order() -> None:
    order = some_order(status=S.SENT)

    decide(order, report(R.COMPLETED, charged_mills=1), NOW, WINDOW, CAP_MILLS)

    assert order == some_order(status=S.SENT)


# --- holds, settlement, and what a person is to look at


HELD: dict[str, Any] = {
    "status": S.COMPLETED,
    "completed_at": NOW - timedelta(days=1),
    "charged_mills": CAP_MILLS,
}


def test_a_settled_delivery_is_watched_no_more() -> None:
    decision = decided(report(R.COMPLETED, is_settled=True, charged_mills=CAP_MILLS), status=S.SENT)

    assert decision.changes["reversible_until"] is None
    assert Money.SETTLE in decision.money


@pytest.mark.parametrize("said", [{"is_settled": True}, {"is_held": False}])
def test_settlement_ends_a_hold_that_the_provider_told_of(said: dict[str, Any]) -> None:
    decision = decided(report(R.COMPLETED, **said), **HELD, reversible_until=NOW)

    assert decision.target is S.COMPLETED
    assert decision.changes["reversible_until"] is None
    assert not decision.is_alarm


def test_not_held_may_mean_not_yet() -> None:
    first = decided(report(R.COMPLETED, is_held=False), status=S.SENT)
    ours = HELD["completed_at"] + REVERSAL_WATCH
    later = decided(report(R.COMPLETED, is_held=False), **HELD, reversible_until=ours)

    assert first.changes["reversible_until"] == NOW + REVERSAL_WATCH
    assert later == Decision()


def test_the_end_of_a_hold_may_be_told_after_the_delivery() -> None:
    end = NOW + timedelta(days=3)
    said = report(R.COMPLETED, reversible_until=end)

    decision = decided(said, **HELD, reversible_until=HELD["completed_at"] + REVERSAL_WATCH)

    assert decision.changes == {"reversible_until": end}
    assert decided(said, **HELD, reversible_until=end) == Decision()


@pytest.mark.parametrize("end", [NOW - timedelta(hours=1), None])
def test_a_hold_beyond_its_told_end_is_watched_for_the_longest_time(end: datetime | None) -> None:
    """Until the provider says what came of it; a hold may still end undone."""
    delivered_at, latest = NOW - timedelta(days=9), NOW + timedelta(days=21)
    known: dict[str, Any] = HELD | {"completed_at": delivered_at}
    held = report(R.COMPLETED, is_held=True, reversible_until=end)
    told = {"reversible_until": end or delivered_at + REVERSAL_WATCH}

    longer = decided(held, **known, **told)
    again = decided(held, **known, reversible_until=latest)
    settled = decided(report(R.COMPLETED, is_settled=True), **known, reversible_until=latest)
    not_told = decided(report(R.COMPLETED, reversible_until=end), **known, **told)
    just_over = NOW - timedelta(minutes=29)
    too_soon = decided(replace(held, reversible_until=None), **known, reversible_until=just_over)

    assert longer.changes == {"reversible_until": latest}
    assert settled.changes["reversible_until"] is None
    assert again == not_told == too_soon == Decision()


def test_a_doubtful_charge_is_alarmed_once() -> None:
    said = report(R.SENT, charged_mills=CAP_MILLS, alarm="not believed")

    first = decided(said, status=S.SUBMITTING)
    again = decided(said, status=S.SENT, charged_mills=CAP_MILLS, provider_status="sent")

    assert first.is_alarm
    assert "not believed" in first.note
    assert again == Decision()


def test_an_end_for_an_unknown_reason_is_alarmed() -> None:
    decision = decided(report(R.FAILED, failure_code="x", alarm="unknown"), status=S.SENT)

    assert decision.is_alarm


def test_the_providers_own_id_is_kept_and_not_overwritten() -> None:
    said = report(R.SENT, provider_reference="5501")

    assert decided(said, status=S.SUBMITTING).changes["provider_reference"] == "5501"
    kept = decided(said, status=S.SUBMITTING, provider_reference="1").changes
    assert "provider_reference" not in kept


@pytest.mark.parametrize("year", [1, 1970])
def test_nothing_has_happened_before_the_order(year: int) -> None:
    """A provider's clock may be wrong: the reversal watch is not to be over at its beginning."""
    long_ago = datetime(year, 1, 1, tzinfo=UTC)

    decision = decided(report(R.COMPLETED, reported_at=long_ago, charged_mills=1), status=S.SENT)

    assert decision.changes["reversible_until"] == NOW - timedelta(hours=1) + REVERSAL_WATCH


def test_a_charge_that_is_told_of_late_is_booked_after_any_end() -> None:
    failed = decided(
        report(R.COMPLETED, charged_mills=5000), status=S.FAILED, provider_status="completed"
    )
    undone = decided(report(R.REVERSED, charged_mills=5000), status=S.COMPLETED)

    assert (failed.changes["charged_mills"], failed.money) == (5000, (Money.SETTLE,))
    assert (undone.changes["charged_mills"], undone.money) == (5000, (Money.SETTLE,))
