"""What was begun at one merchant is concluded at no other, whatever the settings say meanwhile."""

from typing import Any

import pytest

from fulfillment.errors import NotAllowedNow, ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import diagnosis, invariants, merchants, operations, webhooks
from fulfillment.services.context import Context
from fulfillment.services.operations import Resolution
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import PurchaseCommand, WebhookNotice
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_orders_store import assert_rebuilds
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    entries,
    gather,
    messages_of,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
    view,
)

LOST = ProviderOutcomeUnknown("timeout")
ANOTHER: dict[str, Any] = {"client_id": "another-merchant"}
CHANGES = [
    ANOTHER,
    {"base_url": "http://127.0.0.1:9/other"},
    {"provider": "skinsback"},
]
SAME = [{"client_secret": "rotated", "previous_secret": "cs"}, {"api_key": "rotated"}]


@pytest.fixture
def other() -> FakeProvider:
    """Give the merchant that the account is another's of; `provider` is the one of before."""
    return FakeProvider()


def asked_about(provider: FakeProvider, order: Order) -> bool:
    return any(order.external_id in each for each in provider.reads)


def alarms(context: Context, order: Order) -> list[str]:
    told = messages_of(context, order)
    return [m["order"]["timeline"][-1]["note"] for m in told if m["type"] == NEEDS_REVIEW]


def pass_time(context: Context, clock: FakeClock, seconds: float, rounds: int = 6) -> None:
    for _ in range(rounds):
        clock.advance(seconds)
        run_ticks(context)


def unfollowed(context: Context) -> tuple[str, ...]:
    found = {each.invariant: each.subjects for each in invariants.violations(context)}
    return found.get("followed_by_nobody", ())


@pytest.mark.parametrize("policy", AfterUnknown)
@pytest.mark.parametrize("change", CHANGES)
def test_a_purchase_of_unknown_outcome_is_neither_repeated_nor_looked_for_at_another_merchant(
    make_context: MakeContext,
    provider: FakeProvider,
    other: FakeProvider,
    clock: FakeClock,
    policy: AfterUnknown,
    change: dict[str, Any],
) -> None:
    provider.after_unknown = other.after_unknown = policy
    before = make_context(provider)
    provider.fail_purchase(LOST, is_made=True)
    order = receive_one(before)
    run_chain(before)

    changed = make_context(other, main=change)
    pass_time(changed, clock, 70)

    assert again(changed, order).status is S.NEEDS_REVIEW
    assert (other.bodies, asked_about(other, order)) == ([], False)
    assert [kind for kind, _ in entries(changed, order)] == ["hold"]
    (told,) = alarms(changed, order)
    assert next(iter(change)).upper() in told
    assert_invariants(changed)

    pass_time(before, clock, 600, rounds=2)

    assert again(before, order).status is S.ACCEPTED
    assert unfollowed(before) == ()
    assert_rebuilds(before, again(before, order))


def test_an_absence_at_another_merchant_sends_no_order_along_its_route(
    make_context: MakeContext, provider: FakeProvider, other: FakeProvider, clock: FakeClock
) -> None:
    provider.after_unknown = other.after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    accounts: dict[str, Any] = {"main": {"client_id": "one"}, "backup": {"client_id": "two"}}
    routes = {"any": "main,backup"}
    before = make_context(provider, accounts=accounts, routes=routes)
    provider.fail_purchase(LOST, is_made=True)
    order = receive_one(before, account="any", marketHashName=NAME)
    run_chain(before)

    changed = make_context(other, accounts={**accounts, "main": ANOTHER}, routes=routes)
    pass_time(changed, clock, 70)

    assert (again(changed, order).status, again(changed, order).account) == (
        S.NEEDS_REVIEW,
        "main",
    )
    assert other.bodies == []


