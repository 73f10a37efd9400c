"""What a report is about: another item, purchase or recipient than asked for is never applied."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from fulfillment.services.decide import Decision, Money, decide
from fulfillment.states import FOLLOWED
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import OrderReport
from schemas.provider import ReportState as R
from tests.support import report, some_order
from tests.unit.test_decide import CAP_MILLS, NOW, WINDOW, decided

PARTNER = 123456789
OTHER: dict[str, Any] = {"item_id": "999", "item_name": "Sticker | Other"}
WANTED: dict[str, Any] = {
    "catalog_item_id": "7",
    "quoted_item_id": "8",
    "market_hash_name": "AWP",
    "provider_reference": "9012",
}
#: What is told instead of what was asked for, and what of it is kept.
ODD: list[tuple[dict[str, Any], str]] = [
    (OTHER, "item Sticker | Other"),
    ({"item_id": "7", "item_name": "Sticker | Other"}, "item Sticker | Other"),
    ({"provider_reference": "9999"}, "purchase 9999"),
    ({"partner": 666}, "recipient"),
]
RIGHT: dict[str, Any] = {
    "item_id": "7",
    "item_name": "AWP",
    "provider_reference": "9012",
    "partner": PARTNER,
}
UNDER_WAY = sorted(FOLLOWED | {S.SUBMITTING})


def judged(order: Order, said: OrderReport, **how: Any) -> Decision:
    return decide(order, said, NOW, WINDOW, CAP_MILLS, partner=PARTNER, **how)


def after(order: Order, decision: Decision) -> Order:
    """Give the order as the decision leaves it."""
    changes = dict(decision.changes)
    if "contradictions" in changes:
        changes["contradictions"] = tuple(changes["contradictions"])
    if changes.get("told_status"):
        changes["told_status"] = S(changes["told_status"])
    return replace(order, status=decision.target or order.status, **changes)


@pytest.mark.parametrize("word", list(R))
def test_another_item_is_never_adopted_and_told_once(word: R) -> None:
    order = some_order(status=S.SUBMITTING, **WANTED)
    said = report(word, charged_mills=1, **OTHER)

    first = judged(order, said)
    again = judged(after(order, first), said)

    assert first.target is S.NEEDS_REVIEW
    assert first.is_alarm
    assert "'Sticker | Other', not 'AWP'" in first.note
    assert first.changes == {
        "provider_status": said.raw_status,
        "contradictions": ["item Sticker | Other"],
    }
    assert first.money == ()
    assert again == Decision()


@pytest.mark.parametrize("status", UNDER_WAY)
@pytest.mark.parametrize("word", list(R))
@pytest.mark.parametrize(("odd", "kept"), ODD)
def test_what_was_not_asked_for_brings_an_order_under_way_to_a_person_once(
    status: S, word: R, odd: dict[str, Any], kept: str
) -> None:
    order = some_order(status=status, **WANTED)
    said = report(word, charged_mills=1, **odd)

    first = judged(order, said)
    again = judged(after(order, first), said)
    other_word = judged(after(order, first), replace(said, raw_status="another"))

    assert first.target is S.NEEDS_REVIEW
    assert first.is_alarm
    assert first.money == ()
    assert first.changes["contradictions"] == [kept]
    assert again == Decision()
    assert (other_word.target, other_word.is_alarm) == (S.NEEDS_REVIEW, False)


@pytest.mark.parametrize("status", [*UNDER_WAY, S.COMPLETED])
@pytest.mark.parametrize("key", ["provider_reference", "item_name"])
def test_what_is_told_otherwise_in_each_answer_is_told_to_a_person_once(
    status: S, key: str
) -> None:
    order = some_order(status=status, **WANTED)
    alarms = []

    for place in range(5):
        said = report(R.SENT, charged_mills=1, **{key: f"{9000 + place}"})
        decision = judged(order, said)
        order = after(order, decision)
        alarms.append(decision.is_alarm)

    assert alarms == [True, False, False, False, False]
    assert len(order.contradictions) == 1
    assert order.status is (S.COMPLETED if status is S.COMPLETED else S.NEEDS_REVIEW)


@pytest.mark.parametrize(("odd", "kept"), ODD)
def test_only_what_sets_it_right_or_a_person_ends_a_quarantine(
    odd: dict[str, Any], kept: str
) -> None:
    order = some_order(status=S.SENT, **WANTED)
    held = after(order, judged(order, report(R.SENT, **odd)))

    silent = judged(held, report(R.COMPLETED, charged_mills=1))
    righted = judged(held, report(R.COMPLETED, charged_mills=1, **RIGHT))
    found = judged(held, report(R.SENT, charged_mills=1, **odd), is_by_a_person=True)
    taken = after(held, found)

    assert silent.target is S.NEEDS_REVIEW
    assert silent.money == ()
    assert righted.target is S.COMPLETED
    assert Money.SETTLE in righted.money
    assert righted.changes["contradictions"] == []
    assert found.target is S.SENT
    # What a person took for right is held against it no more, under whichever name.
    assert taken.contradictions == (() if "provider_reference" in odd else (kept,))
    assert judged(taken, report(R.COMPLETED, charged_mills=1, **odd)).target is S.COMPLETED


@pytest.mark.parametrize(("odd", "kept"), ODD)
def test_of_a_delivered_order_it_is_told_once_and_stops_nothing(
    odd: dict[str, Any], kept: str
) -> None:
    order = some_order(status=S.COMPLETED, provider_status="completed", **WANTED)

    first = judged(order, report(R.REVERSED, **odd))
    again = judged(after(order, first), report(R.REVERSED, **odd))

    assert (first.target, first.is_alarm) == (S.COMPLETED, True)
    assert first.changes == {"contradictions": [kept]}
    assert again.target is S.REVERSED


@pytest.mark.parametrize(
    ("word", "expected"),
    [(R.ACCEPTED, S.NEEDS_REVIEW), (R.PENDING, S.PENDING), (R.SENT, S.SENT), (R.FAILED, S.FAILED)],
)
def test_an_order_that_is_set_right_goes_on_from_where_it_was(word: R, expected: S) -> None:
    order = some_order(status=S.PENDING, **WANTED)
    held = after(order, judged(order, report(R.PENDING, **OTHER)))

    decision = judged(held, report(word, **RIGHT))

    assert decision.target is expected
    assert decision.is_alarm is False


def test_a_trade_window_is_not_begun_anew_by_a_review() -> None:
    order = some_order(status=S.SENT, sent_at=NOW - WINDOW, **WANTED)
    held = after(order, judged(order, report(R.SENT, **OTHER)))

    decision = judged(held, report(R.SENT, **RIGHT))

    assert decision.changes["trade_deadline_at"] == NOW


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"catalog_item_id": "7"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "AWP"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "1", "quoted_item_id": "7"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "1", "market_hash_name": "AWP"}, {"item_id": "7", "item_name": "AWP"}),
        ({"market_hash_name": "★ M9  (FN)"}, {"item_id": "7", "item_name": "★ m9 (FN)"}),
        # Too little is told to say that it is another item.
        ({"catalog_item_id": "AWP"}, {"item_id": "7"}),
        ({"catalog_item_id": "1", "market_hash_name": "AWP"}, {"item_id": "7"}),
        ({"catalog_item_id": "7"}, {"item_name": "AWP"}),
        ({"catalog_item_id": "7"}, {}),
        # A first name of the purchase, none, and a recipient that nobody can compare.
        ({}, {"provider_reference": "9012"}),
        ({"provider_reference": "9012"}, {}),
        ({}, {"partner": PARTNER}),
    ],
)
@pytest.mark.parametrize("status", [S.SUBMITTING, S.ACCEPTED])
def test_what_is_or_may_be_what_was_asked_for_is_applied(
    wanted: dict[str, Any], told: dict[str, Any], status: S
) -> None:
    assert judged(some_order(status=status, **wanted), report(R.SENT, **told)).target is S.SENT


def test_a_recipient_that_nobody_can_compare_is_no_difference() -> None:
    assert decided(report(R.SENT, partner=666), status=S.ACCEPTED).target is S.SENT


def test_another_name_than_the_known_one_is_enough() -> None:
    said = report(R.SENT, item_name="Sticker | Other")

    assert decided(said, status=S.SUBMITTING, market_hash_name="AWP").target is S.NEEDS_REVIEW


# --- what does not come on, and what goes on after the end


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (R.ACCEPTED, S.NEEDS_REVIEW),
        (R.PROCESSING, S.NEEDS_REVIEW),
        (R.PENDING, S.PENDING),
        (R.COMPLETED, S.COMPLETED),
        (R.FAILED, S.FAILED),
    ],
)
def test_only_progress_takes_a_stalled_order_out_of_its_review(word: R, expected: S) -> None:
    held = some_order(status=S.NEEDS_REVIEW, told_status=S.PROCESSING, provider_status="processing")

    decision = judged(held, report(word))

    assert (decision.target or held.status) is expected
    assert not decision.is_alarm


def test_a_person_may_let_a_stalled_order_wait_longer() -> None:
    held = some_order(status=S.NEEDS_REVIEW, told_status=S.PROCESSING)

    decision = judged(held, report(R.PROCESSING), is_by_a_person=True)

    assert decision.target is S.PROCESSING
    assert decision.changes["told_status"] is None


@pytest.mark.parametrize("failed_by", ["us", "provider"])
@pytest.mark.parametrize("word", [R.ACCEPTED, R.PENDING, R.SENT])
def test_a_purchase_of_a_refused_order_is_alarmed_once_and_seen_to_its_end(
    failed_by: str, word: R
) -> None:
    order = some_order(status=S.FAILED, failed_by=failed_by)

    first = judged(order, report(word))
    living = after(order, first)
    again = judged(living, report(word))
    later = judged(living, report(R.SENT, raw_status="later"))
    ended = judged(living, report(R.CANCELLED))
    bought = judged(living, report(R.COMPLETED, charged_mills=6120))

    assert (first.target, first.is_alarm, first.money) == (S.FAILED, True, ())
    assert living.lives_on
    assert again == Decision()
    assert not later.is_alarm
    assert not ended.is_alarm
    assert not after(living, ended).lives_on
    assert bought.is_alarm
    assert bought.money == (Money.SETTLE,)
    assert not after(living, bought).lives_on


def test_a_purchase_of_a_refused_order_is_asked_about_until_its_charge_is_told() -> None:
    order = some_order(status=S.FAILED, failed_by="provider")

    bought = after(order, judged(order, report(R.COMPLETED)))
    told = judged(bought, report(R.COMPLETED, charged_mills=6120))

    assert bought.lives_on
    assert told.money == (Money.SETTLE,)
    assert not after(bought, told).lives_on


def test_an_unknown_word_for_a_refused_order_is_a_sign_of_life() -> None:
    order = some_order(status=S.FAILED, failed_by="provider")

    decision = judged(order, report(R.UNKNOWN, raw_status="teleporting"))

    assert decision.is_alarm
    assert after(order, decision).lives_on


@pytest.mark.parametrize("word", [R.ACCEPTED, R.SENT])
def test_older_words_of_an_order_that_the_provider_ended_are_no_sign_of_life(word: R) -> None:
    order = some_order(status=S.SENT, provider_status="sent")
    ended = after(order, judged(order, report(R.FAILED)))

    decision = judged(ended, report(word))

    assert not decision.is_alarm
    assert not after(ended, decision).lives_on


@pytest.mark.parametrize("is_heard", [True, False])
def test_that_an_offer_is_out_after_the_end_is_asked_about_once_and_told_where_it_is_so(
    is_heard: bool,
) -> None:
    order = some_order(status=S.PENDING, provider_status="pending")
    order = replace(order, sent_at=NOW) if is_heard else order
    ended = replace(after(order, judged(order, report(R.FAILED))), updated_at=NOW)

    unclear = judged(ended, report(R.SENT))
    earlier = judged(ended, report(R.SENT), as_of=NOW - timedelta(seconds=1))
    surely = judged(ended, report(R.SENT), as_of=NOW)
    living = after(ended, surely)

    assert unclear == earlier
    assert (unclear.is_alarm, unclear.is_doubtful) == (False, not is_heard)
    assert not judged(ended, report(R.PENDING)).is_doubtful
    assert (surely.is_alarm, surely.target, surely.money) == (True, S.FAILED, ())
    assert living.lives_on
    assert judged(living, report(R.SENT), as_of=NOW) == Decision()


def test_a_word_that_is_noted_while_its_provider_is_asked_wants_a_younger_answer() -> None:
    ended = some_order(status=S.FAILED, told_status=S.FAILED, provider_status="failed")
    asked = replace(ended, poll_wanted_at=NOW)

    first = judged(asked, report(R.PENDING))

    assert first.is_doubtful
    assert not judged(ended, report(R.PENDING)).is_doubtful
    assert judged(after(asked, first), report(R.PENDING)).target is None
