"""Another server or database in the place of ours is noticed, and a person is told what is lost."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, diagnosis, merchants, recovery, updates
from fulfillment.services.context import Context, register_accounts
from fulfillment.store import doubts
from fulfillment.store.doubts import Condition
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from fulfillment.store.models import Order
from fulfillment.store.sealing import Seal
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState
from tests.conftest import MakeContext, MakeSettings, empty_tables
from tests.integration.test_recovery import ACCOUNT, again_after_loss, lose_everything, settle
from tests.integration.test_updates import tell_again, told_before
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    messages_of,
    receive,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    until,
)


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


def become_another_server(context: Context) -> None:
    rows(context, "UPDATE accounts SET server = '1:00000001:1' RETURNING 1")


def test_another_server_in_the_place_of_ours_is_noticed_by_the_next_step(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """A standby that was promoted has another timeline, a dump that was read back another oid."""
    again_after_loss(context, checkout(account="main"))
    known = rows(context, "SELECT DISTINCT server FROM accounts WHERE server IS NOT NULL")
    before = rows(context, "SELECT doubted_until FROM accounts WHERE name = 'main'")
    become_another_server(context)

    order = again_after_loss(context, checkout(account="main"))
    is_put_off = order.status is S.RECEIVED
    settle(context, clock)
    run_sweep(context)

    assert is_put_off
    order = again(context, order)
    after = rows(context, "SELECT DISTINCT server, doubted_until IS NOT NULL AS d FROM accounts")
    assert [row["doubted_until"] for row in before] == [None]
    assert after == [{"server": known[0]["server"], "d": True}]
    assert f"order {order.external_id}" in provider.reads
    assert order.status is S.ACCEPTED


def sequences(context: Context, order: Order) -> list[int]:
    return [message["sequence"] for message in messages_of(context, order)]


def test_a_store_that_drops_what_is_not_newer_hears_all_that_follows_a_loss(
    context: Context, clock: FakeClock
) -> None:
    event = checkout(account="main")
    before = messages_of(context, again_after_loss(context, event))
    lose_everything(context)

    order = again_after_loss(context, event)
    settle(context, clock)
    run_sweep(context)
    after = messages_of(context, order)

    assert after[-1]["order"]["status"] == "accepted"
    assert {m["eventId"] for m in before}.isdisjoint(m["eventId"] for m in after)
    told = [m["sequence"] for m in after]
    assert told == sorted(set(told))
    assert told[0] > max(m["sequence"] for m in before)


def test_numbers_grow_when_another_server_is_met_and_again_when_it_is_noted(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """A poll meets it and notes nothing; its clock is ahead of that of the step that notes it."""
    order = again_after_loss(context, checkout(account="main"))
    become_another_server(context)
    provider.says(order.external_id, ReportState.SENT, steam_offer_id="7")
    clock.advance(60)
    run_polls(context)
    met = sequences(context, order)
    clock.jump(-600)
    again_after_loss(context, checkout(account="main"))
    clock.jump(600)
    provider.says(order.external_id, ReportState.COMPLETED, charged_mills=6120)
    clock.advance(60)
    run_polls(context)
    noted = sequences(context, order)[len(met) :]

    assert met == sorted(set(met))
    assert again(context, order).status is S.COMPLETED
    assert min(noted) > max(met) > len(met)


@pytest.mark.parametrize("later_s", [5.0, -600.0, 7200.0])
def test_numbers_grow_with_each_loss_however_soon_it_comes_and_whatever_the_clocks(
    context: Context, provider: FakeProvider, clock: FakeClock, later_s: float
) -> None:
    """After the second one, which nobody has noted yet, a poll brings the end."""
    order = again_after_loss(context, checkout(account="main"))
    become_another_server(context)
    again_after_loss(context, checkout(account="main"))
    provider.says(order.external_id, ReportState.SENT, steam_offer_id="7")
    clock.advance(60)
    run_polls(context)
    clock.jump(later_s)
    become_another_server(context)
    provider.says(order.external_id, ReportState.COMPLETED, charged_mills=6120)
    clock.advance(660)
    run_polls(context)

    assert again(context, order).status is S.COMPLETED
    told = sequences(context, order)
    assert told == sorted(set(told))


def test_what_was_told_before_and_after_a_loss_is_told_again_byte_for_byte(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = again_after_loss(context, checkout(account="main"))
    with context.database.transaction() as session:
        doubts.doubt(session, clock.now(), clock.now() + timedelta(hours=1))
    provider.says(order.external_id, ReportState.COMPLETED, charged_mills=6120)
    clock.advance(60)
    run_polls(context)
    updates.replay(context, order.created_at)

    assert again(context, order).status is S.COMPLETED
    assert tell_again(context) == told_before(context)[order.id]


def test_an_account_that_is_newer_than_the_backup_is_doubted_with_the_others(
    make_context: MakeContext, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    backup.after_unknown = AfterUnknown.LOOKUP_ONLY
    context = make_context(provider, accounts={"main": ACCOUNT, "backup": ACCOUNT})
    context._providers["backup"] = backup
    event = checkout(account="backup")
    receive(context, event)
    run_chain(context, "backup")
    empty_tables(context.database)  # as the backup has it: `backup` is not configured yet
    register_accounts(context, ["main"])
    become_another_server(context)

    register_accounts(context)
    (order,) = receive(context, event)
    settle(context, clock)
    run_sweep(context)

    assert len(backup.bodies) == 1
    assert again(context, order).status is S.ACCEPTED


def test_an_account_that_is_added_while_others_are_doubted_is_doubted_as_long(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, accounts={"main": ACCOUNT, "backup": ACCOUNT})
    rows(context, "DELETE FROM accounts WHERE name = 'backup' RETURNING 1")
    with context.database.transaction() as session:
        doubts.doubt(session, clock.now(), clock.now() + timedelta(hours=24))
    clock.advance(60)

    register_accounts(context)

    known = rows(context, "SELECT DISTINCT doubted_since, doubted_until FROM accounts")
    assert len(known) == 1


def test_a_doubt_that_is_said_before_any_process_ran_holds(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    event = checkout(account="main")
    again_after_loss(context, event)
    empty_tables(context.database)
    recovery.doubt(context, timedelta(hours=24))

    again_after_loss(context, event)
    settle(context, clock)
    run_sweep(context)

    assert len(provider.bodies) == 1


def test_who_finds_that_another_noticed_the_server_first_doubts_as_well(
    context: Context, clock: FakeClock
) -> None:
    become_another_server(context)
    seen: list[Condition] = []

    def look() -> None:
        with context.database.transaction() as session:
            seen.append(doubts.condition(session, "main", clock.now()))

    with context.database.transaction() as session:
        first = doubts.condition(session, "main", clock.now())
        second = threading.Thread(target=look)
        second.start()
        until(lambda: bool(waiting_for_locks(context)))
    second.join()

    assert first.doubt is not None
    assert first.doubt.since == clock.now()
    assert seen[0].doubt == first.doubt


def waiting_for_locks(context: Context) -> list[dict[str, Any]]:
    return rows(context, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


def test_a_person_is_told_that_stops_may_be_missing(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider)
    assert "database in doubt" not in {c.name for c in diagnosis.examine(context.settings)}
    become_another_server(context)

    with capture_logs() as logs:
        run_sweep(context)
        run_sweep(context)

    told = [line for line in logs if line["event"] == "database.is_another"]
    assert [(line["log_level"], line["act"]) for line in told] == [("error", doubts.ACT)]
    assert "stops that were made after the backup are missing" in doubts.ACT
    (check,) = [c for c in diagnosis.examine(context.settings) if c.name == "database in doubt"]
    assert check.detail.endswith(doubts.ACT)
    (view,) = brakes.show_accounts(context)
    assert (view.doubted_since, view.doubted_until) == (
        clock.now(),
        clock.now() + doubts.DOUBTED_FOR,
    )


def test_a_doubt_that_is_over_is_told_of_no_more(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider)
    recovery.doubt(context, timedelta(hours=1))
    clock.advance(3600)

    (view,) = brakes.show_accounts(context)

    assert view.doubted_since is None


@pytest.fixture
def former(make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give the account as its settings had it when the order was bought, and when it was saved."""
    return make_context(provider, accounts={"main": ACCOUNT})


