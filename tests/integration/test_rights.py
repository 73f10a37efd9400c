"""A database's user with too few rights: `doctor` lists them, and the relay repeats nothing."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs

from fulfillment.errors import NotAllowedNow, RightMissing
from fulfillment.messaging import confirming, relay
from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services import brakes, invariants, updates, webhooks
from fulfillment.services.context import Context, register_accounts
from fulfillment.services.erasure import erase
from fulfillment.store import rights
from fulfillment.store.engine import Database
from schemas.enums import OrderStatus as S
from schemas.messages import ORDER_UPDATED
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext, environment_of
from tests.integration.test_cli import run
from tests.integration.test_database_complaints import role
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
)
from tests.unit.rabbitmq import Routing, publisher_to

NAME = "has_some"
RABBITMQ = "amqp://guest:guest@127.0.0.1:9//"


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider) -> Context:
    return make_context(provider, broker_url=RABBITMQ)


@contextmanager
def having(context: Context, *granted: str) -> Iterator[str]:
    """Give the address for a user who has these rights alone."""
    url = context.settings.database_url.get_secret_value()
    with role(url, NAME, "pg_monitor") as found:
        with context.database.transaction() as session:
            for each in (*granted, "USAGE ON ALL SEQUENCES IN SCHEMA public"):
                session.execute(f"GRANT {each} TO {NAME}")
        yield found


@contextmanager
def restricted(context: Context, *granted: str) -> Iterator[Context]:
    with having(context, *granted) as url:
        database = Database(url)
        try:
            yield replace(context, database=database)
        finally:
            database.close()


def needed(*but: str) -> list[str]:
    """Write the rights that are needed as they are granted, without these."""
    found = [f"{right} ON {name}" for name, all_ in rights.NEEDED.items() for right in all_]
    return [each for each in found if each not in but]


def told_by_doctor(context: Context, home: Path, *granted: str) -> str:
    with having(context, *granted) as url:
        environment = environment_of(context, home, RABBITMQ)
        done = run(environment | {"FULFILLMENT_DATABASE_URL": url}, "doctor", "--json")
    found = [each for each in json.loads(done.stdout) if each["name"] == "database rights"]
    return found[0]["detail"] if found else ""


def test_doctor_tells_of_a_right_to_take_out_that_is_lacking(
    context: Context, tmp_path: Path
) -> None:
    told = told_by_doctor(
        context, tmp_path, "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public"
    )

    tables = "leases, outbox_messages, store_bindings, store_queues"
    assert told == f"the database's user lacks DELETE on {tables}; no account was asked"


def test_doctor_tells_of_every_table_that_may_not_be_changed(
    context: Context, tmp_path: Path
) -> None:
    """Webhooks are changed when they are applied, heartbeats and leases are written over."""
    all_but = "SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA public"
    told = told_by_doctor(context, tmp_path, all_but, "UPDATE ON accounts, attempts, wallets")

    tables = "heartbeats, invariants, leases, orders, replays, store_bindings, store_queues"
    assert f"lacks UPDATE on {tables}, webhook_deliveries;" in told


def test_doctor_says_nothing_of_a_user_who_has_what_is_needed(
    context: Context, tmp_path: Path
) -> None:
    assert told_by_doctor(context, tmp_path, *needed()) == ""


def test_the_rights_that_are_asked_for_are_enough_for_all_that_is_done(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Routing(ORDER_UPDATED)
    monkeypatch.setattr(confirming, "time", broker)
    broker.unread = {"store.updates": 5}
    with restricted(context, *needed()) as own:
        register_accounts(own)
        order = receive_one(own)
        run_chain(own)
        run_ticks(own)
        provider.says(order.external_id, R.SENT)
        run_polls(own)
        done = report(R.COMPLETED, order.external_id)
        provider.notice = WebhookNotice(order.external_id, own.now(), done)
        webhooks.take(own, "main", {}, b"x")
        webhooks.apply_deliveries(own)
        brakes.stop(own, "main", "a look", "tests")
        brakes.resume(own, "main", "well", "tests")
        updates.replay(own, own.now() - timedelta(hours=1))
        turning = OutboxRelay(own, threading.Event())
        publisher = publisher_to(broker, ORDER_UPDATED)
        for _ in range(5):
            turning._turn(publisher)
        with pytest.raises(NotAllowedNow):  # none is missing, which it finds by a DELETE
            updates.forget(own)
        clock.advance(timedelta(days=60).total_seconds())
        run_sweep(own)
        invariants.check(own)
        erase(own)

    assert again(context, order).status is S.COMPLETED
    assert broker.heard
    assert rows(context, "SELECT 1 FROM outbox_messages") == []


def test_a_relay_that_may_not_take_out_what_it_published_publishes_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Routing(ORDER_UPDATED)
    monkeypatch.setattr(confirming, "time", broker)
    receive_one(context)
    run_chain(context)
    with restricted(context, *needed("DELETE ON outbox_messages")) as own:
        turning = OutboxRelay(own, threading.Event())
        with pytest.raises(RightMissing, match="a right: DELETE on outbox_messages"):
            turning._turn(publisher_to(broker, ORDER_UPDATED))

    assert broker.heard == []


class Stop(threading.Event):
    """Does not wait, notes how long it was to be, and is set after so many times."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0)
        if len(self.waited) >= self._most:
            self.set()
        return self.is_set()


def run_relay(context: Context, broker: Routing, times: int) -> tuple[list[float], list[str]]:
    """Run a relay until it has waited so often; say how long, and the reasons that it gave."""
    stop = Stop(times)
    connection = mock.MagicMock(supports_heartbeats=True)
    connection.__enter__.return_value = connection
    publisher = publisher_to(broker, ORDER_UPDATED)
    with (
        mock.patch.object(relay, "connect", return_value=connection),
        mock.patch.object(relay, "make_publisher", return_value=publisher),
        capture_logs() as logs,
    ):
        OutboxRelay(context, stop).run()
    return stop.waited, [each["reason"] for each in logs if "reason" in each]


def test_a_relay_without_a_right_says_which_and_waits_longer_each_time(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Routing(ORDER_UPDATED)
    monkeypatch.setattr(confirming, "time", broker)
    receive_one(context)
    run_chain(context)
    with restricted(context, *needed("DELETE ON outbox_messages")) as own:
        waited, reasons = run_relay(own, broker, 7)

    missing = "RightMissing: the database's user lacks a right: DELETE on outbox_messages"
    assert set(reasons) == {missing}
    assert waited == [2, 4, 8, 16, 32, 60, 60]


def test_what_cannot_be_taken_out_for_another_reason_is_told_again_ever_more_seldom(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Routing(ORDER_UPDATED)
    monkeypatch.setattr(confirming, "time", broker)
    receive_one(context)
    run_chain(context)
    with context.database.transaction() as session:
        session.execute(
            "CREATE TRIGGER stays BEFORE DELETE ON outbox_messages "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    try:
        waited, _ = run_relay(context, broker, 3)
    finally:
        with context.database.transaction() as session:
            session.execute("DROP TRIGGER stays ON outbox_messages")

    assert waited == [2, 4, 8]
    assert len(broker.heard) == 3 * len(rows(context, "SELECT 1 FROM outbox_messages"))
