"""The periodic check goes on whatever stands in the rows, and true histories are no alarm to it."""

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from structlog.testing import capture_logs

from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import diagnosis, invariants, operations, pulse, webhooks
from fulfillment.services.context import Context
from fulfillment.store import leases
from fulfillment.store.engine import Database
from fulfillment.store.invariants import INVARIANTS
from fulfillment.store.models import Order
from fulfillment.store.promises import Invariant
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext
from tests.integration.test_invariants import broken, ends, falsify
from tests.integration.web_client import Store
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    entries,
    gather,
    messages_of,
    receive,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
    submit,
    view,
)

__all__ = ["ends"]
UNREADABLE = ["[1]", "null", '{"charged_mills": "abc"}', '{"submit_by": "yesterdayish"}']
SPOIL = (
    "UPDATE order_events e SET changes = CAST(%(changes)s AS jsonb) FROM orders o "
    "WHERE o.id = %(id)s AND e.order_id = o.id AND e.sequence = o.sequence"
)


@pytest.mark.parametrize("changes", UNREADABLE)
def test_an_order_that_cannot_be_read_is_told_of_and_hides_no_other(
    context: Context, clock: FakeClock, ends: dict[str, Order], changes: str
) -> None:
    unreadable = ends["completed"]
    falsify(context, SPOIL, id=unreadable.id, changes=changes)
    wrong = [ends["sent"], ends["reversed"]]
    for order in wrong:
        falsify(context, "UPDATE orders SET charged_mills = 1 WHERE id = %(id)s", id=order.id)

    with capture_logs() as logs:
        for _ in range(3):
            invariants.check(context)
            clock.advance(60)
    counts = invariants.last_counts(context)

    assert counts[invariants.UNCHECKED] == 1
    assert counts["log_rebuilds_row"] == len(wrong)
    told = {each["invariant"]: each for each in logs if each["event"] == "invariant.violated"}
    assert told[invariants.UNCHECKED]["ids"] == [unreadable.external_id]
    assert "log_rebuilds_row" in told[invariants.UNCHECKED]["why"]
    assert len(logs) == len(told)  # each once
    assert broken(context)[invariants.UNCHECKED] == (unreadable.external_id,)


def test_the_check_gets_past_an_order_that_cannot_be_read_and_forgets_it_once_mended(
    context: Context,
    clock: FakeClock,
    ends: dict[str, Order],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invariants, "_SLICE", 2)
    order = ends["declined"]  # the oldest
    falsify(context, SPOIL, id=order.id, changes="[1]")
    places = set()
    for _ in range(6):
        invariants.check(context)
        (last,) = rows(context, "SELECT after_id FROM invariants WHERE name = 'log_rebuilds_row'")
        places.add(last["after_id"])
        assert invariants.last_counts(context)[invariants.UNCHECKED] == 1
        clock.advance(60)

    mended = '{"failed_by": "provider", "failure_code": "recipient_cannot_trade"}'
    falsify(context, SPOIL, id=order.id, changes=mended)
    invariants.check(context)

    assert len(places) >= len(ends) / 2
    assert invariants.last_counts(context)[invariants.UNCHECKED] == 0


@pytest.mark.parametrize("statement", ["SELECT (1 / 0)::text", "SELECT pg_sleep(9)::text"])
def test_a_check_that_fails_for_no_orders_sake_is_told_of_and_the_others_are_made(
    context: Context,
    database_url: str,
    ends: dict[str, Order],
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
) -> None:
    ill = Invariant("ill", "whatever", statement)
    monkeypatch.setattr(invariants, "INVARIANTS", (ill, *INVARIANTS))
    falsify(context, "UPDATE orders SET next_poll_at = NULL WHERE id = %(id)s", id=ends["sent"].id)
    hasty = replace(context, database=Database(database_url, statement_timeout_s=1))

    found = {each.invariant: each.subjects for each in invariants.check(hasty)}
    hasty.database.close()

    assert found[invariants.UNCHECKED] == ("ill",)
    assert found["nothing_due"] == (ends["sent"].external_id,)


