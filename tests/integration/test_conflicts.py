"""The database undoes a transaction for another one's sake: it is done again, whole."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy.pool import QueuePool

from fulfillment.errors import ServerUnreachable, TransactionConflict
from fulfillment.services import operations
from fulfillment.services.context import Context
from fulfillment.store import orders
from fulfillment.store.engine import Database, repeated
from schemas.enums import OrderStatus as S
from tests.support import (
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    in_threads,
    receive,
    receive_one,
    run_chain,
    run_polls,
    run_ticks,
)

#: Tables that every step writes.
WRITTEN = ("orders", "order_events", "attempts", "wallet_entries", "outbox_messages", "accounts")


@contextmanager
def refusing(database: Database, sqlstate: str, every: int) -> Iterator[None]:
    """Have the database undo every so manieth writing statement with this SQLSTATE."""
    with database.transaction() as session:
        session.execute("CREATE SEQUENCE conflicts")
        session.execute(
            f"""
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF nextval('conflicts') % {every} = 0 THEN
                        RAISE EXCEPTION 'injected' USING ERRCODE = '{sqlstate}';
                    END IF;
                    RETURN NULL;
                END $$
                """
        )
        for table in WRITTEN:
            session.execute(
                f"CREATE TRIGGER refuse AFTER INSERT OR UPDATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
            )
    try:
        yield
    finally:
        with database.transaction() as session:
            written = session.scalar("SELECT last_value FROM conflicts")
            assert written >= every, "nothing was undone"
            session.execute("DROP FUNCTION refuse CASCADE")
            session.execute("DROP SEQUENCE conflicts")


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_orders_are_bought_once_while_every_17th_write_is_undone(
    context: Context, provider: FakeProvider, sqlstate: str
) -> None:
    with refusing(context.database, sqlstate, 17):
        placed = receive(context, *(checkout() for _ in range(6)))
        run_chain(context)
        run_ticks(context)
        run_polls(context)

    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(provider.bodies) == len(placed)
    assert_invariants(context)


def test_a_transaction_that_is_undone_every_time_is_given_up_and_nothing_of_it_is_kept(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)

    with refusing(context.database, "40001", 1), pytest.raises(TransactionConflict):
        run_chain(context)

    assert again(context, order).status is S.RECEIVED
    assert provider.reads == []


def test_of_two_that_lock_each_other_out_both_come_through(context: Context) -> None:
    one, other = receive(context, checkout(), checkout())
    both_locked = threading.Barrier(2)
    tries: list[int] = []

    @repeated
    def lock(place: int) -> None:
        tries.append(place)
        pair = [one, other] if place else [other, one]
        with context.database.transaction() as session:
            orders.lock(session, [pair[0].id])
            if len(tries) <= 2:
                both_locked.wait(10)
            orders.lock(session, [pair[1].id])

    in_threads(2, lock)

    # The one that was undone tries again, and may meet the other once more.
    assert set(tries) == {0, 1}
    assert len(tries) > 2


CANNOT = {
    "read only": "SET TRANSACTION READ ONLY; DELETE FROM heartbeats",
    "a statement takes too long": "SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)",
    "a lock takes too long": "SET LOCAL lock_timeout = 1; LOCK TABLE leases",
}


@pytest.mark.parametrize("statements", CANNOT.values(), ids=CANNOT)
def test_a_database_that_cannot_do_its_work_now_is_one_that_is_away(
    context: Context, statements: str
) -> None:
    def act() -> None:
        with context.database.transaction() as session:
            for statement in statements.split("; "):
                session.execute(statement)

    with context.database.transaction() as holder:
        holder.execute("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ServerUnreachable) as told:
            act()

    assert not isinstance(told.value, TransactionConflict)
    assert operations.wallets(context)


def test_a_process_that_has_no_connection_left_says_so_and_loses_nothing(
    context: Context, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7: whoever has to wait too long for a connection is told as if the database were away."""
    full = Database(context.settings.database_url.get_secret_value(), pool_size=1)
    try:
        pool = full.engine.pool
        assert isinstance(pool, QueuePool)
        monkeypatch.setattr(pool, "_max_overflow", 0)
        monkeypatch.setattr(pool, "_timeout", 0.05)
        order = receive_one(context)
        tight = replace(context, database=full)
        with full.transaction(), pytest.raises(ServerUnreachable) as told:
            run_chain(tight)

        assert "password" not in str(told.value)
        assert again(context, order).status is S.RECEIVED
        run_chain(tight)
        assert again(context, order).status is S.ACCEPTED
        assert len(provider.bodies) == 1
    finally:
        full.close()
