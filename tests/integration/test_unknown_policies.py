"""What follows a purchase of unknown outcome, by what the provider documents (DESIGN section 3)."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import unknowns
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    attempt_of,
    entries,
    messages_of,
    receive_one,
    run_chain,
    run_polls,
    run_sweep,
    view,
)

LOST = ProviderOutcomeUnknown("timeout")
LONGEST_CALL_S = 65.0  # the lease and the longest that a provider blocks


def lost(context: Context, provider: FakeProvider, *, is_made: bool = False) -> Order:
    """Give an order whose first purchase was never answered."""
    order = receive_one(context)
    provider.fail_purchase(LOST, is_made=is_made)
    run_chain(context)
    return again(context, order)


def pass_time(context: Context, clock: FakeClock, seconds: float, step: float = 1.0) -> None:
    """Let the sweep tick while time passes."""
    for _ in range(round(seconds / step)):
        clock.advance(step)
        run_sweep(context)


def lookups(provider: FakeProvider) -> int:
    return sum(read.startswith("order") for read in provider.reads)


# --- two empty lookups, then the same id again


@pytest.fixture
def careful(provider: FakeProvider) -> FakeProvider:
    provider.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    return provider


def test_a_lost_answer_is_found_by_a_lookup_within_seconds(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful, is_made=True)

    pass_time(context, clock, 3)

    assert again(context, order).status is S.ACCEPTED
    assert len(careful.bodies) == 1


def test_the_same_bytes_go_out_again_only_after_two_empty_lookups_a_minute_apart(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)

    pass_time(context, clock, 60)
    early = len(careful.bodies)
    found = attempt_of(context, order)
    pass_time(context, clock, 5)

    assert early == 1
    assert found.empty_lookups >= 2
    assert len(careful.bodies) == 2
    assert careful.bodies[0] == careful.bodies[1]
    assert again(context, order).status is S.ACCEPTED


def test_lookups_that_fail_are_no_empty_lookups(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)
    careful.reads_fail(ProviderNotReached("503"))

    pass_time(context, clock, 600, step=5)

    assert len(careful.bodies) == 1
    assert attempt_of(context, order).empty_lookups == 0


def test_a_used_id_is_adopted_and_not_posted_a_third_time(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)
    # The first call ends late: the second finds its id used.
    careful.fail_purchase(ProviderOutcomeUnknown("error 7"), is_made=True)

    pass_time(context, clock, 80)

    assert len(careful.bodies) == 2
    assert again(context, order).status is S.ACCEPTED


def test_each_post_begins_its_lookups_anew(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)
    careful.fail_purchase(LOST)

    pass_time(context, clock, 66)
    after_second = attempt_of(context, order)
    pass_time(context, clock, 40)
    early = len(careful.bodies)

    assert after_second.posts == 2
    assert after_second.empty_lookups <= 3
    assert early == 2


def test_a_refused_replay_of_what_nobody_knows_is_a_definite_no(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)
    careful.fail_purchase(ProviderRefused("item_unavailable", "gone"))
    careful.purchase_script[-1] = (careful.purchase_script[-1][0], False)

    pass_time(context, clock, 80)

    order = again(context, order)
    assert (order.status, order.failure_code) == (S.FAILED, "item_unavailable")
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]


def test_the_count_of_lookups_survives_a_restart(
    make_context: MakeContext, careful: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(careful)
    order = lost(before, careful)
    pass_time(before, clock, 40)
    counted = attempt_of(before, order)

    after = make_context(careful)
    pass_time(after, clock, 25)

    assert counted.empty_lookups >= 2
    assert len(careful.bodies) == 2


def test_an_order_that_is_late_meanwhile_is_not_bought_any_more(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, careful)
    clock.advance(3601)

    pass_time(context, clock, 100)

    assert len(careful.bodies) == 1
    assert again(context, order).failure_code == "too_late"


# --- never again by itself


@pytest.fixture
def silent(provider: FakeProvider) -> FakeProvider:
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    return provider


def test_a_purchase_that_must_not_be_repeated_is_looked_for(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, silent, is_made=True)

    pass_time(context, clock, 3)

    assert again(context, order).status is S.ACCEPTED
    assert len(silent.bodies) == 1


def test_after_ten_minutes_of_empty_lookups_a_person_decides_and_the_hold_stays(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, silent)

    pass_time(context, clock, 600, step=5)
    before = again(context, order).status
    pass_time(context, clock, LONGEST_CALL_S + 31, step=5)

    types = [message["type"] for message in messages_of(context, order)]
    assert before is S.SUBMITTING
    assert again(context, order).status is S.NEEDS_REVIEW
    assert "order.needs_review" in types
    assert [kind for kind, _ in entries(context, order)] == ["hold"]
    assert len(silent.bodies) == 1
    assert lookups(silent) >= 15


@pytest.mark.parametrize("after_s", [60, 3000])
def test_what_turns_up_later_is_adopted(
    context: Context, silent: FakeProvider, clock: FakeClock, after_s: int
) -> None:
    order = lost(context, silent)
    pass_time(context, clock, 720, step=5)
    for _ in range(after_s // 30):
        clock.advance(30)
        run_polls(context)
    reviewed = again(context, order).status

    silent.says(order.external_id, R.SENT)
    for _ in range(12):
        clock.advance(30)
        run_polls(context)

    assert reviewed is S.NEEDS_REVIEW
    assert again(context, order).status is S.SENT
    assert len(silent.bodies) == 1


def test_no_clock_refuses_what_may_have_been_bought(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, silent)
    clock.advance(3601)  # past its time of submission

    pass_time(context, clock, 700, step=5)

    assert again(context, order).status is S.NEEDS_REVIEW
    assert len(silent.bodies) == 1


def test_what_was_never_sent_may_be_sent(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    silent.fail_purchase(ProviderNotReached("connection refused"))
    run_chain(context)

    pass_time(context, clock, 40)

    assert again(context, order).status is S.ACCEPTED
    assert len(silent.bodies) == 2


def test_a_worker_that_died_at_its_post_leaves_an_unknown_outcome(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)

    def die(_: object) -> None:
        raise KeyboardInterrupt

    silent.on_purchase = die
    with pytest.raises(KeyboardInterrupt):
        run_chain(context)
    silent.on_purchase = lambda _: None

    pass_time(context, clock, 100)

    assert again(context, order).status is S.SUBMITTING
    assert silent.bodies == []


def test_the_timeline_tells_of_lookups(
    context: Context, silent: FakeProvider, clock: FakeClock
) -> None:
    order = lost(context, silent)

    pass_time(context, clock, 2)

    notes = [entry.note for entry in view(context, order).timeline]
    assert any("lookup 1" in note for note in notes)
    assert any("does not know the order" in note for note in notes)


# --- the pure parts


@pytest.mark.parametrize(
    ("count", "apart_s", "is_allowed"),
    [(0, 0, False), (1, 0, False), (2, 59.9, False), (2, 60, True)],
)
def test_a_replay_needs_two_lookups_far_enough_apart(
    context: Context, careful: FakeProvider, count: int, apart_s: float, is_allowed: bool
) -> None:
    attempt = attempt_of(context, lost(context, careful))
    assert attempt.last_post_at is not None
    since = attempt.last_post_at + timedelta(seconds=1) if count else None
    last = since + timedelta(seconds=apart_s) if since else None
    attempt = replace(attempt, empty_lookups=count, empty_since=since, empty_at=last)

    step = unknowns.next_step(AfterUnknown.LOOKUP_THEN_REPLAY, attempt)

    assert (step is unknowns.Step.POST) is is_allowed
