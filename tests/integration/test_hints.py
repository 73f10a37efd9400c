"""Skinslink's webhooks, of which only an id is signed: each is a question, none an answer."""

import base64
import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import ProviderRefused
from fulfillment.providers.skinslink import webhook
from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.services.webhooks import Verdict
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import SECRET, MakeContext
from tests.support import (
    NAME,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    messages_of,
    receive,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
    view,
)

#: The provider's own id of the purchase, which is all that it signs.
PURCHASE = 178
TOLD: dict[str, Any] = {
    "charged_mills": 6120,
    "provider_reference": str(PURCHASE),
    "item_name": NAME,
}


class Skinslink(FakeProvider):
    """A provider in memory that signs as Skinslink does."""

    signs_what_it_is_about = False

    def read_webhook(self, headers: Any, body: bytes) -> Any:
        return webhook.read(body, (SECRET,))


@pytest.fixture
def provider() -> Skinslink:
    return Skinslink()


@pytest.fixture
def context(make_context: MakeContext, provider: Skinslink) -> Context:
    main = {"provider": "skinslink", "api_key": "ak_test_51d0b8"}
    return make_context(provider, main=main)


@pytest.fixture
def order(context: Context, provider: Skinslink, clock: FakeClock) -> Order:
    """Give an order that was delivered three days ago, and is not asked about soon."""
    order = receive_one(context, marketHashName=NAME)
    run_chain(context)
    provider.says(order.external_id, R.COMPLETED, **TOLD)
    clock.advance(60)
    run_polls(context)
    clock.advance(3 * 86_400)
    run_ticks(context)
    clock.advance(60)
    provider.reads.clear()
    return again(context, order)


def routed(make_context: MakeContext, provider: Skinslink, second: FakeProvider) -> Context:
    """Give a route over two accounts."""
    accounts = {
        "main": {"provider": "skinslink", "api_key": "ak_test_51d0b8"},
        "second": {"client_id": "second", "client_secret": "s"},
    }
    context = make_context(provider, accounts=accounts, routes={"any": "main,second"})
    context._providers.update(second=second)
    return context


def hint(context: Context, status: str, **more: object) -> Verdict:
    """Deliver what the provider has signed, or somebody who has seen one delivery has written."""
    digest = hashlib.sha256(f"{PURCHASE}{SECRET}".encode()).digest()
    sign = base64.b64encode(digest).decode()
    fields = {"purchase_id": PURCHASE, "sign": sign, "status": status, **more}
    return webhooks.take(context, "main", {}, json.dumps(fields).encode()).verdict


def apply_and_poll(context: Context) -> None:
    webhooks.apply_deliveries(context)
    run_polls(context)


def polls(provider: FakeProvider) -> int:
    return sum(read.startswith("order ") for read in provider.reads)


def inbox(context: Context) -> list[dict[str, Any]]:
    return rows(context, "SELECT * FROM webhook_deliveries ORDER BY id")


def test_a_true_hint_is_heard_although_somebody_has_said_the_same_before_it_was_true(
    context: Context, provider: Skinslink, clock: FakeClock, order: Order
) -> None:
    forged = hint(context, "reverted")
    apply_and_poll(context)
    before = again(context, order).status
    clock.advance(60)
    run_polls(context)  # an answer that is surely younger than what was said
    clock.advance(3600)
    provider.says(order.external_id, R.REVERSED, **TOLD)

    true = hint(context, "reverted")
    apply_and_poll(context)

    assert (forged, before) == (Verdict.STORED, S.COMPLETED)
    assert true is Verdict.STORED
    assert again(context, order).status is S.REVERSED
    assert len(inbox(context)) == 1


def test_a_hint_that_comes_fifty_times_costs_one_poll_an_interval_and_no_row(
    context: Context, provider: Skinslink, clock: FakeClock, order: Order
) -> None:
    interval_s = context.settings.poll_min_interval_s
    began = clock.now()

    for _ in range(50):
        hint(context, "reverted")
        apply_and_poll(context)
        clock.advance(3)

    intervals = (clock.now() - began) / timedelta(seconds=interval_s)
    assert 2 <= polls(provider) <= intervals + 1
    assert len(inbox(context)) == 1
    assert again(context, order).status is S.COMPLETED


def test_a_hint_that_comes_fifty_times_at_once_costs_one_poll(
    context: Context, provider: Skinslink, order: Order
) -> None:
    verdicts = [hint(context, "reverted") for _ in range(50)]
    apply_and_poll(context)
    verdicts += [hint(context, "reverted") for _ in range(50)]
    apply_and_poll(context)

    assert verdicts.count(Verdict.KNOWN) >= 98
    assert polls(provider) == 1
    assert len(inbox(context)) == 1


