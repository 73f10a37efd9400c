"""With many finished orders in the tables, every statement of the pipeline goes by an index.

Each statement that the services run is explained, with its rows counted, and undone before it is
run in earnest; so what a new statement costs at size is found out without a test of its own. The
plan is the one that a connection keeps for it, which knows no values. Left out are the sums of
`/v1/wallets` and `/metrics`, which are over all there is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from fulfillment.services import erasure, invariants, operations, webhooks
from fulfillment.services.context import Context
from fulfillment.store import claims, in_line, spending
from fulfillment.store.engine import Database, Session
from fulfillment.store.invariants import INVARIANTS
from schemas.money import cents_to_mills
from schemas.provider import ReportState, WebhookNotice
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    report,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
)

#: Orders of old times beside the few that something is done about.
MANY = 20_000
#: So many are read from end to end where more than a few rows are expected.
NOT_SO_MANY = 5_000
FEW = 8
#: A statement may look at so many rows for each of the few.
EACH = 40

FILL = """
WITH made AS (
    SELECT n, now() - (n || ' minutes')::interval AS at FROM generate_series(1, %(many)s) AS n
), filled AS (
    INSERT INTO orders (external_id, account, fallbacks, fingerprint, catalog_item_id,
        expected_price_cents, submit_by, status, provider_status, quoted_mills, charged_mills,
        overdue, polls, sequence, completed_at, created_at, updated_at)
    SELECT 'old-' || n, 'main', '[]', 'k1:x', 'item', 1000, at, 'completed', 'completed', 10000,
        10000, false, 1, 3, at, at, at FROM made RETURNING id, external_id, created_at AS at
), attempted AS (
    INSERT INTO attempts (order_id, account, external_id, state, hold_mills, posts, created_at,
        confirmed_at, ended_at, hold_closed_at, absorbed_at)
    SELECT id, 'main', external_id, 'ended', 10000, 1, at, at, at, at, at FROM filled
    RETURNING id, order_id, created_at AS at
), paid AS (
    INSERT INTO wallet_entries (account, order_id, attempt_id, kind, amount_mills, at, reason)
    SELECT 'main', order_id, id, 'settle', 10000, at, '' FROM attempted
), told AS (
    INSERT INTO webhook_deliveries (account, order_id, digest, received_at, applied_at, outcome)
    SELECT 'main', order_id, md5(order_id::text), at, at, 'applied' FROM attempted
)
INSERT INTO order_events (order_id, sequence, at, source, from_status, to_status, note, changes)
SELECT order_id, s, at, 'poll', 'sent', 'completed', '', '{}'
  FROM attempted, generate_series(1, 3) AS s
"""
#: Orders that their customers take their time about, the next poll of each an hour away.
OPEN = """
WITH filled AS (
    INSERT INTO orders (external_id, account, fallbacks, fingerprint, catalog_item_id,
        expected_price_cents, submit_by, status, provider_status, provider_reference, quoted_mills,
        next_poll_at, next_watch_at, overdue, polls, sequence, created_at, updated_at)
    SELECT 'open-' || n, 'main', '[]', 'k1:x', 'item', 1000, %(now)s, 'accepted', 'processing',
        'ref-' || n, 10000, %(now)s + interval '1 hour', %(now)s + interval '1 hour',
        false, 1, 4, %(now)s, %(now)s FROM generate_series(1, %(many)s) AS n
    RETURNING id, external_id
), attempted AS (
    INSERT INTO attempts (order_id, account, external_id, state, hold_mills, booked_mills, posts,
        created_at, confirmed_at, absorbed_at)
    SELECT id, 'main', external_id, 'accepted', 10000, 10000, 1, %(now)s, %(now)s, %(now)s
      FROM filled RETURNING id, order_id
), held AS (
    INSERT INTO wallet_entries (account, order_id, attempt_id, kind, amount_mills, at, reason)
    SELECT 'main', order_id, id, 'hold', 10000, %(now)s, '' FROM attempted
)
INSERT INTO order_events (order_id, sequence, at, source, from_status, to_status, note, changes)
SELECT order_id, s, %(now)s, 'submit', 'submitting', 'accepted', '', '{}'
  FROM attempted, generate_series(1, 4) AS s
