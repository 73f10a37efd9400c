"""Intake: every checkout once, whoever sends it how often, and a conflict is told as one."""

from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import CheckoutConflict, InvalidInput
from fulfillment.services import intake
from fulfillment.services.context import Context
from fulfillment.services.intake import Received
from fulfillment.store.sealing import Seal, generate_key
from schemas.enums import OrderStatus as S
from tests.conftest import ENCRYPTION_KEYS, MakeContext
from tests.support import (
    TOKEN,
    TRADE_URL,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    in_threads,
    messages_of,
    read,
    receive,
    receive_one,
    rows,
    run_chain,
    shuffled,
    view,
)


@pytest.fixture
def shop(make_context: MakeContext) -> Context:
    """Give a context with two accounts."""
    return make_context(FakeProvider(), accounts={"main": {}, "second": {}})


def send(context: Context, *raws: Any) -> list[Received]:
    return intake.receive_raw(context, list(raws))


def test_a_checkout_is_stored_as_received_and_due_at_once(context: Context) -> None:
    (result,) = send(context, checkout(externalId="order_1"))

    order = read(context, "order_1")
    assert (result.status, result.is_new, result.error) == (S.RECEIVED, True, None)
    assert (order.status, order.next_attempt_at) == (S.RECEIVED, context.now())
    assert [entry.to for entry in view(context, order).timeline] == [S.RECEIVED]
    assert [message["order"]["status"] for message in messages_of(context, order)] == ["received"]