@pytest.mark.parametrize("change", SAME)
def test_rotated_secrets_change_no_merchant(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, change: dict[str, Any]
) -> None:
    before = make_context(provider)
    provider.fail_purchase(LOST, is_made=True)
    unknown, accepted = receive_one(before), receive_one(before)
    run_chain(before)

    rotated = make_context(provider, main=change)
    provider.says(accepted.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)
    pass_time(rotated, clock, 40, rounds=2)

    assert again(rotated, unknown).status is S.ACCEPTED
    assert again(rotated, accepted).status is S.COMPLETED


def test_an_attempt_of_before_the_migration_goes_on_as_ever(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(provider)
    provider.fail_purchase(LOST, is_made=True)
    order = receive_one(before)
    run_chain(before)
    rows(before, "UPDATE attempts SET merchant = NULL RETURNING 1")

    pass_time(make_context(provider, main=ANOTHER), clock, 40)

    assert again(before, order).status is S.ACCEPTED
    assert attempt_of(before, order).merchant is None


@pytest.fixture
def accepted(
    make_context: MakeContext, provider: FakeProvider, other: FakeProvider
) -> tuple[Order, Context, Context]:
    """Give an order that is accepted at one merchant, the context of then, and one of another,
    who says that it failed."""
    before = make_context(provider)
    order = receive_one(before)
    run_chain(before)
    other.says(order.external_id, R.FAILED, failure_code="item_unavailable")
    return order, before, make_context(other, main=ANOTHER)


Accepted = tuple[Order, Context, Context]


def test_an_accepted_order_is_not_ended_by_polls_of_another_merchant(
    accepted: Accepted, provider: FakeProvider, other: FakeProvider, clock: FakeClock
) -> None:
    order, before, changed = accepted

    pass_time(changed, clock, 900)

    assert again(changed, order).status is S.ACCEPTED
    assert not asked_about(other, order)
    assert [kind for kind, _ in entries(changed, order)] == ["hold"]
    assert len(alarms(changed, order)) == 1
    assert unfollowed(changed) == (order.external_id,)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)
    pass_time(before, clock, 900, rounds=1)

    assert again(before, order).status is S.COMPLETED
    assert unfollowed(before) == ()


def test_an_account_that_is_changed_twice_is_told_of_twice(
    accepted: Accepted, clock: FakeClock
) -> None:
    order, before, changed = accepted

    for context in (changed, before, changed):
        pass_time(context, clock, 900, rounds=2)

    assert len(alarms(changed, order)) == 2


def test_a_webhook_of_another_merchant_is_not_applied(
    accepted: Accepted, other: FakeProvider, clock: FakeClock
) -> None:
    order, _, changed = accepted
    failed = report(R.FAILED, order.external_id)
    other.notice = WebhookNotice(order.external_id, clock.now(), failed)

    webhooks.take(changed, "main", {}, b"failed")
    webhooks.apply_deliveries(changed)

    assert again(changed, order).status is S.ACCEPTED
    (row,) = rows(changed, "SELECT outcome, applied_at FROM webhook_deliveries")
    assert "another merchant" in row["outcome"]
    assert row["applied_at"] is not None


def test_a_delivery_is_not_watched_at_another_merchant_and_the_invariants_say_so(
    accepted: Accepted, provider: FakeProvider, other: FakeProvider, clock: FakeClock
) -> None:
    order, before, changed = accepted
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)
    clock.advance(60)
    run_polls(before)
    other.says(order.external_id, R.REVERSED)

    pass_time(changed, clock, 20_000)
    during = unfollowed(changed)
    pass_time(changed, clock, 86_400, rounds=9)

    assert again(changed, order).status is S.COMPLETED
    assert (during, unfollowed(changed)) == ((order.external_id,), ())
    assert alarms(changed, order) == []
    assert again(changed, order).next_poll_at is None


def test_the_doctor_names_the_orders_of_a_changed_account_and_the_setting(
    accepted: Accepted,
) -> None:
    _, before, changed = accepted

    checks = {c.name: c for c in diagnosis.examine(changed.settings)}

    assert not checks["orders at main"].is_ok
    assert "CLIENT_ID" in checks["orders at main"].detail
    assert "orders at main" not in {c.name for c in diagnosis.examine(before.settings)}