"""
LARGE = ("orders", "attempts", "wallet_entries", "webhook_deliveries", "order_events")


@dataclass
class Plans:
    """What was found out about the statements that ran."""

    seen: set[str] = field(default_factory=set)
    scans: list[str] = field(default_factory=list)
    touched: dict[str, int] = field(default_factory=dict)
    loops: int = 0  # how often a part of a plan ran at the most

    def note(self, statement: str, node: Mapping[str, Any]) -> None:
        """Look at one node of a plan, and at those below."""
        self.loops = max(self.loops, node["Actual Loops"])
        table = node.get("Relation Name")
        if table in LARGE:
            if node["Node Type"] == "Seq Scan":
                self.scans.append(f"{table}: {statement}")
            left_out = node.get("Rows Removed by Filter", 0) + node.get(
                "Rows Removed by Index Recheck", 0
            )
            each = node["Actual Rows"] + left_out
            count = round(each * node["Actual Loops"])
            self.touched[statement] = max(self.touched.get(statement, 0), count)
        for below in node.get("Plans", ()):
            self.note(statement, below)


class ExplainingSession(Session):
    """Explains each statement before it runs it."""

    def __init__(self, session: Session, plans: Plans) -> None:
        super().__init__(session.connection)
        self._plans = plans

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        self._explain(statement, parameters)
        return super().execute(statement, parameters)

    def rows(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        self._explain(statement, parameters)
        return super().rows(statement, parameters)

    def _explain(self, statement: str, parameters: Mapping[str, Any] | None) -> None:
        words = " ".join(statement.split())
        if words.startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
            self._plans.seen.add(words)
            self._plans.note(words, self._plan(statement, parameters or {}))

    def _plan(self, statement: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the plan that is kept for a prepared statement: it knows no values."""
        names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
        numbered = re.sub(
            r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement
        ).replace("%%", "%")
        values = [parameters[name] for name in names]
        types = f"({', '.join(map(_type, values))})" if values else ""
        places = f"({', '.join(['%s'] * len(values))})" if values else ""
        cursor = psycopg.ClientCursor(self.connection)
        cursor.execute("SAVEPOINT before")
        cursor.execute(f"PREPARE explained{types} AS {numbered}")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE explained{places}", values)
        ((((plan,),),)) = cursor.fetchall()
        cursor.execute("DEALLOCATE explained")  # psycopg deallocates all after a ROLLBACK
        cursor.execute("ROLLBACK TO SAVEPOINT before")
        return dict(plan["Plan"])


def _type(value: Any) -> str:
    """Give the type under which psycopg sends a value."""
    if isinstance(value, list) and value:
        of = next((_type(each) for each in value if each is not None), "unknown")
        return "text[]" if of == "unknown" else f"{of}[]"
    names = {bool: "boolean", int: "bigint", datetime: "timestamptz", timedelta: "interval"}
    return names.get(type(value), "unknown")


class ExplainingDatabase(Database):
    """The same database, by sessions that explain."""

    def __init__(self, database: Database, plans: Plans) -> None:
        self.engine = database.engine
        self._plans = plans

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield ExplainingSession(session, self._plans)


@pytest.fixture
def plans() -> Plans:
    return Plans()


@pytest.fixture
def crowded(context: Context, plans: Plans) -> Context:
    """Give the context on tables that are full of old times."""
    return _explaining(context, plans, FILL)


@pytest.fixture
def young(context: Context, plans: Plans) -> Context:
    """Give the context on the tables of an installation's first days."""
    return _explaining(context, plans, FILL, many=NOT_SO_MANY)


@pytest.fixture
def busy(context: Context, plans: Plans, clock: FakeClock) -> Context:
    """Give the context on tables that are full of open orders, too."""
    return _explaining(context, plans, FILL, OPEN, now=clock.now())


def _explaining(context: Context, plans: Plans, *fillings: str, **values: Any) -> Context:
    """Give the context on tables filled by these statements; in the wallet is what is expected."""
    balance = context.provider("main").wallet_mills()
    with context.database.transaction() as session:
        for filling in fillings:
            session.execute(filling, {"many": MANY} | values)
        session.execute(
            "INSERT INTO wallets (account, opening_mills, expected_mills) "
            "SELECT 'main', %(balance)s + sum(booked_mills), %(balance)s FROM attempts",
            {"balance": balance},
        )
    with psycopg.connect(
        context.database.engine.url.set(drivername="postgresql").render_as_string(False),
        autocommit=True,
    ) as connection:
        connection.execute("VACUUM ANALYZE")
    return replace(context, database=ExplainingDatabase(context.database, plans))


