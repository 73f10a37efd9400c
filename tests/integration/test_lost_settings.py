"""A key or an account that was taken out of the settings stops what needs it, and nothing else."""

from typing import Any

import msgspec
import pytest

from fulfillment.errors import CheckoutConflict, ConfigurationError, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import intake, webhooks
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from fulfillment.store.sealing import generate_key
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState, WebhookNotice
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    checkout,
    gather,
    receive,
    receive_one,
    report,
    rows,
    run_chain,
    run_sweep,
    submit,
)

OLD, NEW = f"old:{generate_key()}", f"new:{generate_key()}"
TWO_ACCOUNTS: dict[str, Any] = {"accounts": {"main": {}, "second": {}}}


def test_an_order_whose_key_is_lost_waits_and_the_others_of_its_batch_are_bought(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(provider, encryption_keys=OLD)
    locked = receive_one(before)
    after = make_context(provider, encryption_keys=NEW)
    others = receive(after, checkout(), checkout())

    run_chain(after)

    assert {again(after, order).status for order in others} == {S.ACCEPTED}
    assert again(after, locked).status is S.RESERVED
    assert_invariants(after)

    clock.advance(61)
    run_sweep(make_context(provider, encryption_keys=f"{NEW},{OLD}"))

    assert again(after, locked).status is S.ACCEPTED
    assert len(provider.bodies) == 3


@pytest.mark.parametrize("policy", AfterUnknown)
def test_a_purchase_of_unknown_outcome_is_looked_up_although_its_key_is_lost(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, policy: AfterUnknown
) -> None:
    provider.after_unknown = policy
    before = make_context(provider, encryption_keys=OLD)
    order = receive_one(before)
    provider.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=True)
    run_chain(before)
    assert attempt_of(before, order).unknown_since is not None

    after = make_context(provider, encryption_keys=NEW)
    for _ in range(4):
        clock.advance(61)
        run_sweep(after)

    assert again(after, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1


def test_an_order_whose_key_stays_lost_ends_too_late_and_frees_its_money(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(make_context(provider, encryption_keys=OLD))
    after = make_context(provider, encryption_keys=NEW)
    batch = gather(after)
    assert batch is not None
    submit(after, batch)

    clock.advance(3601)
    run_sweep(after)

    assert again(after, order).failure_code == "too_late"
    assert provider.bodies == []
    assert_invariants(after)


def test_of_a_repetition_nothing_can_be_told_without_its_key_and_the_others_are_taken(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    known, new = checkout(), checkout()
    receive(make_context(provider, encryption_keys=OLD), known)
    after = make_context(provider, encryption_keys=NEW)

    lost, taken = intake.receive_raw(after, [known, new])

    assert isinstance(lost.error, ConfigurationError)
    assert not isinstance(lost.error, CheckoutConflict)
    assert taken.is_new
    assert len(rows(after, "SELECT 1 FROM orders")) == 2


def _deliver(context: Context, provider: FakeProvider, order: Order, account: str) -> None:
    state = ReportState.COMPLETED
    told = report(state, order.external_id, charged_mills=6120)
    provider.notice = WebhookNotice(order.external_id, context.now(), told)
    webhooks.take(context, account, {}, order.external_id.encode())


def test_webhooks_of_an_account_that_is_gone_hold_up_no_others(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    both = make_context(provider, **TWO_ACCOUNTS)
    stays, goes = receive_one(both), receive_one(both, account="second")
    for account in both.settings.accounts:
        run_chain(both, account)
    _deliver(both, provider, goes, "second")
    _deliver(both, provider, stays, "main")

    left = make_context(provider, accounts={"main": {}})
    webhooks.apply_deliveries(left)

    assert again(left, stays).status is S.COMPLETED
    assert again(left, goes).status is S.ACCEPTED
    assert rows(left, "SELECT 1 FROM webhook_deliveries WHERE next_apply_at IS NOT NULL") == []


def test_a_report_that_another_version_stored_is_asked_for_instead(
    context: Context, provider: FakeProvider
) -> None:
    odd, good = receive_one(context), receive_one(context)
    run_chain(context)
    for order in (odd, good):
        _deliver(context, provider, order, "main")
    rows(
        context,
        "UPDATE webhook_deliveries SET report = CAST(%(report)s AS jsonb) WHERE order_id = %(id)s "
        "RETURNING 1",
        report=msgspec.json.encode({"of": "another version"}).decode(),
        id=odd.id,
    )

    webhooks.apply_deliveries(context)

    assert again(context, good).status is S.COMPLETED
    assert again(context, odd).status is S.ACCEPTED
    assert again(context, odd).next_poll_at == context.now()