def test_orders_are_followed_at_an_account_that_a_person_knows_to_be_the_same(
    accepted: Accepted, other: FakeProvider, clock: FakeClock
) -> None:
    order, _, changed = accepted
    pass_time(changed, clock, 900, rounds=2)
    other.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)

    count = merchants.is_same(changed, "main", "only a new client id", "anna")
    clock.advance(31)
    run_polls(changed)

    assert count == 1
    assert again(changed, order).status is S.COMPLETED
    assert unfollowed(changed) == ()
    assert any("says anna" in entry.note for entry in view(changed, order).timeline)
    assert merchants.is_same(changed, "main", "once more", "anna") == 0


@pytest.mark.parametrize("resolution", [Resolution.NOT_FOUND, Resolution.CANCELLED])
def test_a_person_may_end_what_is_followed_by_nobody(
    accepted: Accepted, clock: FakeClock, resolution: Resolution
) -> None:
    order, _, changed = accepted
    with pytest.raises(NotAllowedNow):
        operations.resolve(changed, order.external_id, resolution, "asked their support")
    pass_time(changed, clock, 900, rounds=1)

    with pytest.raises(NotAllowedNow, match=r"nobody can be asked: .* it is another merchant's"):
        operations.resolve(changed, order.external_id, resolution, "asked their support")
    operations.resolve(
        changed, order.external_id, resolution, "asked their support", is_insisted=True
    )
    pass_time(changed, clock, 60)

    assert again(changed, order).status in (S.FAILED, S.CANCELLED)
    assert [kind for kind, _ in entries(changed, order)] == ["hold", "release"]
    assert_invariants(changed)


def test_what_a_person_found_at_the_account_is_followed_there(
    accepted: Accepted, other: FakeProvider, clock: FakeClock
) -> None:
    order, _, changed = accepted
    pass_time(changed, clock, 900, rounds=1)
    other.says(order.external_id, R.PENDING)

    operations.resolve(changed, order.external_id, Resolution.FOUND, "moved to a new address")
    other.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)
    pass_time(changed, clock, 900, rounds=1)

    assert again(changed, order).status is S.COMPLETED


class Elsewhere(FakeProvider):
    """Has a form of its own for purchases."""

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        return super().purchase_body(command) + b" "


def test_what_never_left_is_written_anew_for_the_merchant_of_now(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(provider)
    provider.fail_purchase(ProviderNotReached("connection refused"))
    order = receive_one(before)
    run_chain(before)
    (body,) = provider.bodies

    elsewhere = Elsewhere()
    changed = make_context(elsewhere, main=ANOTHER)
    pass_time(changed, clock, 70)

    assert again(changed, order).status is S.ACCEPTED
    assert elsewhere.bodies == [body + b" "]
    assert attempt_of(changed, order).merchant == changed.account("main").merchant


class WholeCents(FakeProvider):
    """Takes prices in whole cents only, and nobody has thought of others."""

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        if command.price_mills % 10:
            raise ValueError("not whole cents")
        return super().purchase_body(command)


def test_an_order_of_which_no_request_can_be_written_stops_none_beside_it(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.prices["odd"] = 6125
    before = make_context(provider, main={"provider": "skinsback"})
    odd = receive_one(before, catalogItemId="odd", expectedPrice=613)
    gather(before)
    changed = make_context(WholeCents())
    plain = receive_one(changed)
    gather(changed)

    pass_time(changed, clock, 40)
    statuses = again(changed, plain).status, again(changed, odd).status
    pass_time(changed, clock, 3600, rounds=2)

    assert statuses == (S.ACCEPTED, S.RESERVED)
    assert again(changed, odd).failure_code == "too_late"
    assert_invariants(changed)