def test_a_hint_that_comes_again_has_its_order_asked_about_no_sooner_than_is_sensible(
    context: Context, provider: Skinslink, clock: FakeClock
) -> None:
    order = receive_one(context, marketHashName=NAME)
    run_chain(context)
    provider.says(order.external_id, R.ACCEPTED, **TOLD)
    clock.advance(60)
    run_polls(context)
    clock.advance(2)
    hint(context, "pending")
    webhooks.apply_deliveries(context)
    clock.advance(2)

    assert hint(context, "pending") is Verdict.STORED
    webhooks.apply_deliveries(context)
    assert len(inbox(context)) == 1
    after = again(context, order)
    assert after.next_poll_at is not None
    assert after.polled_at is not None
    assert timedelta(seconds=30) <= after.next_poll_at - after.polled_at <= timedelta(seconds=37)


def test_a_hint_that_comes_before_the_posts_answer_outlives_a_refusal(
    context: Context, provider: Skinslink, clock: FakeClock
) -> None:
    """Who says no and has it all the same is asked once more."""

    def tell(fields: dict[str, Any]) -> None:
        hint(context, "accepted", merchant_tx_id=fields["external_id"])
        webhooks.apply_deliveries(context)

    provider.on_purchase = tell
    provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold"), is_made=False)
    order = receive_one(context, marketHashName=NAME)
    run_chain(context)
    ended = again(context, order)
    asked = polls(provider)
    for _ in range(20):
        clock.advance(20)
        run_ticks(context)

    assert ended.status is S.FAILED
    assert polls(provider) > asked
    assert again(context, order).next_poll_at is None


@pytest.mark.parametrize("is_made", [True, False])
def test_a_hint_that_comes_before_a_refusal_is_looked_into_before_the_next_account_buys(
    make_context: MakeContext, provider: Skinslink, clock: FakeClock, is_made: bool
) -> None:
    second = FakeProvider()
    context = routed(make_context, provider, second)

    def tell(fields: dict[str, Any]) -> None:
        hint(context, "accepted", merchant_tx_id=fields["external_id"])
        webhooks.apply_deliveries(context)

    provider.on_purchase = tell
    provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold"), is_made=is_made)
    order = receive_one(context, account="any", marketHashName=NAME)
    run_chain(context)
    for _ in range(20):
        run_chain(context, "second")
        clock.advance(20)
        run_ticks(context)

    after = again(context, order)
    assert len(provider.orders) + len(second.orders) == 1
    assert (after.account, after.poll_wanted_at) == ("second", None)
    assert [m["type"] for m in messages_of(context, order)].count(NEEDS_REVIEW) == is_made
    notes = [entry.note for entry in view(context, order).timeline]
    assert sum("it may have been bought there" in note for note in notes) == is_made


def test_a_delivery_that_is_signed_as_a_whole_is_not_applied_again(
    make_context: MakeContext, clock: FakeClock
) -> None:
    provider = FakeProvider()
    context = make_context(provider)
    order = receive_one(context)
    run_chain(context)
    told = report(R.COMPLETED, order.external_id, charged_mills=6120)
    provider.notice = WebhookNotice(order.external_id, clock.now(), told)
    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    next_poll_at = again(context, order).next_poll_at

    assert webhooks.take(context, "main", {}, b"{}").verdict is Verdict.KNOWN
    assert webhooks.apply_deliveries(context) == []
    assert next_poll_at is not None  # nor is the order asked about so soon that it would do
    assert next_poll_at - clock.now() > timedelta(seconds=context.settings.poll_min_interval_s)


def test_a_hint_about_an_order_that_went_on_to_another_account_is_not_applied_again(
    make_context: MakeContext, provider: Skinslink, clock: FakeClock
) -> None:
    second = FakeProvider()
    context = routed(make_context, provider, second)
    provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=False)
    order = receive_one(context, account="any", marketHashName=NAME)
    run_chain(context)
    run_chain(context, "second")
    second.says(order.external_id, R.COMPLETED, charged_mills=6120)
    clock.advance(60)
    run_polls(context)
    clock.advance(3 * 86_400)
    run_ticks(context)

    first = hint(context, "reverted", merchant_tx_id=order.external_id)
    webhooks.apply_deliveries(context)
    before, asked = view(context, order), len(provider.reads)
    clock.advance(3600)
    again_told = hint(context, "reverted", merchant_tx_id=order.external_id)
    webhooks.apply_deliveries(context)

    assert (again(context, order).account, again(context, order).status) == ("second", S.COMPLETED)
    assert (first, again_told) == (Verdict.STORED, Verdict.KNOWN)
    assert "has news of" in before.timeline[-1].note
    assert view(context, order) == before
    assert len(provider.reads) == asked
    assert [m["type"] for m in messages_of(context, order)].count(NEEDS_REVIEW) == 1