@pytest.fixture
def changed(make_context: MakeContext, former: Context) -> tuple[Context, FakeProvider]:
    """Give the account as another merchant's, on the database of a backup."""
    become_another_server(former)
    other = FakeProvider()
    return make_context(other, accounts={"main": {**ACCOUNT, "client_id": "another"}}), other


def test_an_order_of_an_account_that_was_changed_after_the_backup_waits_for_a_person(
    former: Context, provider: FakeProvider, make_context: MakeContext, clock: FakeClock
) -> None:
    event = checkout(account="main")
    again_after_loss(former, event)
    empty_tables(former.database)  # as the backup has it: the account is there, the order is not
    register_accounts(former)
    become_another_server(former)
    other = FakeProvider()
    after = make_context(other, accounts={"main": {**ACCOUNT, "client_id": "another"}})
    (order,) = receive(after, event)
    settle(after, clock)

    with capture_logs() as logs:
        for _ in range(3):
            run_sweep(after)
            clock.advance(61)

    assert (len(provider.bodies), other.bodies) == (1, [])
    assert again(after, order).status is S.RECEIVED
    (told, *_) = [line for line in logs if line["event"] == "order.not_searchable"]
    assert "CLIENT_ID of the account main changed" in told["orders"][order.external_id]
    checks = {c.name: c for c in diagnosis.examine(after.settings)}
    assert not checks["orders of main in doubt"].is_ok
    back = make_context(provider, accounts={"main": ACCOUNT})
    run_sweep(back)
    assert len(provider.bodies) == 1
    assert again(back, order).status is S.ACCEPTED