def test_a_check_that_does_not_come_to_its_end_is_none(
    context: Context, clock: FakeClock, ends: dict[str, Order]
) -> None:
    constraint = "ALTER TABLE invariants {} CONSTRAINT nothing_is_kept"
    falsify(context, constraint.format("ADD") + " CHECK (false) NOT VALID")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            invariants.check(context)
    finally:
        falsify(context, constraint.format("DROP"))
    clock.advance(600)

    assert pulse.INVARIANTS not in {row["name"] for row in rows(context, "TABLE heartbeats")}
    assert invariants.age(context).total_seconds() >= 600


def test_a_checker_that_stands_still_is_told_of_and_takes_nobody_out_of_service(
    web_context: Context, store: Store, clock: FakeClock
) -> None:
    def is_ok() -> bool:
        with web_context.database.transaction() as session:
            for name in (pulse.SWEEP, pulse.CONSUMER, pulse.RELAY):
                leases.beat(session, name, web_context.now())
        answer = store.get("/readyz")
        assert answer.status_code == 200
        told = {check.name: check for check in diagnosis.examine(web_context.settings)}
        checks = operations.check_readiness(web_context)
        (check,) = (each for each in checks if each.name in told and not each.is_needed)
        assert answer.json()["checks"][check.name]["ok"] is check.is_ok
        return bool(check.is_ok)

    nothing_to_check = is_ok()
    receive_one(web_context)
    fresh = is_ok()
    clock.advance(301)
    never = is_ok()
    invariants.check(web_context)
    checked = is_ok()
    clock.advance(301)
    late = is_ok()

    assert [nothing_to_check, fresh, never, checked, late] == [True, True, False, True, False]
    assert "fulfillment_invariants_age_seconds 301.0" in store.get("/metrics").text


def test_what_reads_a_whole_table_is_asked_every_hour_and_until_it_is_mended(
    context: Context, clock: FakeClock, ends: dict[str, Order]
) -> None:
    def found() -> int:
        clock.advance(60)
        invariants.check(context)
        return invariants.last_counts(context)["wallet_adds_up"]

    more = "UPDATE wallets SET credited_mills = credited_mills + "
    before = found()
    falsify(context, more + "1")
    soon = found()
    clock.advance(3600)
    later = found()
    falsify(context, more + "-1")
    mended = found()

    assert [before, soon, later, mended] == [0, 0, 1, 0]


def test_an_order_that_goes_on_to_its_next_account_breaks_nothing(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    names = ["main", "second"]
    accounts: dict[str, dict[str, str]] = {name: {} for name in names}
    context = make_context(provider, accounts=accounts, routes={"both": names})
    provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold"))
    order = receive_one(context, account="both", marketHashName=NAME)
    reserved = gather(context)
    assert_invariants(context)
    assert reserved is not None
    submit(context, reserved)
    assert again(context, order).between_attempts
    assert_invariants(context)

    batch = gather(context, "second")
    assert_invariants(context)
    assert batch is not None
    submit(context, batch)

    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)

    tell(context, provider, order, R.COMPLETED, charged_mills=6120)
    tell(context, provider, order, R.REVERSED, refunded_at=context.now())

    assert again(context, order).status is S.REVERSED
    assert_invariants(context)


def test_an_order_that_waits_for_a_person_breaks_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    order = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    for _ in range(15):
        clock.advance(60)
        run_ticks(context)

    assert again(context, order).status is S.NEEDS_REVIEW
    assert_invariants(context)


def test_charges_that_come_late_or_are_too_high_are_the_providers_and_break_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    dear, silent, ended = receive(context, *(checkout() for _ in range(3)))
    run_chain(context)
    provider.says(dear.external_id, R.COMPLETED, charged_mills=999_999)
    provider.says(silent.external_id, R.COMPLETED)
    provider.says(ended.external_id, R.FAILED)
    clock.advance(31)
    run_polls(context)
    assert_invariants(context)

    tell(context, provider, ended, R.COMPLETED, charged_mills=6120)

    assert again(context, ended).charged_mills == 6120
    assert again(context, dear).charged_mills == 999_999
    assert_invariants(context)


