"""The chain: bought once, at no more than agreed, or refused for a reason."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.services import catalog as catalog_step
from fulfillment.services import dispatch, funds, outages, submission
from fulfillment.services.context import Context
from fulfillment.store import accounts, claims
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    ITEM,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    attempt_of,
    available,
    checkout,
    entries,
    gather,
    messages_of,
    path_of,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    submit,
    take_figure,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10


def buy(context: Context, simulator: Simulator, scenario: str = "webhooks_lost") -> Order:
    """Send one checkout of an item on sale through the chain."""
    (order,) = receive(context, simulator.checkout(scenario))
    run_chain(context)
    return again(context, order)


def pass_time(clock: FakeClock, simulator: Simulator, seconds: float) -> None:
    clock.advance(seconds)
    simulator.jump(seconds)


# --- against the simulator ------------------------------------------------------------------------


def test_a_checkout_is_bought_and_followed_to_its_delivery(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    order = buy(simulated, simulator)

    pass_time(clock, simulator, 40)
    simulator.until_status(order, "completed")
    run_polls(simulated)

    purchase = simulator.purchase(order)
    assert purchase is not None
    assert path_of(simulated, order) == [
        "received",
        "quoted",
        "reserved",
        "submitting",
        "accepted",
        "completed",
    ]
    assert view(simulated, order).charged_price == purchase["amountCents"]
    assert entries(simulated, order)[1] == ("settle", purchase["amountCents"] * 10)
    assert (purchase["posts"], purchase["reads"]) == (1, 1)


def test_a_lower_price_is_bought_at_the_lower_price(
    simulated: Context, simulator: Simulator
) -> None:
    raw = simulator.checkout("webhooks_lost")
    simulator.ask("PUT", f"/items/{raw['catalogItemId']}", price=raw["expectedPrice"] - 7)

    (order,) = receive(simulated, raw)
    run_chain(simulated)

    purchase = simulator.purchase(order)
    assert purchase is not None
    assert purchase["expectedPrice"] == purchase["amountCents"] == raw["expectedPrice"] - 7


def test_a_higher_price_is_refused_before_money_is_held(
    simulated: Context, simulator: Simulator
) -> None:
    raw = simulator.checkout("webhooks_lost")
    simulator.ask("PUT", f"/items/{raw['catalogItemId']}", price=raw["expectedPrice"] + 1)

    (order,) = receive(simulated, raw)
    run_chain(simulated)

    order = again(simulated, order)
    assert (order.status, order.failure_code, order.failed_by) == (S.FAILED, "price_changed", "us")
    assert entries(simulated, order) == []
    assert simulator.purchase(order) is None


def test_an_allowed_slippage_buys_a_little_higher_and_no_more(
    make_context: MakeContext, simulator: Simulator
) -> None:
    context = make_context(base_url=simulator.url, main={"slippage_cents": 5})
    near, far = simulator.checkout("webhooks_lost", 0), simulator.checkout("webhooks_lost", 1)
    simulator.ask("PUT", f"/items/{near['catalogItemId']}", price=near["expectedPrice"] + 5)
    simulator.ask("PUT", f"/items/{far['catalogItemId']}", price=far["expectedPrice"] + 6)

    bought, refused = receive(context, near, far)
    run_chain(context)

    assert again(context, bought).status is S.ACCEPTED
    assert again(context, refused).failure_code == "price_changed"


def test_an_item_that_is_gone_is_refused_before_money_is_held(
    simulated: Context, simulator: Simulator
) -> None:
    raw = simulator.checkout("webhooks_lost")
    simulator.ask("PUT", f"/items/{raw['catalogItemId']}", available=False)

    (order,) = receive(simulated, raw)
    run_chain(simulated)

    assert again(simulated, order).failure_code == "item_unavailable"
    assert entries(simulated, order) == []


def test_an_item_that_goes_between_catalog_and_purchase_is_a_definite_no(
    simulated: Context, simulator: Simulator
) -> None:
    order = buy(simulated, simulator, "item_gone")

    assert (order.status, order.failure_code) == (S.FAILED, "item_unavailable")
    assert order.failed_by == "provider"
    assert [kind for kind, _ in entries(simulated, order)] == ["hold", "release"]


def test_an_order_waits_for_funds_and_goes_on_by_itself_after_a_top_up(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    simulator.set_balance(1)
    order = buy(simulated, simulator)
    waiting = order.status

    simulator.set_balance(1_000_000)
    clock.advance(15)
    run_sweep(simulated)

    assert waiting is S.AWAITING_FUNDS
    assert path_of(simulated, order)[2:] == [
        "awaiting_funds",
        "quoted",
        "reserved",
        "submitting",
        "accepted",
    ]
    assert simulator.purchase(order) is not None


def test_an_order_that_waits_in_vain_ends_for_lack_of_funds(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    simulator.set_balance(1)
    order = buy(simulated, simulator)

    pass_time(clock, simulator, 901)
    run_sweep(simulated)

    order = again(simulated, order)
    assert (order.status, order.failure_code) == (S.FAILED, "insufficient_funds")
    assert order.failed_by == "us"


def test_an_account_may_refuse_at_once_for_lack_of_funds(
    make_context: MakeContext, simulator: Simulator
) -> None:
    simulator.set_balance(1)
    context = make_context(base_url=simulator.url, main={"on_insufficient_funds": "fail"})

    order = buy(context, simulator)

    assert (order.status, order.failure_code) == (S.FAILED, "insufficient_funds")


UNKNOWN_ANSWERS = [
    "timeout_after_accept",
    "timeout_before_accept",
    "error_after_accept",
    "error_before_accept",
    "reset_after_accept",
    "dropped_after_accept",
    "dropped_before_accept",
    "garbage_answer",
    "html_answer",
    "foreign_answer",
]


@pytest.mark.parametrize("scenario", UNKNOWN_ANSWERS)
def test_an_unknown_outcome_is_replayed_within_seconds_and_bought_once(
    simulated: Context, simulator: Simulator, clock: FakeClock, scenario: str
) -> None:
    simulator.ask("POST", "/scenarios", default="webhooks_lost")
    order = buy(simulated, simulator, scenario)
    held = order.status, available(simulated)

    clock.advance(2)
    run_sweep(simulated)

    purchases = [
        row
        for row in simulator.ask("GET", "/ledger")["purchases"]
        if row["externalId"] == order.external_id
    ]
    assert held[0] is S.SUBMITTING
    assert again(simulated, order).status is S.ACCEPTED
    assert len(purchases) == 1
    assert purchases[0]["conflictingPosts"] == 0
    assert [kind for kind, _ in entries(simulated, order)] == ["hold"]


def test_a_slow_answer_delays_only_its_own_order(simulated: Context, simulator: Simulator) -> None:
    slow, *quick = receive(
        simulated,
        simulator.checkout("timeout_after_accept"),
        *(simulator.checkout("webhooks_lost") for _ in range(5)),
    )

    run_chain(simulated)

    assert {again(simulated, order).status for order in quick} == {S.ACCEPTED}
    assert again(simulated, slow).status is S.SUBMITTING


def test_what_the_provider_charges_above_the_price_is_booked_and_alarmed(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    order = buy(simulated, simulator, "overcharged")

    pass_time(clock, simulator, 40)
    simulator.until_status(order, "completed")
    run_polls(simulated)

    types = [message["type"] for message in messages_of(simulated, order)]
    assert view(simulated, order).charged_price == order.expected_price_cents + 1
    assert "order.needs_review" in types


@pytest.mark.parametrize(
    ("scenario", "status", "code"),
    [
        ("fails_after_accept", "failed", "item_unavailable"),
        ("price_changes_after_accept", "failed", "price_changed"),
        ("funds_fail_after_accept", "failed", "insufficient_funds"),
        ("unknown_failure", "failed", "recipient_trade_banned"),
        ("cancelled", "cancelled", "cancelled"),
        ("cancelled_as_failed", "failed", "cancelled"),
    ],
)
def test_a_failure_after_the_accept_is_final_and_frees_its_hold_at_a_later_figure(
    simulated: Context,
    simulator: Simulator,
    clock: FakeClock,
    scenario: str,
    status: str,
    code: str,
) -> None:
    order = buy(simulated, simulator, scenario)
    pass_time(clock, simulator, 40)
    simulator.until_status(order, status)
    run_polls(simulated)
    at_first = entries(simulated, order)

    pass_time(clock, simulator, 40)
    run_sweep(simulated)

    order = again(simulated, order)
    assert (order.status, order.failure_code, order.failed_by) == (status, code, "provider")
    assert view(simulated, order).charged_price is None
    assert [kind for kind, _ in at_first] == ["hold"]
    assert [kind for kind, _ in entries(simulated, order)] == ["hold", "release"]


def test_a_burst_is_one_batch_with_one_catalog_and_one_wallet_request(
    simulated: Context, simulator: Simulator
) -> None:
    before = simulator.ask("GET", "/ledger")["requests"]
    placed = receive(simulated, *(simulator.checkout("webhooks_lost", i) for i in range(20)))

    run_chain(simulated)

    after = simulator.ask("GET", "/ledger")["requests"]
    made = {name: after[name] - before.get(name, 0) for name in after}
    assert made["GET /v1/catalog"] == made["GET /v1/wallet"] == 1
    assert made["POST /v1/orders"] == 20
    assert {again(simulated, order).status for order in placed} == {S.ACCEPTED}


# --- where something has to fail ------------------------------------------------------------------


def test_waiting_and_new_orders_share_the_money_by_arrival(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 0
    early = [receive_one(context) for _ in range(2)]
    run_chain(context)

    provider.balance_mills = 2 * PRICE_MILLS + 1
    clock.advance(5)
    late = receive_one(context)
    run_chain(context)
    while_early_ones_wait = again(context, late).status
    run_sweep(context)

    assert while_early_ones_wait is S.AWAITING_FUNDS
    assert {again(context, order).status for order in early} == {S.ACCEPTED}
    assert again(context, late).status is S.AWAITING_FUNDS


def test_one_that_does_not_fit_is_skipped_for_a_smaller_one_behind_it(
    context: Context, provider: FakeProvider
) -> None:
    provider.prices["dear"] = 90_000
    provider.balance_mills = 10_000
    dear = receive_one(context, catalogItemId="dear", expectedPrice=9_000)
    cheap = receive_one(context)

    run_chain(context)

    assert again(context, dear).status is S.AWAITING_FUNDS
    assert again(context, cheap).status is S.ACCEPTED


def test_the_money_of_one_order_buys_one_order(context: Context, provider: FakeProvider) -> None:
    provider.balance_mills = PRICE_MILLS
    placed = receive(context, *(checkout() for _ in range(10)))

    run_chain(context)

    assert [again(context, order).status for order in placed].count(S.ACCEPTED) == 1
    assert again(context, placed[0]).status is S.ACCEPTED
    assert len(provider.bodies) == 1


def test_a_stale_figure_never_pays_twice(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = PRICE_MILLS
    first = receive_one(context)
    run_chain(context)

    provider.balance_mills = PRICE_MILLS  # the provider still shows what was spent
    clock.advance(20)
    second = receive_one(context)
    run_chain(context)

    assert again(context, first).status is S.ACCEPTED
    assert again(context, second).status is S.AWAITING_FUNDS


def test_what_is_not_submitted_in_time_is_too_late(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context, submitBy=(clock.now() + timedelta(seconds=10)).isoformat())

    clock.advance(10)
    run_chain(context)

    order = again(context, order)
    assert (order.status, order.failure_code, order.failed_by) == (S.FAILED, "too_late", "us")
    assert provider.bodies == []


def test_an_order_whose_time_ends_between_reservation_and_purchase_is_too_late(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context, submitBy=(clock.now() + timedelta(seconds=10)).isoformat())
    batch = gather(context)
    assert batch is not None

    clock.advance(11)
    submit(context, batch)

    assert again(context, order).failure_code == "too_late"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]
    assert provider.bodies == []


def test_an_outage_never_buys_for_a_customer_who_was_refunded_meanwhile(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderNotReached("connection refused"))
    run_chain(context)
    never_sent = attempt_of(context, order)

    clock.advance(3601)
    run_sweep(context)

    assert never_sent.unknown_since is None
    assert provider.bodies[1:] == []
    assert again(context, order).failure_code == "too_late"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]


def test_an_unknown_outcome_is_found_out_after_its_time_but_not_asked_for_again(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    run_chain(context)

    clock.advance(3601)
    run_sweep(context)

    assert len(provider.bodies) == 1
    assert again(context, order).status is S.ACCEPTED


def test_an_unknown_outcome_of_nothing_ends_too_late_and_frees_its_money(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)

    clock.advance(3601)
    run_sweep(context)

    assert len(provider.bodies) == 1
    assert again(context, order).failure_code == "too_late"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]


def test_a_replay_sends_the_same_bytes(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)

    provider.prices[ITEM] -= 100
    clock.advance(2)
    run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 2
    assert provider.bodies[0] == provider.bodies[1]


def test_the_intent_is_committed_before_the_first_byte_leaves(
    context: Context, provider: FakeProvider
) -> None:
    seen: list[tuple[str, str, bool]] = []

    def look(fields: dict[str, Any]) -> None:
        query = (
            "SELECT o.status, a.state, a.body_sealed IS NOT NULL AS has_body FROM orders o "
            "JOIN attempts a ON a.order_id = o.id WHERE o.external_id = :name"
        )
        (row,) = rows(context, query, name=fields["external_id"])
        seen.append((row["status"], row["state"], row["has_body"]))

    provider.on_purchase = look
    receive_one(context)
    run_chain(context)

    assert seen == [("submitting", "sending", True)]


def test_the_body_that_was_sent_is_stored_encrypted(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    run_chain(context)

    sealed = attempt_of(context, order).body_sealed

    assert sealed is not None
    assert b"token" not in sealed
    assert context.seal.open(sealed) == provider.bodies[0]


def test_a_refused_replay_is_believed_only_past_the_cache_time(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    refusal = ProviderRefused("item_unavailable", "gone")
    for _ in range(5):
        provider.fail_purchase(refusal)
    run_chain(context)

    clock.advance(2)
    run_sweep(context)
    soon = again(context, order).status
    for _ in range(3):
        clock.advance(36)
        run_sweep(context)

    assert soon is S.SUBMITTING
    assert again(context, order).failure_code == "item_unavailable"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]


def test_a_refused_replay_of_an_order_that_the_provider_has_is_a_purchase(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    provider.fail_purchase(ProviderRefused("refused_by_provider", "422"))
    run_chain(context)

    clock.advance(2)
    run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def test_a_first_refusal_is_definite(context: Context, provider: FakeProvider) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderRefused("item_unavailable", "gone"))

    run_chain(context)

    order = again(context, order)
    assert (order.status, order.failure_code) == (S.FAILED, "item_unavailable")
    assert order.failed_by == "provider"
    assert provider.reads.count(f"order {order.external_id}") == 0
    assert available(context) == 10_000_000


def test_an_unknown_outcome_holds_its_money_however_long_it_takes(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive_one(context)
    error = ProviderOutcomeUnknown("timeout")
    for _ in range(100):
        provider.fail_purchase(error)
    run_chain(context)

    for _ in range(20):
        clock.advance(31)
        run_sweep(context)
        take_figure(context)

    assert available(context) == 10_000_000 - PRICE_MILLS


def test_an_outcome_that_stays_unknown_is_given_to_a_person_with_its_money_held(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    clock.advance(3601)
    provider.reads_fail(ProviderNotReached("timeout"))

    for _ in range(200):
        clock.advance(61)
        run_sweep(context)

    types = [message["type"] for message in messages_of(context, order)]
    assert again(context, order).status is S.NEEDS_REVIEW
    assert "order.needs_review" in types
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def test_an_order_in_review_is_adopted_when_it_turns_up(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    clock.advance(3601)
    provider.reads_fail(ProviderNotReached("timeout"))
    for _ in range(200):
        clock.advance(61)
        run_sweep(context)
    in_review = again(context, order).status

    provider.reads_fail(None)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(61)
    run_polls(context)

    assert in_review is S.NEEDS_REVIEW
    assert again(context, order).status is S.COMPLETED
    assert entries(context, order) == [("hold", PRICE_MILLS), ("settle", PRICE_MILLS)]


@pytest.mark.parametrize(
    "error", [ProviderDeniesAccount("401"), ProviderNotReached("refused")], ids=["denied", "away"]
)
def test_an_account_that_cannot_be_asked_pauses_and_keeps_its_orders(
    context: Context, provider: FakeProvider, clock: FakeClock, error: Any
) -> None:
    order = receive_one(context)
    provider.reads_fail(error)
    run_chain(context)
    paused = dispatch.dispatch(context, "main")

    provider.reads_fail(None)
    clock.advance(61)
    run_sweep(context)

    assert paused is None
    assert again(context, order).status is S.ACCEPTED


def test_wrong_credentials_cause_no_storm_of_requests(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    receive(context, *(checkout() for _ in range(10)))
    provider.reads_fail(ProviderDeniesAccount("401"))

    for _ in range(120):
        run_ticks(context)
        clock.advance(1)

    assert len(provider.reads) <= 5


def test_a_batch_stops_when_the_account_is_turned_away_and_what_is_left_keeps_its_hold(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(4)))
    provider.fail_purchase(ProviderDeniesAccount("403"))

    run_chain(context)
    tried = len(provider.bodies)
    statuses = {again(context, order).status for order in placed}
    clock.advance(61)
    run_sweep(context)

    assert tried == 1
    assert statuses <= {S.SUBMITTING, S.RESERVED}
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.orders) == 4


def test_a_step_that_lost_its_claim_before_the_post_sends_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None

    rows(context, "UPDATE orders SET claim = 'another/submit' RETURNING 1")
    submit(context, batch)

    assert provider.bodies == []
    assert again(context, order).status is S.RESERVED


def test_a_frozen_worker_that_wakes_after_its_lease_sends_nothing_more(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(3)))
    provider.on_purchase = lambda fields: clock.advance(31)

    run_chain(context)
    sent = len(provider.bodies)
    provider.on_purchase = lambda fields: None
    for _ in range(3):
        clock.advance(31)
        run_sweep(context)

    assert sent == 1
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.bodies) == len(placed)


def test_a_doubled_step_finds_nothing_left_to_do(context: Context, provider: FakeProvider) -> None:
    receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None

    steps = (catalog_step.refresh_catalog, funds.check_wallet)
    outcomes = [(step(context, batch).goes_on, step(context, batch).goes_on) for step in steps]
    submitted = (submission.submit_orders(context, batch), submission.submit_orders(context, batch))

    assert outcomes == [(True, False), (True, False)]
    assert submitted == (True, False)
    assert len(provider.bodies) == 1


def test_a_step_of_a_batch_that_was_taken_over_does_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    late = dispatch.dispatch(context, "main")
    assert late is not None
    clock.advance(31)

    run_sweep(context)
    zombie = catalog_step.refresh_catalog(context, late)

    assert not zombie.goes_on
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1


@pytest.mark.parametrize("crash_after", ["dispatch", "catalog", "wallet"])
def test_a_worker_that_dies_between_two_steps_is_taken_over_within_the_lease(
    context: Context, provider: FakeProvider, clock: FakeClock, crash_after: str
) -> None:
    order = receive_one(context)
    batch = dispatch.dispatch(context, "main")
    assert batch is not None
    if crash_after != "dispatch":
        catalog_step.refresh_catalog(context, batch)
    if crash_after == "wallet":
        funds.check_wallet(context, batch)

    clock.advance(31)
    run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert [kind for kind, _ in entries(context, order)] == ["hold"]


def test_a_worker_that_dies_after_its_intent_is_resolved_by_a_replay(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None
    provider.on_purchase = _die
    with pytest.raises(KeyboardInterrupt):
        submission.submit_orders(context, batch)
    intended = again(context, order).status

    provider.on_purchase = lambda fields: None
    clock.advance(31)
    run_sweep(context)

    assert intended is S.SUBMITTING
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.orders) == 1


def _die(fields: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def test_one_bad_order_does_not_fail_its_batch(context: Context, provider: FakeProvider) -> None:
    good = receive_one(context)
    gone = receive_one(context, catalogItemId="gone")
    other = receive_one(context)

    run_chain(context)

    assert again(context, gone).failure_code == "item_unavailable"
    assert {again(context, o).status for o in (good, other)} == {S.ACCEPTED}


def test_the_stores_id_and_the_webhooks_address_reach_the_provider_unchanged(
    context: Context, provider: FakeProvider
) -> None:
    receive_one(context, externalId="Order.42_x-Y")

    run_chain(context)

    sent = msgspec.json.decode(provider.bodies[0])
    assert sent["external_id"] == "Order.42_x-Y"
    assert sent["webhook_url"] == "http://127.0.0.1:9/webhooks/main"


# --- the rate budget ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10, 11, 15, 19, 20, 25, 60, 500])
def test_every_allowed_rate_lets_orders_through(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, limit: int
) -> None:
    context = make_context(provider, main={"rate_per_minute": limit})
    order = receive_one(context)

    for _ in range(30):
        run_sweep(context)
        clock.advance(2)

    assert again(context, order).status is S.ACCEPTED


@pytest.mark.parametrize("limit", [10, 25, 60, 500])
def test_no_minute_sees_more_requests_than_the_limit(
    context: Context, clock: FakeClock, limit: int
) -> None:
    granted = 0

    for second in range(60):
        with context.database.transaction() as session:
            for purpose in accounts.Purpose:
                granted += accounts.take(session, "main", limit, purpose, 1000, clock.now())
        clock.advance(1 if second < 59 else 0)

    assert limit * 0.5 <= granted <= limit


def test_urgent_requests_go_through_when_submits_have_used_theirs(
    context: Context, clock: FakeClock
) -> None:
    with context.database.transaction() as session:
        take = accounts.take
        for _ in range(3):
            take(session, "main", 500, accounts.Purpose.SUBMIT, 1000, clock.now())
        left = take(session, "main", 500, accounts.Purpose.SUBMIT, 1, clock.now())
        urgent = take(session, "main", 500, accounts.Purpose.URGENT, 5, clock.now())
        polls = take(session, "main", 500, accounts.Purpose.POLL, 1, clock.now())

    assert (left, urgent, polls) == (0, 5, 1)


def test_unknown_outcomes_are_resolved_before_new_orders_are_bought(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"rate_per_minute": 60, "max_submits_in_flight": 1})
    new, unknown = receive(context, checkout(), checkout())
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    batch = gather(context)
    assert batch is not None
    with context.database.transaction() as session:
        claims.release(session, [new.id], f"{batch['token']}/wallet", clock.now())
    submit(context, batch)
    clock.advance(2)
    _leave_budget(context, 2)

    run_sweep(context)

    resolved = msgspec.json.decode(provider.bodies[1])["external_id"]
    assert resolved == unknown.external_id


def _leave_budget(context: Context, requests: int) -> None:
    query = "UPDATE accounts SET budget = :n, poll_budget = 0, budget_at = :now RETURNING 1"
    rows(context, query, n=requests, now=context.now())


def test_an_account_is_paused_longer_with_each_failure_and_never_over_a_minute(
    context: Context, clock: FakeClock
) -> None:
    away = ProviderNotReached("away")

    lengths = [outages.pause(context, "main", away) - clock.now() for _ in range(10)]

    assert lengths == sorted(lengths)
    assert timedelta(0) < lengths[0] <= timedelta(seconds=1)
    assert timedelta(seconds=30) <= lengths[-1] <= timedelta(seconds=60)


def test_the_providers_wish_for_a_pause_is_respected(context: Context, clock: FakeClock) -> None:
    error = ProviderNotReached("429", retry_after=timedelta(seconds=90))

    assert outages.pause(context, "main", error) == clock.now() + timedelta(seconds=90)
