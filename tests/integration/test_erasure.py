"""Trade URLs and sent bodies are erased when an order has been over for long enough, no sooner."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import (
    CheckoutConflict,
    ConfigurationError,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
)
from fulfillment.services import erasure, intake, invariants, webhooks
from fulfillment.services.context import Context
from fulfillment.services.reconciliation import reconcile_now
from fulfillment.store import erasure as stored
from fulfillment.store.models import Order
from fulfillment.store.sealing import generate_key
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import ENCRYPTION_KEYS, MakeContext
from tests.support import (
    TRADE_URL,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    messages_of,
    receive,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
)

DAY = 86_400


def kept(context: Context) -> tuple[int, int]:
    """Count the trade URLs and the bodies that are kept."""
    (row,) = rows(
        context,
        "SELECT (SELECT count(trade_url_sealed) FROM orders) AS urls, "
        "(SELECT count(body_sealed) FROM attempts) AS bodies",
    )
    return row["urls"], row["bodies"]


def failed(
    context: Context, provider: FakeProvider, clock: FakeClock, count: int = 1
) -> list[Order]:
    """Give orders that are over."""
    placed = receive(context, *(checkout() for _ in range(count)))
    run_chain(context)
    for order in placed:
        provider.says(order.external_id, R.FAILED, failure_code="item_unavailable")
    clock.advance(31)
    run_polls(context)
    return placed


def hashed(context: Context) -> set[str]:
    """Name the orders whose trade URL was erased and left its hash."""
    query = "SELECT external_id FROM orders WHERE trade_url_hash IS NOT NULL"
    return {row["external_id"] for row in rows(context, query)}


def test_nothing_is_erased_before_the_true_end_and_all_of_it_after(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    delivered, failed, under_way = receive(context, *(checkout() for _ in range(3)))
    run_chain(context)
    provider.says(delivered.external_id, R.COMPLETED, charged_mills=6120)
    provider.says(failed.external_id, R.FAILED, failure_code="item_unavailable")
    for _ in range(2):
        clock.advance(31)
        run_polls(context)
    counts = []

    for days in (29, 2, 6, 2):
        clock.advance(days * DAY)
        for _ in range(3):
            run_ticks(context)
            clock.advance(31)
        counts.append((erasure.erase(context), kept(context)))

    # The failed one 30 days after its end; the delivered one 30 days after its 8 days of watch.
    assert counts == [(0, (3, 3)), (1, (2, 2)), (0, (2, 2)), (1, (1, 1))]
    assert again(context, under_way).status is S.NEEDS_REVIEW  # a month is long: a person was told


def test_a_keyed_hash_of_the_trade_url_stays_for_audit(
    context: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    provider.prices.clear()
    order = receive_one(context)
    run_chain(context)
    clock.advance(31 * DAY)

    erasure.erase(context)

    (row,) = rows(context, "SELECT trade_url_sealed, trade_url_hash FROM orders")
    assert row["trade_url_sealed"] is None
    assert context.seal.matches(row["trade_url_hash"], TRADE_URL.encode())
    assert not context.seal.matches(row["trade_url_hash"], TRADE_URL.encode() + b"x")
    repeated = checkout(externalId=order.external_id)
    (result,) = intake.receive_raw(context, [repeated])
    assert (result.error, result.is_new) == (None, False)
    assert_invariants(context)


def test_keys_rotate_and_the_old_one_can_go_when_its_orders_are_erased(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    new_key = f"new:{generate_key()}"
    before = make_context(provider)
    old_order = receive_one(before)

    rotated = make_context(provider, encryption_keys=f"{new_key},{ENCRYPTION_KEYS}")
    run_chain(rotated)
    provider.says(old_order.external_id, R.FAILED, failure_code="item_unavailable")
    clock.advance(31)
    run_polls(rotated)
    clock.advance(30 * DAY)
    new_order = receive_one(rotated)
    with rotated.database.transaction() as session:
        in_use = stored.key_ids(session)
    erasure.erase(rotated)
    with rotated.database.transaction() as session:
        left = stored.key_ids(session)

    dropped = make_context(provider, encryption_keys=new_key)
    run_chain(dropped)
    raws = [checkout(externalId=order.external_id) for order in (old_order, new_order)]
    erased, known = intake.receive_raw(dropped, raws)

    assert (in_use, left) == ({"test", "new"}, {"new"})
    assert again(dropped, new_order).status is S.ACCEPTED
    assert known.error is None
    # Nobody can tell any more whether it is the same checkout; it is not bought again.
    assert isinstance(erased.error, CheckoutConflict)


def test_a_key_that_is_lost_too_early_stops_what_needs_it_and_not_the_erasure(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(make_context(provider))
    lost = make_context(provider, encryption_keys=f"new:{generate_key()}")
    (again,) = intake.receive_raw(lost, [checkout(externalId=order.external_id)])
    assert isinstance(again.error, ConfigurationError)

    clock.advance(3601)
    run_ticks(lost)
    clock.advance(31 * DAY)
    assert erasure.erase(lost) == 0  # others may have the key, and keep the hash
    clock.advance(7 * DAY)

    assert erasure.erase(lost) == 1
    assert kept(lost) == (0, 0)


def test_what_another_key_of_the_same_id_sealed_is_left_to_who_has_that_key(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    mine, others = (
        make_context(provider, encryption_keys=f"k1:{generate_key()}") for _ in range(2)
    )
    (order,) = failed(mine, provider, clock)
    clock.advance(31 * DAY)

    assert erasure.erase(others) == 0
    assert erasure.erase(mine) == 1
    assert hashed(mine) == {order.external_id}


def test_what_is_left_to_others_holds_up_nothing_behind_it_and_goes_in_the_end(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(erasure, "_SLICE", 2)
    lost, mine = (make_context(provider, encryption_keys=f"k1:{generate_key()}") for _ in range(2))
    failed(lost, provider, clock, count=3)  # more than one slice, and the oldest
    placed = failed(mine, provider, clock, count=3)
    clock.advance(31 * DAY)

    first = erasure.erase(mine), kept(mine)
    clock.advance(7 * DAY)
    last = erasure.erase(mine), kept(mine)

    assert (first, last) == ((3, (3, 3)), (3, (0, 0)))
    assert hashed(mine) == {order.external_id for order in placed}


@pytest.mark.parametrize("key_id", ["schlüssel", "back\\slash", "\\134"])
def test_a_key_may_be_called_anything(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, key_id: str
) -> None:
    context = make_context(provider, encryption_keys=f"{key_id}:{generate_key()}")
    (order,) = failed(context, provider, clock)
    clock.advance(31 * DAY)

    assert erasure.erase(context) == 1
    assert hashed(context) == {order.external_id}


def pass_days(context: Context, clock: FakeClock, days: int) -> None:
    """Let days go by in which everything due is tried every six hours, polls first.

    The sweep asks for a balance, of which a failure pauses the account for the polls behind it.
    """
    for _ in range(4 * days):
        clock.advance(DAY / 4)
        run_polls(context)
        run_ticks(context)


def alarms(context: Context, order: Order) -> int:
    return sum(message["type"] == NEEDS_REVIEW for message in messages_of(context, order))


@pytest.mark.parametrize(
    "error",
    [
        ProviderDeniesAccount("revoked"),
        ProviderNotReached("HTTP 503", is_outage=True),
        ProviderNotReached("HTTP 503", is_outage=True, retry_after=timedelta(seconds=60)),
    ],
    ids=["denied", "away", "away_until"],
)
def test_an_account_that_never_answers_again_keeps_no_trade_url_of_its_deliveries(
    context: Context, provider: FakeProvider, clock: FakeClock, error: ProviderError
) -> None:
    placed = receive(context, *(checkout() for _ in range(3)))
    run_chain(context)
    for order in placed:
        provider.says(order.external_id, R.COMPLETED, charged_mills=6120)
    for _ in range(2):
        clock.advance(31)
        run_polls(context)
    provider.reads_fail(error)

    pass_days(context, clock, 9)
    watched = {again(context, order).next_poll_at is None for order in placed}
    pass_days(context, clock, 3)
    over = {again(context, order).next_poll_at for order in placed}
    clock.advance(31 * DAY)
    run_ticks(context)

    assert (watched, over) == ({False}, {None})  # two days more than the protection lasts
    assert [alarms(context, order) for order in placed] == [1, 1, 1]
    assert erasure.erase(context) == 3
    assert kept(context) == (0, 0)
    assert_invariants(context)


def test_what_is_asked_about_without_end_is_erased_all_the_same(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """It failed, and its provider has it under way again, for good."""
    (order,) = failed(context, provider, clock)
    clock.advance(60)
    provider.says(order.external_id, R.SENT)
    reconcile_now(context, [order.external_id])
    run_polls(context)
    assert again(context, order).lives_on
    counts = []

    for days in (39, 4):
        clock.advance(days * DAY)
        run_ticks(context)
        broken = {each.invariant for each in invariants.violations(context)}
        assert ("not_erased" in broken) is (days == 4)
        counts.append((erasure.erase(context), kept(context)))
        assert again(context, order).next_poll_at is not None

    assert counts == [(0, (1, 1)), (1, (0, 0))]
    assert_invariants(context)


def told(context: Context) -> list[dict[str, Any]]:
    query = "SELECT digest, outcome, report FROM webhook_deliveries ORDER BY id"
    return rows(context, query)


def take(context: Context, provider: FakeProvider, order: Order, body: bytes) -> webhooks.Verdict:
    """Take a signed webhook that names the recipient."""
    said = report(
        R.FAILED, order.external_id, partner=987654321, failure_message="987654321 said no"
    )
    provider.notice = WebhookNotice(order.external_id, context.now(), said)
    return webhooks.take(context, "main", {}, body).verdict


def test_what_webhooks_told_is_erased_with_its_order_and_replays_are_still_known(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order, other = failed(context, provider, clock, count=2)
    signed_at = clock.now()
    for each in (order, other):
        take(context, provider, each, each.external_id.encode())
    webhooks.apply_deliveries(context)
    before = told(context)
    assert {bool(row["report"]) for row in before} == {True}
    clock.advance(29 * DAY)
    with context.database.transaction() as session:
        session.execute(
            "UPDATE orders SET updated_at = %(now)s WHERE id = %(id)s",
            {"id": other.id, "now": clock.now()},
        )
    clock.advance(2 * DAY)
    take(context, provider, order, b"waits")

    assert erasure.erase(context) == 1
    after = told(context)
    assert [bool(row["report"]) for row in after] == [False, True, True]
    webhooks.apply_deliveries(context)

    assert [bool(row["report"]) for row in told(context)] == [False, True, False]
    assert [row | {"report": None} for row in told(context)[:2]] == [
        row | {"report": None} for row in before
    ]
    assert provider.notice is not None
    provider.notice = replace(provider.notice, signed_at=signed_at)
    again_at = webhooks.take(context, "main", {}, order.external_id.encode())
    assert again_at.verdict is webhooks.Verdict.KNOWN
    assert len(told(context)) == 3


def test_a_hint_that_comes_again_after_the_erasure_only_asks(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    (order,) = failed(context, provider, clock)
    provider.notice = WebhookNotice(order.external_id, None, None, identity="h")
    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    run_polls(context)
    pass_days(context, clock, 3)
    clock.advance(31 * DAY)
    assert erasure.erase(context) == 1

    assert webhooks.take(context, "main", {}, b"{}").verdict is webhooks.Verdict.STORED
    webhooks.apply_deliveries(context)

    assert again(context, order).next_poll_at is not None
    assert [row["report"] for row in told(context)] == [None]
    assert_invariants(context)
