"""What a purchase may come to: a clear answer, none, or one that comes too late."""

from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import (
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.services import brakes, reconciliation, submission
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.store.models import Order
from schemas.enums import FailureCode, Source
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    ITEM,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    attempt_of,
    available,
    entries,
    gather,
    messages_of,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    submit,
    take_figure,
)

PRICE_MILLS = PRICE_CENTS * 10


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


def test_a_replay_sends_the_same_bytes_even_where_we_would_write_others_now(
    context: Context, provider: FakeProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)

    provider.prices[ITEM] -= 100
    written = provider.purchase_body
    monkeypatch.setattr(provider, "purchase_body", lambda command: written(command) + b" ")
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
            "JOIN attempts a ON a.order_id = o.id WHERE o.external_id = %(name)s"
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


def test_an_undocumented_no_is_believed_when_a_lookup_past_the_cache_time_knows_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    for _ in range(3):
        provider.fail_purchase(
            ProviderRefused("refused_by_provider", "HTTP 400", is_documented=False)
        )

    run_chain(context)
    at_first = again(context, order).status
    clock.advance(36)
    run_sweep(context)
    too_soon = again(context, order).status  # the post may have been under way for its whole time
    clock.advance(30)
    run_sweep(context)

    assert at_first is too_soon is S.SUBMITTING
    assert len(provider.bodies) == 1
    assert again(context, order).failure_code == "refused_by_provider"
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"]


def test_a_delivery_whose_charge_is_untold_keeps_its_hold_until_it_is_told(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.COMPLETED)
    clock.advance(60)
    run_polls(context)
    untold = entries(context, order)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS - 10)
    clock.advance(3600)
    run_polls(context)

    assert [kind for kind, _ in untold] == ["hold"]
    assert entries(context, order)[1:] == [("settle", PRICE_MILLS - 10)]
    assert again(context, order).charged_mills == PRICE_MILLS - 10
    assert messages_of(context, order)[-1]["order"]["chargedPrice"] == PRICE_CENTS - 1


def test_money_that_a_failed_order_cost_after_all_is_booked_on_it(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.FAILED)
    clock.advance(60)
    run_polls(context)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    reconciled = apply_by_webhook(context, order, provider)

    assert reconciled.status is S.FAILED
    assert reconciled.charged_mills == PRICE_MILLS
    assert ("settle", PRICE_MILLS) in entries(context, order)

    provider.says(order.external_id, R.REVERSED, refunded_at=context.now())
    apply_by_webhook(context, order, provider)
    assert ("refund", PRICE_MILLS) in entries(context, order)


def test_an_ended_order_is_asked_about_when_a_person_asks(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.FAILED)
    clock.advance(60)
    run_polls(context)
    provider.reads.clear()

    asked = reconciliation.reconcile_now(context, [order.external_id])
    run_polls(context)

    assert asked == 1
    assert provider.reads == [f"order {order.external_id}"]


def apply_by_webhook(context: Context, order: Order, provider: FakeProvider) -> Order:
    said = provider.orders[order.external_id]
    with context.database.transaction() as session:
        apply_reports(context, session, order.account, {order.id: said}, Source.WEBHOOK)
    return again(context, order)


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


@pytest.mark.parametrize("is_unknown", [False, True], ids=["fresh", "after an unknown outcome"])
def test_nothing_is_bought_for_more_than_the_settings_allow_by_then(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, is_unknown: bool
) -> None:
    provider.prices[ITEM] = 10 * PRICE_CENTS + 500
    before = make_context(provider, main={"slippage_cents": 50})
    order = receive_one(before)
    batch = gather(before)
    assert batch is not None
    if is_unknown:
        provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    else:
        brakes.stop(before, "main", "too dear", "a person")
    submission.submit_orders(before, batch)
    brakes.resume(before, "main", "no slippage any more", "a person")
    posted = len(provider.bodies)

    after = make_context(provider, main={"slippage_cents": 0})
    for _ in range(3):
        clock.advance(40)
        run_sweep(after)

    ended = again(after, order)
    assert (ended.status, ended.failure_code) == (S.FAILED, "price_changed")
    assert len(provider.bodies) == posted == int(is_unknown)
    assert available(after) == provider.balance_mills


def test_what_a_no_ended_after_an_unknown_outcome_is_asked_about_once_more(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """A provider that forgets an order for a minute: our own purchase is what took the item."""
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    gone = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")
    for _ in range(5):
        provider.fail_purchase(gone)
    run_chain(context)
    bought = dict(provider.orders)
    provider.orders.clear()
    for _ in range(20):
        clock.advance(5)
        run_sweep(context)
    ended = again(context, order).status

    provider.orders |= bought
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    for _ in range(40):
        clock.advance(10)
        run_polls(context)

    assert ended is S.FAILED
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)
    assert [m["type"] for m in messages_of(context, order)].count("order.needs_review") == 1
    assert again(context, order).next_poll_at is None