def test_an_account_that_a_person_knows_to_be_the_same_goes_on(
    changed: tuple[Context, FakeProvider], clock: FakeClock
) -> None:
    context, other = changed
    (order,) = receive(context, checkout(account="main"))
    settle(context, clock)
    run_sweep(context)
    waited = other.bodies == []

    merchants.is_same(context, "main", "they renamed our client id", "me")
    clock.advance(61)
    run_sweep(context)

    assert waited
    assert again(context, order).status is S.ACCEPTED


def test_an_account_that_was_changed_before_the_backup_is_asked_as_it_is(
    former: Context, make_context: MakeContext, clock: FakeClock
) -> None:
    other = FakeProvider()
    after = make_context(other, accounts={"main": {**ACCOUNT, "client_id": "another"}})
    clock.advance(60)
    become_another_server(after)
    run_sweep(after)
    (order,) = receive(after, checkout(account="main"))
    settle(after, clock)

    run_sweep(after)

    assert again(after, order).status is S.ACCEPTED


def test_a_server_that_lacks_the_last_commits_is_known_by_its_timeline(
    tmp_path: Path, make_settings: MakeSettings, provider: FakeProvider, clock: FakeClock
) -> None:
    """A copy of the cluster from before the purchase is promoted, as a lagging standby would be."""
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    event = checkout(account="main")
    first = EmbeddedPostgres(tmp_path / "first")
    with context_on(first, make_settings, provider, clock):
        pass  # its tables are made, and its accounts have seen the server
    (original,) = (tmp_path / "first").glob("*/cluster")
    cluster = tmp_path / "second" / original.relative_to(tmp_path / "first")
    copy(original, cluster)
    with context_on(first, make_settings, provider, clock) as context:
        order = again_after_loss(context, event)
    assert order.status is S.ACCEPTED

    with (cluster / "postgresql.auto.conf").open("a") as file:
        file.write("restore_command = 'false'\n")
    (cluster / "recovery.signal").touch()
    with context_on(
        EmbeddedPostgres(tmp_path / "second"), make_settings, provider, clock
    ) as context:
        order = again_after_loss(context, event)
        settle(context, clock)
        run_sweep(context)
        assert again(context, order).status is S.ACCEPTED
        assert rows(context, "SELECT 1 FROM accounts WHERE doubted_until > now()")

    assert len(provider.bodies) == 1


@contextmanager
def context_on(
    server: EmbeddedPostgres, make_settings: MakeSettings, provider: FakeProvider, clock: FakeClock
) -> Iterator[Context]:
    url = server.start()
    database = Database(url)
    try:
        until(lambda: not is_in_recovery(database))
        migrate(database)
        settings = make_settings(database_url=url)
        seal = Seal(settings.encryption_keys.get_secret_value())
        context = Context(settings, database, seal, clock, _providers={"main": provider})
        register_accounts(context)
        yield context
    finally:
        database.close()
        server.stop()


def is_in_recovery(database: Database) -> bool:
    with database.transaction() as session:
        return bool(session.scalar("SELECT pg_is_in_recovery()"))


def copy(cluster: Path, to: Path) -> None:
    """Copy a cluster that is at rest, with its owner."""
    shutil.copytree(cluster, to, ignore_dangling_symlinks=True)
    owner = cluster.stat()
    for path in (to, *to.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
