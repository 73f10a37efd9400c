"""The kill switch and the spend cap: what they stop, what goes on, and how it is seen."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from fulfillment.errors import ConfigurationError, InvalidInput, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, operations, submission
from fulfillment.services.context import Context
from fulfillment.store import spending
from fulfillment.store.models import Order
from fulfillment.store.switches import Stop
from fulfillment.web.metrics import DatabaseCollector
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import ENCRYPTION_KEYS, MakeContext
from tests.integration.web_client import ACCOUNT, TWO_ACCOUNTS, serving
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    gather,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    until,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10


def stop(context: Context, account: str | None = "main") -> None:
    brakes.stop(context, account, "suspicious prices", "anna@host")


def resume(context: Context, account: str | None = "main") -> Stop | None:
    return brakes.resume(context, account, "prices are right", "anna@host")


@pytest.mark.parametrize("account", ["main", None])
def test_a_stopped_account_buys_nothing_until_it_is_resumed(
    context: Context, provider: FakeProvider, clock: FakeClock, account: str | None
) -> None:
    stop(context, account)
    order = receive_one(context)
    for _ in range(3):
        run_ticks(context)
        run_chain(context)
        clock.advance(60)
    while_stopped = again(context, order).status, list(provider.reads), list(provider.bodies)

    assert resume(context, account)
    run_sweep(context)

    assert while_stopped == (S.RECEIVED, [], [])
    assert again(context, order).status is S.ACCEPTED


def test_five_hundred_deliveries_undone_in_one_tick_stop_the_account_once(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"stop_at_reversals": 5}, batch_limit=500)
    placed = receive(context, *(checkout() for _ in range(500)))
    run_chain(context)
    for state in (R.COMPLETED, R.REVERSED):
        for order in placed:
            provider.says(order.external_id, state, charged_mills=PRICE_MILLS)
        clock.advance(9000)
        run_polls(context)
    after = receive_one(context)
    run_sweep(context)

    turns = rows(context, "SELECT account, by, reason FROM account_switches")
    assert [(turn["account"], turn["by"]) for turn in turns] == [("main", "reversal watch")]
    assert {again(context, order).status for order in placed} == {S.REVERSED}
    assert again(context, after).status is S.RECEIVED
    assert_invariants(context)

    assert resume(context)
    run_sweep(context)
    assert again(context, after).status is S.ACCEPTED


def test_what_was_gathered_is_not_sent_once_the_account_is_stopped(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = receive(context, *(checkout() for _ in range(3)))
    batch = gather(context)
    assert batch is not None

    stop(context)
    submission.submit_orders(context, batch)
    for _ in range(3):
        clock.advance(30)
        run_sweep(context)
    while_stopped = {again(context, order).status for order in placed}, list(provider.bodies)
    resume(context)
    run_sweep(context)

    assert while_stopped == ({S.RESERVED}, [])
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert_invariants(context)


def test_a_stop_in_the_middle_of_a_batch_lets_no_further_request_out(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    context = make_context(provider, main={"max_submits_in_flight": 1})
    placed = receive(context, *(checkout() for _ in range(4)))

    def stop_at_the_first(_: dict[str, Any]) -> None:
        stop(context)

    provider.on_purchase = stop_at_the_first
    run_chain(context)

    assert len(provider.bodies) == 1
    found = [again(context, order).status for order in placed]
    assert sorted(found) == [S.ACCEPTED, S.RESERVED, S.RESERVED, S.RESERVED]


@pytest.mark.parametrize("policy", AfterUnknown)
@pytest.mark.parametrize("is_made", [True, False])
def test_an_unknown_outcome_of_a_stopped_account_is_looked_up_and_never_posted_again(
    context: Context, provider: FakeProvider, clock: FakeClock, policy: AfterUnknown, is_made: bool
) -> None:
    provider.after_unknown = policy
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=is_made)
    order = receive_one(context)
    run_chain(context)

    stop(context)
    for _ in range(60):
        clock.advance(3)
        run_sweep(context)

    lookups = sum(read.startswith("order") for read in provider.reads)
    assert len(provider.bodies) == 1
    assert again(context, order).status is (S.ACCEPTED if is_made else S.SUBMITTING)
    assert 1 <= lookups <= 12
    assert_invariants(context)


def test_orders_that_the_provider_has_are_followed_to_their_ends(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    run_chain(context)
    stop(context)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    clock.advance(31)
    run_polls(context)

    assert again(context, order).status is S.COMPLETED


def test_orders_of_a_stopped_account_end_by_their_time_of_submission(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    reserved = receive_one(context)
    assert gather(context) is not None
    stop(context)
    waiting = receive_one(context)

    clock.advance(3601)
    run_sweep(context)

    for order in (reserved, waiting):
        assert again(context, order).failure_code == "too_late"
    assert provider.bodies == []
    assert_invariants(context)


def test_every_turn_of_the_switch_is_kept_and_cannot_be_rewritten(context: Context) -> None:
    stop(context)
    stop(context, None)
    assert resume(context, None)
    assert not resume(context, None)

    turns = rows(
        context, "SELECT account, is_stopped, by, reason FROM account_switches ORDER BY id"
    )
    (main,) = brakes.show_accounts(context)

    assert [(t["account"], t["is_stopped"]) for t in turns] == [
        ("main", True),
        ("*", True),
        ("*", False),
    ]
    assert {(t["by"], t["reason"]) for t in turns[:2]} == {("anna@host", "suspicious prices")}
    assert main.stopped_by == "anna@host"
    assert not main.is_stopped_with_all
    with pytest.raises(Exception, match="append-only"):
        rows(context, "DELETE FROM account_switches RETURNING 1")


def test_a_stop_needs_a_reason_and_an_account_that_exists(context: Context) -> None:
    with pytest.raises(InvalidInput):
        brakes.stop(context, "main", "  ", "anna@host")
    with pytest.raises(ConfigurationError):
        brakes.stop(context, "other", "typo", "anna@host")


def test_the_commands_stop_list_and_resume(context: Context, database_url: str) -> None:
    environment = {
        "DATABASE_URL": database_url,
        "ENCRYPTION_KEYS": ENCRYPTION_KEYS,
        "ACCOUNTS__MAIN__CLIENT_ID": "client",
        "ACCOUNTS__MAIN__CLIENT_SECRET": "secret",
        "ACCOUNTS__MAIN__SPEND_CAP_CENTS_PER_HOUR": "5000",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fulfillment.cli", "accounts", *arguments],
            env=dict(os.environ) | {f"FULFILLMENT_{k}": v for k, v in environment.items()},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("pause", "main", "--all", "--reason", "drill").returncode == 2
    first = run("pause", "--all", "--reason", "odd prices")
    second = run("pause", "--all", "--reason", "drill")
    (listed,) = json.loads(run("--json").stdout)
    resumed = run("resume", "--all")
    (after,) = brakes.show_accounts(context)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "replaces" not in first.stderr
    assert "this replaces the pause since " in second.stderr
    assert ": odd prices" in second.stderr
    assert listed["stopReason"] == "drill"
    assert listed["isStoppedWithAll"]
    assert listed["spendCap"] == 5000
    assert datetime.fromisoformat(listed["stoppedAt"]).tzinfo
    assert resumed.returncode == 0
    assert "all accounts resumed; paused since " in resumed.stderr
    assert ": drill" in resumed.stderr
    assert after.stopped_at is None


def test_a_stop_is_seen_in_wallets_and_metrics_and_readiness_does_not_change(
    web_context: Context,
) -> None:
    with serving(web_context) as store:
        before = store.get("/readyz").json()
        brakes.stop(web_context, "second", "drill", "anna@host")
        first, second = store.get("/v1/wallets").json()["wallets"]
        metrics = store.get("/metrics").text

        assert store.get("/readyz").json() == before
        assert first["stoppedAt"] is None
        assert second["stopReason"] == "drill"
        assert 'fulfillment_account_stopped{account="main"} 0.0' in metrics
        assert 'fulfillment_account_stopped{account="second"} 1.0' in metrics
        assert 'fulfillment_invariant_violations{invariant="overcommitted"} 0.0' in metrics


@pytest.fixture
def capped(make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give a context whose account may buy two orders an hour."""
    cap = 2 * PRICE_CENTS + 1
    return make_context(provider, main={"spend_cap_cents_per_hour": cap}, submit_within_s=20_000)