def test_the_same_checkout_again_is_answered_with_the_order_as_it_is_now(
    context: Context, provider: FakeProvider
) -> None:
    raw = checkout()
    (order,) = receive(context, raw)
    run_chain(context)

    (repeated,) = send(context, raw)

    assert (repeated.status, repeated.is_new, repeated.error) == (S.ACCEPTED, False, None)
    assert len(view(context, order).timeline) == 5
    assert len(rows(context, "SELECT 1 FROM orders")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"catalogItemId": "another"},
        {"expectedPrice": 613},
        {"tradeUrl": TRADE_URL + "X"},
        {"marketHashName": "AK-47 | Redline (Field-Tested)"},
        {"submitBy": "2099-01-01T00:00:00Z"},
        {"account": "second"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_content_under_a_known_id_is_a_conflict_and_changes_nothing(
    shop: Context, change: dict[str, Any]
) -> None:
    raw = checkout()
    (order,) = receive(shop, raw)

    (result,) = send(shop, raw | change)

    assert isinstance(result.error, CheckoutConflict)
    assert TOKEN not in str(result.error)
    assert again(shop, order) == order


@pytest.mark.parametrize("first", [{}, {"account": "main"}])
@pytest.mark.parametrize("second", [{}, {"account": "main"}, {"marketHashName": None}])
def test_what_is_left_out_is_the_same_as_its_default(
    context: Context, first: dict[str, Any], second: dict[str, Any]
) -> None:
    raw = checkout()
    receive(context, raw | first)

    (result,) = send(context, raw | second | {"unknownField": 1})

    assert (result.is_new, result.error) == (False, None)


def test_an_account_that_is_not_configured_is_refused_by_field(context: Context) -> None:
    (result,) = send(context, checkout(account="third"))

    assert isinstance(result.error, InvalidInput)
    assert result.error.field == "account"
    assert "main" in str(result.error)
    assert rows(context, "SELECT 1 FROM orders") == []


@pytest.mark.parametrize("of", ["second", "both"], ids=["account", "route"])
def test_what_was_taken_in_is_known_when_its_account_or_route_is_renamed(
    make_context: MakeContext, provider: FakeProvider, of: str
) -> None:
    one, two = ({"client_id": each, "client_secret": "s"} for each in ("one", "two"))
    before = make_context(
        provider, accounts={"main": one, "second": two}, routes={"both": "main,second"}
    )
    raw = checkout(account=of, marketHashName="AK-47 | Redline (Field-Tested)")
    (order,) = receive(before, raw)
    after = make_context(provider, accounts={"main": one, "third": two}, routes={"all": "main"})

    known, other, new = send(
        after, raw, raw | {"expectedPrice": 1}, raw | {"externalId": "order_new"}
    )

    assert (known.error, known.is_new, known.status) == (None, False, order.status)
    assert [getattr(each.error, "field", None) for each in (other, new)] == ["account", "account"]


def test_one_call_may_hold_the_same_checkout_twice(context: Context) -> None:
    raw = checkout()

    first, second = send(context, raw, raw)

    assert (first.is_new, second.is_new) == (True, False)
    assert (first.error, second.error) == (None, None)
    assert len(rows(context, "SELECT 1 FROM orders")) == 1


def test_of_two_contents_under_one_id_in_one_call_the_first_counts(context: Context) -> None:
    raw = checkout(externalId="order_1")

    first, second = send(context, raw, raw | {"expectedPrice": 999})

    assert first.is_new
    assert isinstance(second.error, CheckoutConflict)
    assert read(context, "order_1").expected_price_cents == raw["expectedPrice"]


def test_a_bad_entry_does_not_fail_the_others_and_answers_keep_their_places(
    context: Context,
) -> None:
    good, other = checkout(), checkout()
    bad = checkout(expectedPrice="612")

    results = send(context, good, bad, None, other, {"externalId": 5})

    assert [result.status for result in results] == [S.RECEIVED, None, None, S.RECEIVED, None]
    assert [result.external_id for result in results] == [
        good["externalId"],
        bad["externalId"],
        None,
        other["externalId"],
        None,
    ]
    assert isinstance(results[1].error, InvalidInput)
    assert results[1].error.field == "expectedPrice"


def test_an_empty_call_is_no_work(context: Context) -> None:
    assert send(context) == []


def test_many_senders_of_one_checkout_make_one_order(context: Context) -> None:
    raw = checkout()

    results = in_threads(20, lambda _: send(context, raw)[0])

    assert sum(result.is_new for result in results) == 1
    assert {result.error for result in results} == {None}
    assert len(rows(context, "SELECT 1 FROM orders")) == 1
    assert len(rows(context, "SELECT 1 FROM order_events")) == 1
    assert len(rows(context, "SELECT 1 FROM outbox_messages")) == 1


def test_of_many_senders_of_other_contents_under_one_id_one_wins(context: Context) -> None:
    raw = checkout()

    results = in_threads(20, lambda i: send(context, raw | {"expectedPrice": 600 + i})[0])

    assert sum(result.is_new for result in results) == 1
    assert sum(isinstance(result.error, CheckoutConflict) for result in results) == 19


def test_calls_that_hold_the_same_checkouts_in_other_orders_do_not_fail_each_other(
    context: Context,
) -> None:
    raws = [checkout() for _ in range(200)]

    answers = in_threads(8, lambda i: send(context, *shuffled(raws, i)))

    assert sum(result.is_new for results in answers for result in results) == len(raws)
    assert {result.error for results in answers for result in results} == {None}


def test_orders_of_one_call_arrive_in_the_order_of_the_call(context: Context) -> None:
    raws = [checkout() for _ in range(50)]

    placed = receive(context, *raws)

    assert [order.id for order in placed] == sorted(order.id for order in placed)


def test_the_time_to_submit_is_an_hour_where_the_store_gives_none(context: Context) -> None:
    assert receive_one(context).submit_by == context.now() + timedelta(hours=1)


def test_a_repetition_later_keeps_the_first_time_to_submit(
    context: Context, clock: FakeClock
) -> None:
    raw = checkout()
    (order,) = receive(context, raw)

    clock.advance(1800)
    (result,) = send(context, raw)

    assert result.error is None
    assert again(context, order).submit_by == order.submit_by


def test_a_checkout_whose_time_is_over_already_is_taken_and_ends_too_late(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context, submitBy="2020-01-01T00:00:00Z")

    run_chain(context)

    assert again(context, order).failure_code == "too_late"
    assert provider.bodies == []


def test_the_farthest_times_can_be_stored_and_read(context: Context) -> None:
    far = receive_one(context, submitBy="9999-12-31T23:59:59Z")
    early = receive_one(context, submitBy="0001-01-01T00:00:00Z")

    assert far.submit_by.year == 9999
    assert early.submit_by.year == 1


def test_the_trade_url_is_stored_sealed_only(context: Context) -> None:
    order = receive_one(context)

    assert order.trade_url_sealed is not None
    assert context.seal.open(order.trade_url_sealed).decode() == TRADE_URL
    everything = (
        "SELECT o::text || e::text || m::text AS t FROM orders o, order_events e, outbox_messages m"
    )
    stored = rows(context, everything)
    assert TOKEN not in str(stored)


def test_a_repetition_is_known_after_the_keys_were_rotated(
    context: Context, make_context: MakeContext, provider: FakeProvider
) -> None:
    raw = checkout()
    receive(context, raw)

    rotated = make_context(provider, encryption_keys=f"new:{generate_key()},{ENCRYPTION_KEYS}")
    same, other = send(rotated, raw, raw | {"expectedPrice": 5})

    assert same.error is None
    assert isinstance(other.error, CheckoutConflict)
    assert isinstance(rotated.seal, Seal)


def test_accounts_with_new_orders_are_named_for_dispatch_once_each(shop: Context) -> None:
    known = checkout()
    receive(shop, known)

    results = send(
        shop, known, checkout(account="second"), checkout(account="second"), checkout(tradeUrl="x")
    )

    assert intake.new_accounts(results) == ["second"]


@pytest.mark.parametrize("text", ["火蛇", "★ Karambit | Doppler", "StatTrak™ AWP"])
def test_names_in_any_script_are_kept(context: Context, text: str) -> None:
    assert receive_one(context, marketHashName=text).market_hash_name == text


def test_an_account_that_no_utf8_can_write_is_refused_by_field_also_of_a_known_order(
    context: Context,
) -> None:
    raw = checkout()
    (order,) = receive(context, raw)

    odd, good = send(context, raw | {"account": "\ud800"}, checkout())

    assert isinstance(odd.error, InvalidInput)
    assert odd.error.field == "account"
    assert (good.status, good.error) == (S.RECEIVED, None)
    assert again(context, order) == order
