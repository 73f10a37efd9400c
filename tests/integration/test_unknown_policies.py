"""What follows a purchase of unknown outcome, by what the provider documents (DESIGN section 3)."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from msgspec.structs import replace

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import operations, unknowns
from fulfillment.services.context import Context
from fulfillment.services.operations import Resolution
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import OrderReport
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    attempt_of,
    available,
    checkout,
    entries,
    messages_of,
    receive,
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

    pass_time(context, clock, 65)
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


def test_lookups_of_one_order_that_fail_become_rare_and_hold_nobody_else_up(
    context: Context, careful: FakeProvider, clock: FakeClock
) -> None:
    """Its own page is broken at the provider: nothing that is asked about the others is."""
    broken = lost(context, careful, is_made=True)
    answer = careful.reports

    def reports(external_ids: Sequence[str]) -> dict[str, OrderReport]:
        found = answer(external_ids)
        if broken.external_id in external_ids:
            raise ProviderNotReached("HTTP 500", is_outage=True)
        return found

    careful.reports = reports  # type: ignore[method-assign]
    begun = lookups(careful)

    pauses = set()
    for _ in range(20):
        pass_time(context, clock, 60, step=3)
        other = receive_one(context)
        run_chain(context)
        assert again(context, other).status is S.ACCEPTED
        (wallet,) = operations.wallets(context)
        pauses.add(wallet.paused_until)

    assert pauses == {None}
    assert 20 < lookups(careful) - begun <= 50
    assert len(view(context, broken).timeline) < 110
    assert len(careful.bodies) == 1 + 20
    del careful.reports
    pass_time(context, clock, 200, step=5)
    assert again(context, broken).status in {S.ACCEPTED, S.NEEDS_REVIEW}


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

    pass_time(context, clock, 71)
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
    pass_time(after, clock, 30)

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


def test_an_outcome_that_stays_unknown_comes_to_a_person_long_before_a_distant_submit_by(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context, submitBy="2099-01-01T00:00:00Z")
    provider.fail_purchase(ProviderOutcomeUnknown("cannot be read"))
    run_chain(context)
    for _ in range(26):
        clock.advance(3600)
        provider.fail_purchase(ProviderOutcomeUnknown("cannot be read"))
        run_sweep(context)

    after = again(context, order)
    assert after.status is S.NEEDS_REVIEW
    assert available(context) == provider.balance_mills - 10 * PRICE_CENTS


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


# --- the provider has it, and nobody can say what it is


def news(context: Context, order: Order) -> tuple[int, int]:
    """Count the log's entries and the alarms."""
    types = [message["type"] for message in messages_of(context, order)]
    return len(view(context, order).timeline), types.count("order.needs_review")


def watch(context: Context, clock: FakeClock, seconds: float) -> None:
    for _ in range(round(seconds / 30)):
        clock.advance(30)
        run_sweep(context)
        run_polls(context)


@pytest.mark.parametrize("policy", list(AfterUnknown))
@pytest.mark.parametrize("is_lost", [False, True])
def test_an_answer_that_nobody_understands_is_reviewed_at_once_and_adopted_later(
    context: Context, provider: FakeProvider, clock: FakeClock, policy: AfterUnknown, is_lost: bool
) -> None:
    provider.after_unknown = policy
    provider.on_purchase = lambda fields: provider.says(
        fields["external_id"], R.UNKNOWN, raw_status="teleporting"
    )
    order = lost(context, provider) if is_lost else receive_one(context)
    run_chain(context)
    pass_time(context, clock, 3)
    reviewed, at_first, posts = again(context, order), news(context, order), len(provider.bodies)

    watch(context, clock, 7200)
    still = again(context, order), news(context, order)
    provider.says(order.external_id, R.SENT)
    watch(context, clock, 330)

    assert (reviewed.status, reviewed.provider_status) == (S.NEEDS_REVIEW, "teleporting")
    assert reviewed.next_attempt_at is None
    assert at_first[1] == 1
    assert (still[0].status, still[1]) == (S.NEEDS_REVIEW, at_first)
    assert 8 <= lookups(provider) <= 50
    assert again(context, order).status is S.SENT
    assert len(provider.bodies) == posts <= 2
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def quarantined(context: Context, provider: FakeProvider, clock: FakeClock) -> Order:
    """Give an order whose id the provider has under another item."""
    order = lost(context, provider)
    other = {"item_id": "999", "item_name": "Sticker | Other"}
    provider.says(order.external_id, R.COMPLETED, charged_mills=300, **other)
    pass_time(context, clock, 3)
    return again(context, order)


