"""The checker of what must always hold: quiet about true histories, loud about wrong ones."""

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from fulfillment.errors import ProviderOutcomeUnknown, ProviderRefused
from fulfillment.services import diagnosis, invariants
from fulfillment.services.context import Context
from fulfillment.store.invariants import INVARIANTS, LOGGED
from fulfillment.store.models import Order
from fulfillment.store.sealing import generate_key
from schemas.provider import ReportState as R
from schemas.tables import OrderRow
from tests.integration.wrong_histories import BOOK, MORE, RIGHT, WRONG_WALLETS
from tests.support import (
    FakeClock,
    FakeProvider,
    assert_invariants,
    checkout,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_ticks,
)


def broken(context: Context) -> dict[str, tuple[str, ...]]:
    return {each.invariant: each.subjects for each in invariants.violations(context)}


def falsify(context: Context, statement: str, **parameters: object) -> None:
    """Write a wrong history, past the triggers that keep logs append-only and ends final."""
    with context.database.transaction() as session:
        session.execute("SET LOCAL session_replication_role = replica")
        session.execute((statement), parameters)


@pytest.fixture
def ends(context: Context, provider: FakeProvider, clock: FakeClock) -> dict[str, Order]:
    """Bring orders to every kind of end and stay, by the ordinary ways."""
    provider.fail_purchase(ProviderRefused("recipient_cannot_trade", "the recipient cannot trade"))
    declined = receive_one(context)
    run_chain(context)
    words = {
        "completed": R.COMPLETED,
        "failed": R.FAILED,
        "sent": R.SENT,
        "pending": R.PENDING,
        "reversed": R.REVERSED,
        "expired": R.EXPIRED,
    }
    placed = dict(zip(words, receive(context, *(checkout() for _ in words)), strict=True))
    run_chain(context)
    for name, order in placed.items():
        provider.says(order.external_id, words[name], charged_mills=6120)
    placed["unknown"] = receive_one(context)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(context)
    for _ in range(2):
        clock.advance(31)
        run_polls(context)
    provider.balance_mills = 0
    placed["waiting"] = receive_one(context)
    run_chain(context)
    provider.prices.clear()
    placed["refused"] = receive_one(context)
    run_chain(context)
    return placed | {"declined": declined}


def test_the_ordinary_ways_break_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock, ends: dict[str, Order]
) -> None:
    assert_invariants(context)

    for _ in range(5):
        clock.advance(40)
        run_ticks(context)
    assert_invariants(context)