def test_no_statement_of_the_pipeline_looks_at_what_is_over(
    crowded: Context, plans: Plans, provider: FakeProvider, clock: FakeClock
) -> None:
    _fulfil(crowded, provider, clock)

    assert plans.scans == []
    assert {s: n for s, n in plans.touched.items() if n > EACH * FEW} == {}
    assert len(plans.seen) >= 40


def test_no_statement_of_the_pipeline_looks_at_what_only_waits(
    busy: Context, plans: Plans, provider: FakeProvider, clock: FakeClock
) -> None:
    _fulfil(busy, provider, clock)

    assert plans.scans == []
    assert {s: n for s, n in plans.touched.items() if n > EACH * FEW} == {}


def test_no_statement_of_the_pipeline_reads_a_table_of_some_thousand_orders_from_end_to_end(
    young: Context, plans: Plans, provider: FakeProvider, clock: FakeClock
) -> None:
    _fulfil(young, provider, clock)

    assert plans.scans == []
    assert {s: n for s, n in plans.touched.items() if n > EACH * FEW} == {}


def test_who_shares_out_money_asks_nothing_of_each_order_that_is_not_in_line_for_it(
    crowded: Context, plans: Plans, clock: FakeClock
) -> None:
    receive(crowded, *(checkout() for _ in range(FEW * 10)))

    with crowded.database.transaction() as session:
        assert in_line.waiting_for_funds(session, "main", clock.now()) == []

    assert plans.loops <= FEW


def _fulfil(crowded: Context, provider: FakeProvider, clock: FakeClock) -> None:
    """Do everything about a few orders that is done between a checkout and its end."""
    placed = receive(crowded, *(checkout() for _ in range(FEW)))
    receive(crowded, checkout(expectedPrice=PRICE_CENTS - 1))
    run_chain(crowded)
    with crowded.database.transaction() as session:
        ids = [order.id for order in placed]
        claims.take_over_some(session, ids, "a/wallet", "a/submit", clock.now(), 2)
    for order in placed[:3]:
        said = report(ReportState.SENT, order.external_id)
        provider.notice = WebhookNotice(order.external_id, clock.now(), said)
        webhooks.take(crowded, "main", {}, order.external_id.encode())
    webhooks.apply_deliveries(crowded)
    for order in placed[3:]:
        provider.says(
            order.external_id, ReportState.COMPLETED, charged_mills=cents_to_mills(PRICE_CENTS)
        )
    clock.advance(60)
    run_polls(crowded)
    clock.advance(700)
    run_ticks(crowded)
    run_sweep(crowded)
    operations.page(crowded, limit=FEW)
    erasure.erase(crowded)
    again(crowded, placed[0])


@pytest.mark.parametrize("account", ["main", None])
def test_what_was_spent_within_an_hour_is_summed_up_by_what_was_bought_in_it(
    crowded: Context, plans: Plans, account: str | None
) -> None:
    receive(crowded, *(checkout() for _ in range(FEW)))
    run_chain(crowded)
    plans.touched.clear()
    with crowded.database.transaction() as session:
        since = crowded.now() - timedelta(minutes=1)
        spent = spending.spent_mills(session, account, since, timedelta(minutes=1))

    assert spent == FEW * cents_to_mills(PRICE_CENTS)
    assert plans.scans == []
    assert {s: n for s, n in plans.touched.items() if n > EACH * FEW} == {}


def test_the_checks_of_every_minute_read_no_large_table_as_a_whole(
    crowded: Context, plans: Plans, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of these tables a slice is to be as small a part as it is of those of years.
    monkeypatch.setattr(invariants, "_SLICE", FEW)
    receive(crowded, *(checkout() for _ in range(FEW)))
    run_chain(crowded)
    invariants.check(crowded)  # what is dear is asked now, and not again for an hour
    dear = [scan for scan in plans.scans if "booked_mills" in scan]
    plans.scans.clear()
    plans.seen.clear()
    clock.advance(60)

    invariants.check(crowded)

    assert dear
    assert plans.scans == []
    assert len(plans.seen) >= len(INVARIANTS)