def test_orders_over_the_cap_wait_without_a_deadline_for_funds_and_go_on_when_there_is_room(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = receive(capped, *(checkout() for _ in range(3)))
    run_chain(capped)
    waiting = placed[2]
    shown = view(capped, waiting)
    gauges = operations.gauges(capped)

    for _ in range(11):
        clock.advance(320)
        run_ticks(capped)
    before = again(capped, waiting).status
    clock.advance(100)
    run_ticks(capped)

    assert [again(capped, order).status for order in placed[:2]] == [S.ACCEPTED, S.ACCEPTED]
    assert shown.status is S.AWAITING_FUNDS
    assert "1 cents are left of 1225 an hour within the spend cap" in shown.timeline[-1].note
    assert gauges.capped == {"main": 1}
    assert before is S.AWAITING_FUNDS
    assert again(capped, waiting).status is S.ACCEPTED
    assert_invariants(capped)


def test_no_sliding_hour_sees_more_than_the_cap_however_late_the_provider_takes_an_order(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    taken: list[datetime] = []
    provider.on_purchase = lambda fields: taken.append(clock.now())
    receive(capped, *(checkout() for _ in range(12)))
    held = gather(capped)
    assert held is not None
    clock.advance(3500)  # held for an hour before anything is sent
    submission.submit_orders(capped, held)
    run_sweep(capped)
    for _ in range(30):
        clock.advance(400)
        run_sweep(capped)

    assert len(taken) >= 6
    for start in taken:
        within = [at for at in taken if 0 <= (at - start).total_seconds() < 3600]
        assert len(within) <= 2


def test_a_charge_above_the_price_uses_up_the_cap_from_when_it_is_told(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    dear = receive_one(capped)
    run_chain(capped)
    twice = 2 * PRICE_MILLS
    provider.says(dear.external_id, R.PENDING, charged_mills=twice)
    clock.advance(60)
    run_polls(capped)
    other = receive_one(capped)
    run_chain(capped)

    assert again(capped, dear).charged_mills == twice
    assert again(capped, other).status is S.AWAITING_FUNDS


def test_the_cap_never_ends_an_order_for_want_of_funds(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 0
    receive(capped, *(checkout() for _ in range(4)))
    run_chain(capped)
    clock.advance(890)
    provider.balance_mills = 100 * PRICE_MILLS  # ten seconds before they would have ended
    for seconds in (5, 5, 5, 10, 100, 800, 1000):
        run_sweep(capped)
        clock.advance(seconds)

    found = rows(capped, "SELECT status, count(*) AS n FROM orders GROUP BY status ORDER BY n")
    assert {row["status"]: row["n"] for row in found} == {"accepted": 2, "awaiting_funds": 2}


def test_an_order_that_lacks_funds_after_it_waited_for_the_cap_ends_for_want_of_funds(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive(capped, *(checkout() for _ in range(3)))[2]
    run_chain(capped)
    provider.balance_mills = 0
    for seconds in (10, 10, 880, 30):
        clock.advance(seconds)
        run_sweep(capped)

    assert again(capped, order).failure_code == "insufficient_funds"


def test_a_capped_order_ends_at_its_time_of_submission(
    capped: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    dear = receive_one(capped, expectedPrice=9_000)
    provider.prices[dear.catalog_item_id] = 90_000
    run_chain(capped)
    assert again(capped, dear).status is S.AWAITING_FUNDS

    clock.advance(20_001)
    run_sweep(capped)

    assert again(capped, dear).failure_code == "too_late"


@pytest.fixture
def capped_together(make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give a context whose two accounts may buy two orders an hour between them."""
    cap = 2 * PRICE_CENTS + 1
    return make_context(
        provider,
        **TWO_ACCOUNTS,
        spend_cap_cents_per_hour=cap,
        submit_within_s=20_000,
        routes={"any": ("main", "second")},
    )


def of_two_accounts(context: Context, each: int) -> list[Order]:
    accounts = [name for name in ("main", "second") for _ in range(each)]
    return receive(context, *(checkout(account=name) for name in accounts))


def test_the_cap_of_all_accounts_lets_them_spend_no_more_than_one_would(
    capped_together: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    placed = of_two_accounts(capped_together, 2)
    run_chain(capped_together, "main")
    run_chain(capped_together, "second")
    at_first = [again(capped_together, order).status for order in placed]
    note = view(capped_together, placed[3]).timeline[-1].note
    clock.advance(3500)
    run_ticks(capped_together)
    before_the_hour = len(provider.bodies)
    clock.advance(101)
    run_ticks(capped_together)

    assert at_first == [S.ACCEPTED] * 2 + [S.AWAITING_FUNDS] * 2
    assert "1 cents are left of 1225 an hour within the spend cap of all accounts" in note
    assert before_the_hour == 2
    assert {again(capped_together, order).status for order in placed} == {S.ACCEPTED}
    assert_invariants(capped_together)


def test_two_accounts_that_allocate_at_once_do_not_both_take_the_last_room(
    capped_together: Context, provider: FakeProvider
) -> None:
    of_two_accounts(capped_together, 2)
    with ThreadPoolExecutor(2) as executor:
        with capped_together.database.transaction() as session:
            spending.lock_spending(session)
            flying = [executor.submit(gather, capped_together, name) for name in ("main", "second")]
            locks = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
            until(lambda: rows(capped_together, locks)[0]["n"] == 2)
        for each in flying:
            each.result()

    held = rows(capped_together, "SELECT sum(hold_mills) AS mills FROM attempts")
    assert held == [{"mills": 2 * PRICE_MILLS}]


def test_an_order_with_a_route_goes_on_from_an_accounts_cap_and_waits_for_that_of_all(
    make_context: MakeContext, capped_together: Context, provider: FakeProvider
) -> None:
    receive(capped_together, *(checkout(account="main") for _ in range(2)))
    run_chain(capped_together)
    waiting = receive_one(capped_together, account="any", marketHashName=NAME)
    run_chain(capped_together)
    waits = again(capped_together, waiting)
    own = {"main": {**ACCOUNT, "spend_cap_cents_per_hour": PRICE_CENTS}, "second": ACCOUNT}
    routes = capped_together.settings.routes
    cap = 4 * PRICE_CENTS
    context = make_context(provider, accounts=own, routes=routes, spend_cap_cents_per_hour=cap)
    going_on = receive_one(context, account="any", marketHashName=NAME)
    run_chain(context)
    goes_on = again(context, going_on)

    assert (waits.account, waits.status) == ("main", S.AWAITING_FUNDS)
    assert (goes_on.account, goes_on.status) == ("second", S.QUOTED)


def test_the_cap_of_all_accounts_is_shown_beside_that_of_each(capped_together: Context) -> None:
    of_two_accounts(capped_together, 1)
    run_chain(capped_together, "main")
    views = brakes.show_accounts(capped_together)
    gauges = {family.name: family for family in DatabaseCollector(capped_together).collect()}

    together = gauges["fulfillment_spent_last_hour_by_all_cents"].samples
    assert [(v.spend_cap_of_all, v.spent_last_hour_by_all) for v in views] == [
        (2 * PRICE_CENTS + 1, PRICE_CENTS)
    ] * 2
    assert [view.spent_last_hour for view in views] == [PRICE_CENTS, 0]
    assert [sample.value for sample in together] == [PRICE_CENTS]