#: Wrong histories: what each breaks, for which order, and how it is written. An order's name is
#: put in as `:id`.
WRONG: list[tuple[str, str, str]] = [
    *MORE,
    (
        "final_order_open_hold",
        "completed",
        "UPDATE attempts SET hold_closed_at = NULL, ended_at = now() - interval '1 day' "
        "WHERE order_id = %(id)s",
    ),
    (
        "final_order_open_attempt",
        "failed",
        "UPDATE attempts SET state = 'sending' WHERE order_id = %(id)s",
    ),
    ("under_way_without_hold", "sent", "DELETE FROM attempts WHERE order_id = %(id)s"),
    ("nothing_due", "sent", "UPDATE orders SET next_poll_at = NULL WHERE id = %(id)s"),
    ("nothing_due", "sent", "UPDATE orders SET next_watch_at = NULL WHERE id = %(id)s"),
    ("nothing_due", "waiting", "UPDATE orders SET next_attempt_at = NULL WHERE id = %(id)s"),
    (
        "followed_by_nobody",
        "sent",
        "UPDATE attempts SET strange_since = now() WHERE order_id = %(id)s",
    ),
    (
        "past_its_time",
        "sent",
        "UPDATE orders SET next_poll_at = next_poll_at - interval '1 hour' WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "waiting",
        "UPDATE orders SET submit_by = submit_by - interval '2 hours' WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "unknown",
        "WITH a AS (UPDATE attempts SET unknown_since = now() - interval '1 day' "
        "WHERE order_id = %(id)s) "
        "UPDATE orders SET submit_by = now() - interval '1 day' WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "sent",
        "UPDATE orders SET trade_deadline_at = now() - interval '1 day' WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "pending",
        "WITH e AS (UPDATE order_events SET at = at - interval '2 days' WHERE order_id = %(id)s) "
        "UPDATE orders SET created_at = created_at - interval '2 days' WHERE id = %(id)s",
    ),
    (
        "inbox_waits",
        "completed",
        "INSERT INTO webhook_deliveries "
        "(account, order_id, digest, received_at, next_apply_at, outcome) "
        "VALUES ('main', %(id)s, 'd', now(), now() - interval '1 hour', '')",
    ),
    (
        "not_erased",
        "failed",
        "UPDATE orders SET updated_at = now() - interval '32 days' WHERE id = %(id)s",
    ),
    (
        "several_live_attempts",
        "completed",
        "INSERT INTO attempts "
        "(order_id, account, external_id, state, hold_mills, posts, created_at) "
        "VALUES (%(id)s, 'other', 'x', 'accepted', 1, 1, now())",
    ),
    (
        "delivery_not_watched",
        "completed",
        "UPDATE orders SET next_poll_at = NULL WHERE id = %(id)s",
    ),
    (
        "delivery_not_watched",
        "failed",
        "UPDATE orders SET told_status = 'pending' WHERE id = %(id)s",
    ),
    (
        "log_is_whole",
        "completed",
        "DELETE FROM order_events WHERE order_id = %(id)s AND sequence = 3",
    ),
    ("log_is_whole", "completed", "DELETE FROM order_events WHERE order_id = %(id)s"),
    (
        "log_is_whole",
        "completed",
        "UPDATE order_events SET to_status = 'expired' WHERE order_id = %(id)s AND sequence = 3",
    ),
    (
        "log_is_whole",
        "failed",
        "WITH e AS (INSERT INTO order_events "
        "(order_id, sequence, at, source, from_status, to_status, note, changes) "
        "SELECT id, sequence + 1, now(), 'poll', 'failed', 'completed', '', '{}' "
        "FROM orders WHERE id = %(id)s) "
        "UPDATE orders SET status = 'completed', sequence = sequence + 1 WHERE id = %(id)s",
    ),
    (
        "log_rebuilds_row",
        "completed",
        "UPDATE orders SET charged_mills = charged_mills + 1 WHERE id = %(id)s",
    ),
    ("log_rebuilds_row", "sent", "UPDATE orders SET status = 'pending' WHERE id = %(id)s"),
    ("log_rebuilds_row", "sent", "UPDATE orders SET overdue = true WHERE id = %(id)s"),
    (
        "log_rebuilds_row",
        "refused",
        "UPDATE order_events SET changes = '{}' WHERE order_id = %(id)s AND sequence = 1",
    ),
    (
        "booked_is_charged",
        "completed",
        "UPDATE wallet_entries SET amount_mills = 1 WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "booked_is_charged",
        "reversed",
        f"{BOOK.replace('attempt_id, ', '').replace(', id', '')} 'adjust', -1, now(), '' "
        "FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "booked_is_charged",
        "failed",
        "WITH a AS (UPDATE attempts SET state = 'completed' WHERE order_id = %(id)s), "
        "o AS (UPDATE orders SET charged_mills = 6120 WHERE id = %(id)s) "
        f"{BOOK} 'settle', 50000, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "completed",
        "DELETE FROM wallet_entries WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "money_is_explained",
        "sent",
        "UPDATE wallet_entries SET amount_mills = 1 WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "sent",
        f"{BOOK} 'release', hold_mills, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "completed",
        f"{BOOK} 'refund', hold_mills + 1, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
]


@pytest.mark.parametrize(("invariant", "name", "statement"), WRONG)
def test_a_wrong_history_is_found_with_its_order(
    context: Context, ends: dict[str, Order], invariant: str, name: str, statement: str
) -> None:
    falsify(context, statement, id=ends[name].id)

    assert broken(context)[invariant] == (ends[name].external_id,)


def test_messages_that_nobody_publishes_are_found(
    context: Context, clock: FakeClock, ends: dict[str, Order]
) -> None:
    clock.advance(3600)

    assert set(broken(context)["outbox_waits"]) == {order.external_id for order in ends.values()}


@pytest.mark.parametrize(("invariant", "name", "statement"), RIGHT)
def test_a_right_history_that_looks_like_a_wrong_one_is_no_alarm(
    context: Context, ends: dict[str, Order], invariant: str, name: str, statement: str
) -> None:
    parameters = {"id": ends[name].id} if "%(id)s" in statement else {}
    falsify(context, statement, **parameters)

    assert invariant not in broken(context)


@pytest.mark.parametrize("left", ["order_events", "attempts", "wallet_entries"])
def test_what_is_left_of_an_order_that_is_gone_is_found_and_stays(
    context: Context, clock: FakeClock, ends: dict[str, Order], left: str
) -> None:
    order = ends["sent"]
    for table in {"order_events", "attempts", "wallet_entries", "outbox_messages"} - {left}:
        falsify(context, f"DELETE FROM {table} WHERE order_id = %(id)s", id=order.id)
    falsify(context, "DELETE FROM orders WHERE id = %(id)s", id=order.id)

    assert broken(context)["rows_without_order"] == (f"#{order.id}",)
    for _ in range(2):
        invariants.check(context)
        assert invariants.last_counts(context)["rows_without_order"] == 1
        clock.advance(60)


@pytest.mark.parametrize(("invariant", "statement"), WRONG_WALLETS)
def test_a_wrong_wallet_is_found_with_its_account(
    context: Context, ends: dict[str, Order], invariant: str, statement: str
) -> None:
    falsify(context, statement)

    assert broken(context)[invariant] == ("main",)


def test_every_invariant_has_a_wrong_history() -> None:
    tried = {invariant for invariant, _, _ in WRONG} | {name for name, _ in WRONG_WALLETS}

    assert tried | {"outbox_waits"} == {invariant.name for invariant in INVARIANTS}


def test_the_periodic_check_comes_to_every_order_and_stays_until_it_is_mended(
    context: Context,
    clock: FakeClock,
    ends: dict[str, Order],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invariants, "_SLICE", 2)
    wrong = ends["completed"]  # the oldest: the newest two are not it
    falsify(
        context,
        "UPDATE orders SET charged_mills = charged_mills + 1 WHERE id = %(id)s",
        id=wrong.id,
    )
    counts = []
    with capture_logs() as logs:
        for _ in range(6):
            clock.advance(60)
            invariants.check(context)
            counts.append(invariants.last_counts(context)["log_rebuilds_row"])

    falsify(
        context,
        "UPDATE orders SET charged_mills = charged_mills - 1 WHERE id = %(id)s",
        id=wrong.id,
    )
    clock.advance(60)
    invariants.check(context)

    assert counts == [1] * 6
    assert invariants.last_counts(context)["log_rebuilds_row"] == 0
    told = [each for each in logs if each.get("invariant") == "log_rebuilds_row"]
    assert [each["ids"] for each in told] == [[wrong.external_id]]


def test_the_doctor_names_what_is_broken_and_the_key_that_is_missing(
    context: Context, ends: dict[str, Order]
) -> None:
    falsify(context, "UPDATE orders SET next_poll_at = NULL WHERE id = %(id)s", id=ends["sent"].id)
    invariants.check(context)
    other_keys = {"encryption_keys": SecretStr(f"other:{generate_key()}")}

    checks = diagnosis.examine(context.settings.model_copy(update=other_keys))

    failed = {check.name: check.detail for check in checks if not check.is_ok}
    assert ends["sent"].external_id in failed["invariant nothing_due"]
    assert failed["encryption keys"] == "lacks test"


def test_a_second_beat_checks_nothing_twice(context: Context, ends: dict[str, Order]) -> None:
    falsify(context, "UPDATE orders SET next_poll_at = NULL WHERE id = %(id)s", id=ends["sent"].id)

    assert invariants.check(context)
    assert invariants.check(context) == []
    assert rows(context, "SELECT DISTINCT checked_at FROM invariants")


def test_each_column_of_an_order_is_told_by_its_log_or_known_to_be_none_of_its_business() -> None:
    untold = {
        *("id", "created_at", "updated_at", "fingerprint", "trade_url_sealed", "trade_url_hash"),
        *(
            "next_attempt_at",
            "next_poll_at",
            "polled_at",
            "poll_wanted_at",
            "polls",
            "failed_polls",
            "next_watch_at",
        ),
        *("claim", "claimed_until", "searched_at", "late_words"),
    }
    assert LOGGED.isdisjoint(untold)
    assert untold | LOGGED == set(OrderRow.model_fields)
