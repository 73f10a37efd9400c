"""A provider that answers everything but purchases: one goes ahead a pause, nobody is lost."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, operations, outages, purchases, sharing, submission
from fulfillment.services.context import Context
from fulfillment.store import purchases as stored
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext, environment_of
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    available,
    checkout,
    gather,
    receive,
    receive_one,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    submit,
    until,
    view,
)

DOWN = ProviderOutcomeUnknown("HTTP 503", is_outage=True)
SILENT = ProviderOutcomeUnknown("no complete answer (ReadTimeout)")
WISH = ProviderNotReached("HTTP 503", retry_after=timedelta(minutes=10), is_outage=True)


def fail_all(provider: FakeProvider, error: ProviderError = DOWN) -> Callable[[], None]:
    """Let every purchase fail from now on; give what heals it."""

    def refuse(fields: dict[str, Any]) -> None:
        provider.bodies.append(fields["external_id"].encode())
        raise error

    provider.on_purchase = refuse

    def heal() -> None:
        provider.on_purchase = lambda fields: None
        provider.bodies.clear()

    return heal


def pass_time(context: Context, clock: FakeClock, seconds: int, step_s: int = 1) -> None:
    for _ in range(0, seconds, step_s):
        run_ticks(context)
        clock.advance(step_s)


def purchases_of(context: Context) -> dict[str, Any]:
    (row,) = rows(
        context,
        "SELECT purchases_unanswered AS unanswered, purchase_pauses AS pauses, "
        "purchases_paused_until AS until FROM accounts WHERE name = 'main'",
    )
    return row


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        *((policy, DOWN) for policy in AfterUnknown),
        (AfterUnknown.LOOKUP_ONLY, SILENT),
        (AfterUnknown.REPLAY, ProviderDeniesAccount("403")),
    ],
)
def test_an_outage_of_purchases_alone_lets_one_ahead_a_pause_and_loses_none(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    policy: AfterUnknown,
    error: ProviderError,
) -> None:
    provider.after_unknown = policy
    context = make_context(provider, main={"max_submits_in_flight": 2})
    heal = fail_all(provider, error)
    placed = []
    for _ in range(60):
        placed.append(receive_one(context))
        pass_time(context, clock, 5, step_s=5)
    tried = list(provider.bodies)

    heal()
    pass_time(context, clock, 180, step_s=5)

    assert 8 <= len(tried) <= 20
    left = [order for order in placed if order.external_id.encode() not in tried]
    assert {again(context, order).status for order in left} == {S.ACCEPTED}
    if policy is not AfterUnknown.LOOKUP_ONLY:
        assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.orders) == len(provider.bodies)
    assert purchases_of(context) == {"unanswered": 0, "pauses": 0, "until": None}
    assert_invariants(context)


def test_all_else_goes_on_while_purchases_rest(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    followed = receive_one(context)
    run_chain(context)
    provider.says(followed.external_id, R.COMPLETED)
    lost = receive_one(context)
    provider.fail_purchase(DOWN, is_made=True)
    run_chain(context)
    fail_all(provider)
    waiting = receive_one(context)
    shown = set()
    for _ in range(12):
        pass_time(context, clock, 5, step_s=5)
        shown.add(operations.wallets(context)[0].pause_reason)

    assert again(context, followed).status is S.COMPLETED
    assert again(context, lost).status is S.ACCEPTED
    assert again(context, waiting).status in (S.RECEIVED, S.RESERVED, S.SUBMITTING)
    assert "purchases: HTTP 503" in shown <= {None, "purchases: HTTP 503"}
    assert rows(context, "SELECT paused_until FROM accounts") == [{"paused_until": None}]


def test_one_slow_answer_stops_nobody_and_several_in_a_row_do(
    context: Context, provider: FakeProvider
) -> None:
    def buy(error: ProviderError | None) -> tuple[int, bool]:
        if error is not None:
            provider.fail_purchase(error, is_made=True)
        receive_one(context)
        run_chain(context)
        state = purchases_of(context)
        return state["unanswered"], state["until"] is not None

    heard = [buy(error) for error in (SILENT, SILENT, None, SILENT, SILENT, SILENT)]

    assert heard == [(1, False), (2, False), (0, False), (1, False), (2, False), (3, True)]


def test_one_order_that_is_never_answered_is_no_outage(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    for _ in range(50):
        provider.fail_purchase(SILENT)
    receive_one(context)
    pass_time(context, clock, 100, step_s=5)

    assert len(provider.bodies) >= 4
    assert purchases_of(context) == {"unanswered": 1, "pauses": 0, "until": None}


def test_a_late_answer_to_what_was_sent_before_an_outage_mends_nothing(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    provider.on_purchase = lambda fields: void(purchases.fail(context, "main", [DOWN]))

    run_chain(context)

    assert again(context, order).status is S.ACCEPTED
    assert purchases_of(context)["until"] is not None


def test_late_failures_of_what_was_sent_before_an_outage_make_no_further_pauses(
    context: Context, clock: FakeClock
) -> None:
    until = purchases.fail(context, "main", [DOWN])
    for _ in range(5):
        clock.advance(10)
        assert purchases.fail(context, "main", [DOWN, SILENT]) == until

    assert purchases_of(context) == {"unanswered": 11, "pauses": 1, "until": until}


def test_of_all_batches_one_purchase_goes_ahead(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(6)))
    batch = gather(context)
    assert batch is not None
    purchases.fail(context, "main", [DOWN])
    clock.advance(1)
    are_others_done = threading.Event()
    before_the_first_answer = list[int]()

    def arrive(_: dict[str, Any]) -> None:
        if not before_the_first_answer:
            before_the_first_answer.append(len(provider.bodies))
            are_others_done.wait(10)
            before_the_first_answer.append(len(provider.bodies))

    provider.on_purchase = arrive
    mine, others = sharing.share_out(context, batch, is_new=False)
    parts = [mine, *others]
    with ThreadPoolExecutor(len(parts)) as executor:
        flying = [executor.submit(submission.submit_orders, context, part) for part in parts]
        until(lambda: sum(future.done() for future in flying) == len(parts) - 1)
        are_others_done.set()
    for _ in range(3):
        run_sweep(context)

    assert len(parts) == 3
    assert before_the_first_answer == [0, 0]
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}


def test_when_the_one_that_went_ahead_died_another_does(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    purchases.fail(context, "main", [DOWN])
    clock.advance(1)
    assert purchases.go_ahead(context, "main")
    order = receive_one(context)
    run_sweep(context)
    meanwhile = list(provider.bodies)

    clock.advance(context.longest_call("main").total_seconds())
    run_sweep(context)

    assert meanwhile == []
    assert again(context, order).status is S.ACCEPTED


def test_one_whose_time_is_over_goes_ahead_of_nobody(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    late, good = receive(context, checkout(), checkout())
    batch = gather(context)
    assert batch is not None
    purchases.fail(context, "main", [DOWN])
    query = "UPDATE orders SET submit_by = %(at)s WHERE id = %(id)s RETURNING 1"
    clock.advance(1)
    rows(context, query, at=clock.now() - timedelta(seconds=1), id=late.id)

    submission.submit_orders(context, batch)

    assert again(context, late).failure_code == "too_late"
    assert again(context, good).status is S.ACCEPTED


def test_an_order_that_always_fails_keeps_no_other_from_being_bought(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    bad = receive_one(context)

    def fail_one(fields: dict[str, Any]) -> None:
        if fields["external_id"] == bad.external_id:
            raise DOWN

    provider.on_purchase = fail_one
    pass_time(context, clock, 120, step_s=5)
    waits = []
    for _ in range(4):
        order, began = receive_one(context), clock.now()
        while again(context, order).status is not S.ACCEPTED:
            pass_time(context, clock, 1)
        waits.append((clock.now() - began).total_seconds())
        pass_time(context, clock, 20, step_s=5)

    assert waits[0] <= 61
    assert max(waits[1:]) <= 5


def test_an_order_with_a_route_goes_on_while_purchases_rest(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    accounts: dict[str, Any] = {"main": {}, "backup": {}}
    context = make_context(provider, accounts=accounts, routes={"any": "main,backup"})
    second = context._providers["backup"] = FakeProvider()
    order = receive_one(context, account="any", marketHashName=NAME)
    assert gather(context) is not None
    rows(context, "UPDATE orders SET claimed_until = NULL, claim = NULL RETURNING 1")
    purchases.fail(context, "main", [DOWN])

    run_sweep(context)

    assert (again(context, order).status, again(context, order).account) == (S.ACCEPTED, "backup")
    assert (len(provider.orders), len(second.orders)) == (0, 1)
    assert "main: the account is paused; trying backup" in [
        entry.note for entry in view(context, order).timeline
    ]
    assert_invariants(context)


def test_what_waits_for_purchases_ends_at_its_time_and_frees_its_money(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, submit_within_s=60)
    fail_all(provider, ProviderDeniesAccount("403"))
    placed = receive(context, *(checkout() for _ in range(3)))
    pass_time(context, clock, 150, step_s=5)

    assert {again(context, order).failure_code for order in placed} == {"too_late"}
    assert available(context) == provider.balance_mills
    assert_invariants(context)


def void(_: object) -> None:
    pass


@pytest.mark.parametrize("what", ["all", "purchases"])
def test_a_person_ends_the_pause_of_a_provider_that_is_back(
    context: Context, provider: FakeProvider, what: str
) -> None:
    """However far off the date is that it had wished for."""
    wish = timedelta(minutes=10)
    order = receive_one(context)
    if what == "all":
        outages.pause(context, "main", ProviderNotReached("HTTP 503", retry_after=wish))
    else:
        with context.database.transaction() as session:
            stored.pause(session, "main", context.now() + wish, "HTTP 503")
    run_chain(context)
    assert again(context, order).status is S.RECEIVED

    assert brakes.ask_again(context, "main")
    assert not brakes.ask_again(context, "main")

    run_chain(context)
    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)


def test_who_is_asked_again_before_its_date_buys_for_all_at_once(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    """A pause of everything said nothing of its purchases: no single one goes ahead."""
    context = make_context(
        provider,
        accounts={"main": ACCOUNT, "backup": ACCOUNT | {"client_id": "other"}},
        routes={"both": ["main", "backup"]},
    )
    outages.pause(context, "main", WISH)

    assert brakes.ask_again(context, "main")

    assert purchases_of(context) == {"unanswered": 0, "pauses": 0, "until": None}
    first = receive(context, *(checkout(account="main") for _ in range(5)))
    batch = gather(context)
    assert batch is not None
    (later,) = receive(context, checkout(account="both", marketHashName=NAME))
    provider.fail_purchase(SILENT)
    provider.on_purchase = lambda fields: run_sweep(context) if not provider.bodies else None
    submit(context, batch)
    assert len({json.loads(body)["external_id"] for body in provider.bodies}) == 6
    # Which one was answered by silence depends on who came first.
    assert [again(context, order).status for order in (*first, later)].count(S.ACCEPTED) == 5
    assert again(context, later).account == "main"
    assert_invariants(context)


@pytest.mark.parametrize("state", ["received", "awaiting funds"])
def test_orders_that_wait_for_a_wished_date_are_due_once_a_person_ends_the_pause(
    context: Context, provider: FakeProvider, clock: FakeClock, state: str
) -> None:
    order = receive_one(context)
    if state == "awaiting funds":
        provider.balance_mills = 1
        run_chain(context)
        clock.advance(30)
    provider.reads_fail(WISH)
    run_chain(context)
    provider.reads_fail(None)
    provider.balance_mills = 10_000_000
    clock.advance(5)
    waiting = again(context, order)
    assert waiting.next_attempt_at is not None
    assert waiting.next_attempt_at > clock.now() + timedelta(minutes=9)

    assert brakes.ask_again(context, "main")

    assert again(context, order).next_attempt_at == clock.now()
    run_sweep(context)
    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)


def test_what_was_begun_and_did_not_leave_is_due_once_a_person_ends_the_pause(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    wish = timedelta(minutes=10)
    provider.fail_purchase(ProviderNotReached("HTTP 503", retry_after=wish, is_outage=True))
    order = receive_one(context)
    run_chain(context)
    clock.advance(5)

    assert brakes.ask_again(context, "main")
    for _ in range(6):
        clock.advance(10)
        run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert_invariants(context)


def test_the_command_to_resume_ends_a_stop_and_a_pause_at_once(
    context: Context, tmp_path: Path
) -> None:
    outages.pause(context, "main", WISH)
    brakes.stop(context, "main", "drill", "anna@host")

    done = subprocess.run(
        [sys.executable, "-m", "fulfillment.cli", "accounts", "resume", "main"],
        env=environment_of(context, tmp_path, "redis://127.0.0.1:1/0"),
        capture_output=True,
        text=True,
        check=False,
    )

    (after,) = brakes.show_accounts(context)
    assert done.returncode == 0, done.stderr
    assert "main resumed; paused since " in done.stderr
    assert "main: its provider is asked again" in done.stderr
    assert (after.stopped_at, after.paused_until) == (None, None)
