"""The chain at the simulator: bought once, at no more than agreed, or refused for a reason."""

import json

import pytest

from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    Simulator,
    again,
    attempt_of,
    available,
    entries,
    messages_of,
    path_of,
    receive,
    run_chain,
    run_polls,
    run_sweep,
    view,
)


def buy(context: Context, simulator: Simulator, scenario: str = "webhooks_lost") -> Order:
    """Send one checkout of an item on sale through the chain."""
    (order,) = receive(context, simulator.checkout(scenario))
    run_chain(context)
    return again(context, order)


def pass_time(clock: FakeClock, simulator: Simulator, seconds: float) -> None:
    clock.advance(seconds)
    simulator.jump(seconds)


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
    make_context: MakeContext, simulator: Simulator
) -> None:
    simulated = make_context(base_url=simulator.url)
    before = simulator.ask("GET", "/ledger")["requests"]
    placed = receive(simulated, *(simulator.checkout("webhooks_lost", i) for i in range(20)))

    run_chain(simulated)

    after = simulator.ask("GET", "/ledger")["requests"]
    made = {name: after[name] - before.get(name, 0) for name in after}
    assert made["GET /v1/catalog"] == made["GET /v1/wallet"] == 1
    assert made["POST /v1/orders"] == 20
    assert {again(simulated, order).status for order in placed} == {S.ACCEPTED}


def test_a_trade_url_in_another_spelling_is_sent_as_steam_spells_it_and_kept_as_it_came(
    simulated: Context, simulator: Simulator
) -> None:
    odd = [
        "HTTPS://SteamCommunity.COM:443/tradeoffer/new?partner=%31%32%33&token=%61bc",
        "https://steamcommunity.com/tradeoffer/new/?partner=0123&token=abc&for_item=730_2_1",
    ]
    raws = [simulator.checkout("webhooks_lost", n, tradeUrl=url) for n, url in enumerate(odd)]

    placed = receive(simulated, *raws)
    run_chain(simulated)

    assert [again(simulated, order).status for order in placed] == [S.ACCEPTED, S.ACCEPTED]
    for order in placed:
        sent = simulated.seal.open(attempt_of(simulated, order).body_sealed or b"")
        plain = "https://steamcommunity.com/tradeoffer/new/?partner=123&token=abc"
        assert json.loads(sent)["tradeUrl"] == plain
    kept = [simulated.seal.open(order.trade_url_sealed or b"").decode() for order in placed]
    assert kept == odd
    assert receive(simulated, *raws) == [again(simulated, order) for order in placed]


def test_an_item_that_the_catalog_lists_twice_waits_for_a_clear_one(
    simulated: Context, simulator: Simulator, clock: FakeClock
) -> None:
    (order,) = receive(simulated, simulator.checkout("delivered", 9))
    simulator.ask("POST", "/faults", fault="doubled_catalog")
    run_chain(simulated)
    unclear = again(simulated, order).status

    simulator.ask("DELETE", "/faults")
    clock.advance(11)
    run_chain(simulated)

    assert unclear is S.RECEIVED
    assert again(simulated, order).status is not S.FAILED