@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_a_purchase_of_another_item_is_not_adopted(
    context: Context, provider: FakeProvider, clock: FakeClock, policy: AfterUnknown
) -> None:
    provider.after_unknown = policy
    order = quarantined(context, provider, clock)
    at_first = news(context, order)
    watch(context, clock, 3600)

    assert order.status is again(context, order).status is S.NEEDS_REVIEW
    assert at_first[1] == 1
    assert news(context, order) == at_first
    assert any("'Sticker | Other'" in entry.note for entry in view(context, order).timeline)
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


@pytest.mark.parametrize(
    ("resolution", "status", "booked"),
    [
        (Resolution.NOT_FOUND, S.FAILED, ("release", PRICE_CENTS * 10)),
        (Resolution.FOUND, S.COMPLETED, ("settle", 300)),
    ],
)
def test_a_person_resolves_a_purchase_of_another_item(
    context: Context,
    silent: FakeProvider,
    clock: FakeClock,
    resolution: Resolution,
    status: S,
    booked: tuple[str, int],
) -> None:
    order = quarantined(context, silent, clock)

    is_wrong = resolution is Resolution.NOT_FOUND
    operations.resolve(context, order.external_id, resolution, "looked at it", is_insisted=is_wrong)
    pass_time(context, clock, 40)

    assert again(context, order).status is status
    assert entries(context, order)[-1] == booked


# --- an outage met by a purchase


@pytest.mark.parametrize("is_outage", [False, True])
def test_only_an_outage_stops_the_batch_and_pauses_the_account(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, is_outage: bool
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    members = receive(context, *(checkout() for _ in range(4)))
    provider.fail_purchase(ProviderOutcomeUnknown("no answer", is_outage=is_outage), is_made=True)

    run_chain(context)
    posts = len(provider.bodies)
    (wallet,) = operations.wallets(context)
    waiting = [again(context, order).status for order in members]
    pass_time(context, clock, 35)

    assert posts == (1 if is_outage else 4)
    assert (wallet.paused_until is not None) is is_outage
    assert sorted(waiting) == ["reserved"] * 3 + ["submitting"] if is_outage else True
    assert {again(context, order).status for order in members} == {S.ACCEPTED}
    assert {tuple(kind for kind, _ in entries(context, order)) for order in members} == {("hold",)}


# --- the pure parts


@pytest.mark.parametrize(
    ("count", "apart_s", "is_allowed"),
    [(0, 0, False), (1, 0, False), (2, 64.9, False), (2, 65, True)],
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


def test_lookups_are_apart_from_the_first_answer_to_the_second_question(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """The first one may have been long on its way, and the second one not."""
    provider.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    provider.on_read = lambda what: clock.advance(2)
    clock.advance(3)
    run_sweep(context)
    provider.on_read = lambda what: None
    first = attempt_of(context, order)
    asked_at = []
    for _ in range(80):
        clock.advance(1)
        before = len(provider.reads)
        run_sweep(context)
        asked_at += [clock.now()] * (len(provider.reads) > before)

    assert first.empty_since is not None
    assert first.empty_at is not None
    assert first.empty_since - first.empty_at == timedelta(seconds=2)
    last = max(at for at in asked_at if at <= first.empty_since + timedelta(seconds=67))
    assert last >= first.empty_since + unknowns.LOOKUPS_APART
    assert len(provider.bodies) == 2