@pytest.mark.parametrize("is_new", [True, False])
def test_a_hint_that_comes_while_its_order_is_asked_about_has_it_asked_about_once_more(
    context: Context, provider: Skinslink, clock: FakeClock, order: Order, is_new: bool
) -> None:
    """The answer under way may be older than what is hinted at."""
    if not is_new:
        hint(context, "reverted")
        apply_and_poll(context)
    heard: list[Verdict] = []

    def meanwhile(_what: str) -> None:
        if not heard:
            heard.append(hint(context, "reverted"))
            webhooks.apply_deliveries(context)

    provider.on_read = meanwhile
    clock.advance(7 * 3600)
    run_polls(context)
    provider.says(order.external_id, R.REVERSED, **TOLD)
    clock.advance(60)
    run_polls(context)

    assert heard
    assert again(context, order).status is S.REVERSED


@pytest.mark.parametrize(
    ("end", "then"), [(R.EXPIRED, R.COMPLETED), (R.FAILED, R.COMPLETED), (R.COMPLETED, R.REVERSED)]
)
def test_a_hint_that_comes_while_an_order_that_is_over_is_asked_about_is_heard(
    context: Context, provider: Skinslink, clock: FakeClock, end: R, then: R
) -> None:
    """Its trade window has ended: the claim holds no longer than the hint would let it wait."""
    order = receive_one(context, marketHashName=NAME)
    run_chain(context)
    for state in (R.SENT, end):
        provider.says(order.external_id, state, **TOLD)
        clock.advance(400)
        run_polls(context)
    clock.advance(3600)
    hint(context, "pending")
    webhooks.apply_deliveries(context)
    heard: list[Verdict] = []

    def meanwhile(_what: str) -> None:
        if not heard:
            heard.append(hint(context, "completed"))
            webhooks.apply_deliveries(context)

    provider.on_read = meanwhile
    run_polls(context)
    provider.says(order.external_id, then, **TOLD)
    clock.advance(60)
    run_polls(context)

    assert heard == [Verdict.STORED]
    assert again(context, order).provider_status == then


@pytest.mark.parametrize(
    ("what", "flows"),
    [
        ("a hint that came before", False),
        ("bytes that came before", False),
        ("an old time", False),
        ("a new hint", True),
        ("a new time", True),
    ],
)
def test_what_anybody_may_repeat_is_no_sign_that_webhooks_flow(
    make_context: MakeContext, clock: FakeClock, what: str, flows: bool
) -> None:
    """Who sends it may hold back all the others: polls are as frequent as before."""
    provider = FakeProvider()
    context = make_context(provider)
    order, other = receive_one(context), receive_one(context)
    run_chain(context)
    for _ in range(9):
        clock.advance(600)
        run_polls(context)
    name = other.external_id
    notices = {
        "a hint that came before": WebhookNotice(name, None, None, identity="before"),
        "bytes that came before": WebhookNotice(name, clock.now(), None),
    }
    for notice in notices.values():
        provider.notice = notice
        webhooks.take(context, "main", {}, b"{}")
    clock.advance(600)
    notices |= {
        "an old time": WebhookNotice(name, clock.now() - timedelta(hours=2), None),
        "a new hint": WebhookNotice(name, None, None, identity="new"),
        "a new time": WebhookNotice(name, clock.now(), None),
    }

    provider.notice = notices[what]
    webhooks.take(context, "main", {}, b"{}")
    run_polls(context)

    next_poll_at = again(context, order).next_poll_at
    assert next_poll_at is not None
    assert (next_poll_at - clock.now() > timedelta(minutes=6)) is flows


def test_a_hint_about_an_order_that_is_over_outlives_an_answer_to_many_that_leaves_it_out(
    make_context: MakeContext, clock: FakeClock
) -> None:
    """Delivered after all: the money is gone, and nobody else would ask."""
    provider = FakeProvider()
    provider.lookup_limit = 100
    context = make_context(provider)
    placed = receive(context, *(checkout() for _ in range(4)))
    run_chain(context)
    for order in placed:
        provider.says(order.external_id, R.EXPIRED)
    clock.advance(60)
    run_polls(context)
    clock.advance(3600)

    provider.told_at_once = 2
    for order in placed:
        provider.says(order.external_id, R.COMPLETED, charged_mills=6120)
        provider.notice = WebhookNotice(order.external_id, None, None, identity=order.external_id)
        webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    for _ in range(10):
        clock.advance(20)
        run_polls(context)

    after = [again(context, order) for order in placed]
    assert {order.status for order in after} == {S.EXPIRED}
    assert {order.charged_mills for order in after} == {6120}
    assert {order.next_poll_at for order in after} == {None}