@pytest.mark.parametrize("charged", [7120, 7130])
def test_a_cap_that_was_lowered_since_is_none_of_what_was_bought_before(
    make_context: MakeContext, provider: FakeProvider, charged: int
) -> None:
    provider.prices[ITEM] = 7120
    order = receive_one(before := make_context(provider, main={"slippage_cents": 100}))
    run_chain(before)
    now = make_context(provider, main={"slippage_cents": 0})

    tell(now, provider, order, R.COMPLETED, charged_mills=charged)

    told = [message["type"] for message in messages_of(now, order)]
    assert ("order.needs_review" in told) is (charged > 7120)
    assert_invariants(now)


@pytest.mark.parametrize(
    "news",
    [
        [(R.COMPLETED, 6120), (R.COMPLETED, 7120)],
        [(R.COMPLETED, None), (R.REVERSED, 7120)],
        [(R.FAILED, None), (R.COMPLETED, 7120)],
    ],
)
def test_a_charge_above_the_cap_has_its_word_in_the_log_whenever_it_is_told(
    context: Context, provider: FakeProvider, news: list[tuple[R, int | None]]
) -> None:
    order = receive_one(context)
    run_chain(context)

    for state, charged in news:
        tell(context, provider, order, state, charged_mills=charged)

    assert "above the agreed price" in view(context, order).timeline[-1].note
    assert messages_of(context, order)[-1]["type"] == "order.needs_review"
    assert_invariants(context)


@pytest.mark.parametrize("charged", [5120, 7120])
def test_a_charge_told_anew_of_what_was_delivered_after_its_end_is_booked_until_it_is_refunded(
    context: Context, provider: FakeProvider, clock: FakeClock, charged: int
) -> None:
    order = receive_one(context)
    run_chain(context)
    tell(context, provider, order, R.FAILED)
    for _ in range(4):
        clock.advance(40)
        run_ticks(context)

    tell(context, provider, order, R.COMPLETED, charged_mills=6120, reported_at=clock.now())
    clock.advance(10)
    tell(context, provider, order, R.COMPLETED, charged_mills=charged, reported_at=clock.now())
    before = clock.now() - timedelta(seconds=5)
    tell(context, provider, order, R.COMPLETED, charged_mills=9999, reported_at=before)

    told = [message["type"] for message in messages_of(context, order)]
    assert again(context, order).status is S.FAILED
    assert again(context, order).charged_mills == charged
    assert entries(context, order)[2:] == [("settle", 6120), ("adjust", charged - 6120)]
    assert told.count("order.needs_review") == 2
    assert_invariants(context)

    tell(context, provider, order, R.REVERSED, refunded_at=clock.now())
    tell(context, provider, order, R.CANCELLED)
    tell(context, provider, order, R.COMPLETED, charged_mills=6120)

    assert entries(context, order)[4:] == [("refund", charged)]
    assert_invariants(context)


def test_a_refund_that_a_webhook_told_of_is_missed(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    run_chain(context)
    tell(context, provider, order, R.COMPLETED, charged_mills=6120)
    tell(context, provider, order, R.REVERSED, refunded_at=context.now())
    assert_invariants(context)

    falsify(context, "DELETE FROM wallet_entries WHERE kind = 'refund'")

    assert broken(context)["money_fits_the_end"] == (order.external_id,)


def tell(
    context: Context,
    provider: FakeProvider,
    order: Order,
    state: R,
    **details: object,
) -> None:
    """Bring news of an order by webhook."""
    said = report(state, order.external_id, **details)
    provider.notice = WebhookNotice(order.external_id, context.now(), said)
    body = f"{order.external_id} {state} {details}".encode()
    webhooks.take(context, again(context, order).account, {}, body)
    webhooks.apply_deliveries(context)
