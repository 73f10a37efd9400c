"""A restored database, or another server that lacked the last commits: nothing is bought again."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.errors import ProviderNotReached
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import recovery, watchdog
from fulfillment.services.context import Context, register_accounts
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from fulfillment.store.models import Order
from fulfillment.store.sealing import Seal
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext, MakeSettings, empty_tables
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    checkout,
    entries,
    messages_of,
    path_of,
    receive,
    rows,
    run_chain,
    run_sweep,
    until,
)

ACCOUNT = {
    "provider": "skinsnode",
    "base_url": "http://127.0.0.1:9",
    "client_id": "c",
    "client_secret": "s",
}


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider, backup: FakeProvider) -> Context:
    """Give two accounts and a route over both."""
    made = make_context(
        provider,
        accounts={"main": ACCOUNT, "backup": ACCOUNT},
        routes={"both": ["main", "backup"]},
    )
    made._providers["backup"] = backup
    return made


def lose_everything(context: Context) -> None:
    """Put an empty database in the place of ours."""
    empty_tables(context.database)
    register_accounts(context)
    recovery.doubt(context, timedelta(hours=24))


def again_after_loss(context: Context, event: dict[str, object]) -> Order:
    (order,) = receive(context, event)
    run_chain(context)
    return again(context, order)


@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_a_checkout_that_was_bought_before_the_restore_is_adopted(
    context: Context, provider: FakeProvider, policy: AfterUnknown
) -> None:
    provider.after_unknown = policy
    event = checkout(account="main")
    again_after_loss(context, event)
    lose_everything(context)
    del provider.prices[ITEM]  # we bought the last one

    order = again_after_loss(context, event)

    assert len(provider.bodies) == 1
    assert path_of(context, order) == ["received", "quoted", "reserved", "submitting", "accepted"]
    assert [kind for kind, _ in entries(context, order)] == ["hold"]
    assert attempt_of(context, order).state == "accepted"
    assert_invariants(context)


def test_an_order_that_was_bought_at_a_later_account_is_not_bought_at_the_first(
    context: Context, provider: FakeProvider, backup: FakeProvider
) -> None:
    price = provider.prices.pop(ITEM)
    event = checkout(account="both", marketHashName=NAME)
    (first,) = receive(context, event)
    for account in ("main", "backup"):
        run_chain(context, account)
    bought_at = again(context, first).account
    lose_everything(context)
    provider.prices[ITEM] = price

    order = again_after_loss(context, event)

    assert (bought_at, order.account, order.fallbacks) == ("backup", "backup", ())
    assert (len(provider.bodies), len(backup.bodies)) == (0, 1)
    assert order.status is S.ACCEPTED
    assert_invariants(context)


def test_what_was_not_bought_is_bought_after_one_look_at_each_account(
    context: Context, provider: FakeProvider, backup: FakeProvider
) -> None:
    lose_everything(context)

    order = again_after_loss(context, checkout(account="both", marketHashName=NAME))

    assert order.status is S.ACCEPTED
    assert len(provider.bodies) == 1
    looked = f"order {order.external_id}"
    assert (provider.reads.count(looked), backup.reads) == (1, [looked])


@pytest.mark.parametrize("requests_per_minute", [None, 60])
def test_what_a_lookup_of_many_leaves_out_is_bought_nowhere_before_it_was_asked_for_alone(
    make_context: MakeContext,
    provider: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    requests_per_minute: int | None,
) -> None:
    limited = {**ACCOUNT, "rate_per_minute": requests_per_minute}
    context = make_context(
        provider,
        accounts={"main": limited, "backup": limited},
        routes={"both": ["main", "backup"]},
    )
    context._providers["backup"] = backup
    provider.lookup_limit, provider.told_at_once = 100, 20
    events = [checkout(account="both", marketHashName=NAME) for _ in range(30)]
    for event in events:  # bought before the restore
        provider.says(str(event["externalId"]), R.ACCEPTED)
    fresh = checkout(account="both", marketHashName=NAME)
    lose_everything(context)
    del provider.prices[ITEM]

    placed = receive(context, *events, fresh)
    for _ in range(12):
        run_sweep(context)
        clock.advance(11)

    assert {(again(context, o).account, again(context, o).status) for o in placed[:-1]} == {
        ("main", S.ACCEPTED)
    }
    assert [fresh["externalId"]] == list(backup.orders)
    assert again(context, placed[-1]).status is S.ACCEPTED
    assert_invariants(context)


def test_an_account_that_cannot_be_asked_keeps_the_order_until_it_can(
    context: Context, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    lose_everything(context)
    backup.reads_fail(ProviderNotReached("timeout"))
    order = again_after_loss(context, checkout(account="both", marketHashName=NAME))
    waiting = (order.status, len(provider.bodies))

    backup.reads_fail(None)
    clock.advance(61)
    run_sweep(context)
    run_chain(context)

    assert waiting == (S.RECEIVED, 0)
    assert again(context, order).status is S.ACCEPTED


@pytest.mark.parametrize("status", [S.RESERVED, S.SUBMITTING])
def test_an_order_whose_submit_the_backup_lacks_is_looked_for_before_it_is_sent(
    context: Context, provider: FakeProvider, clock: FakeClock, status: S
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    order = again_after_loss(context, checkout(account="main"))
    # As an older copy of the database has it.
    with context.database.transaction() as session:
        session.execute(
            "UPDATE orders SET status = %(status)s, next_attempt_at = updated_at, "
            "next_poll_at = NULL, provider_status = NULL, claim = NULL, claimed_until = NULL",
            {"status": status.value},
        )
        session.execute(
            "UPDATE attempts SET state = 'reserved', posts = 0, confirmed_at = NULL, "
            "body_sealed = NULL, last_post_at = NULL, unknown_since = NULL"
        )
    recovery.doubt(context, timedelta(hours=24))
    clock.advance(31)

    run_sweep(context)

    assert len(provider.bodies) == 1
    assert again(context, order).status is S.ACCEPTED


def test_no_order_is_ended_as_late_before_it_was_looked_for(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    event = checkout(account="main")
    again_after_loss(context, event)
    lose_everything(context)
    (order,) = receive(context, event)
    clock.advance(2 * 3600)
    ended = watchdog.expire_waiting(context)

    run_chain(context)

    assert ended == []
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1


def test_a_purchase_that_failed_at_the_provider_ends_the_order(
    context: Context, provider: FakeProvider
) -> None:
    event = checkout(account="main")
    order = again_after_loss(context, event)
    provider.says(order.external_id, R.FAILED)
    lose_everything(context)

    assert again_after_loss(context, event).status is S.FAILED
    assert_invariants(context)


def test_an_order_that_was_bought_twice_already_is_brought_to_a_person(
    context: Context, provider: FakeProvider, backup: FakeProvider
) -> None:
    event = checkout(account="both", marketHashName=NAME)
    order = again_after_loss(context, event)
    backup.orders[order.external_id] = provider.orders[order.external_id]
    lose_everything(context)

    order = again_after_loss(context, event)

    assert (order.account, order.status) == ("main", S.ACCEPTED)
    assert "order.needs_review" in [message["type"] for message in messages_of(context, order)]


def test_another_server_in_the_place_of_ours_is_noticed_by_the_next_step(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """A standby that was promoted has another timeline, a dump that was read back another oid."""
    again_after_loss(context, checkout(account="main"))
    known = rows(context, "SELECT DISTINCT server FROM accounts WHERE server IS NOT NULL")
    before = rows(context, "SELECT doubted_until FROM accounts WHERE name = 'main'")
    with context.database.transaction() as session:
        session.execute("UPDATE accounts SET server = '1:00000001:1'")

    order = again_after_loss(context, checkout(account="main"))
    clock.advance(1)
    run_sweep(context)

    after = rows(context, "SELECT DISTINCT server, doubted_until IS NOT NULL AS d FROM accounts")
    assert [row["doubted_until"] for row in before] == [None]
    assert after == [{"server": known[0]["server"], "d": True}]
    assert f"order {order.external_id}" in provider.reads
    assert order.status is S.ACCEPTED


def test_a_server_that_lacks_the_last_commits_is_known_by_its_timeline(
    tmp_path: Path, make_settings: MakeSettings, provider: FakeProvider
) -> None:
    """A copy of the cluster from before the purchase is promoted, as a lagging standby would be."""
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    event = checkout(account="main")
    first = EmbeddedPostgres(tmp_path / "first")
    with context_on(first, make_settings, provider):
        pass  # its tables are made, and its accounts have seen the server
    (original,) = (tmp_path / "first").glob("*/cluster")
    cluster = tmp_path / "second" / original.relative_to(tmp_path / "first")
    copy(original, cluster)
    with context_on(first, make_settings, provider) as context:
        order = again_after_loss(context, event)
    assert order.status is S.ACCEPTED

    with (cluster / "postgresql.auto.conf").open("a") as file:
        file.write("restore_command = 'false'\n")
    (cluster / "recovery.signal").touch()
    with context_on(EmbeddedPostgres(tmp_path / "second"), make_settings, provider) as context:
        order = again_after_loss(context, event)
        assert order.status is S.ACCEPTED
        assert rows(context, "SELECT 1 FROM accounts WHERE doubted_until > now()")

    assert len(provider.bodies) == 1


@contextmanager
def context_on(
    server: EmbeddedPostgres, make_settings: MakeSettings, provider: FakeProvider
) -> Iterator[Context]:
    url = server.start()
    database = Database(url)
    try:
        until(lambda: not is_in_recovery(database))
        migrate(database)
        settings = make_settings(database_url=url)
        seal = Seal(settings.encryption_keys.get_secret_value())
        context = Context(settings, database, seal, _providers={"main": provider})
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
