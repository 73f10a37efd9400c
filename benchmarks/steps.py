"""What each step of the chain costs, alone in one process: CPU, statements and transactions.

No broker and no waiting is in it, and CPU time is the process's own, so that it can be measured on
a busy machine. PostgreSQL's CPU is not in it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import psycopg
from pydantic import SecretStr

from benchmarks import books
from benchmarks.bench import Bench
from benchmarks.checkouts import checkout
from benchmarks.stack import CLIENT_ID, CLIENT_SECRET, simulator
from fulfillment.services import catalog, dispatch, funds, intake, reconciliation, submission
from fulfillment.services.context import Context, register_accounts
from fulfillment.settings import AccountSettings, Settings
from fulfillment.store.engine import Database, Session
from fulfillment.store.migrate import migrate
from fulfillment.store.sealing import Seal, generate_key

Cost = tuple[float, int, int]  # CPU ms, statements, transactions


class CountedSession(Session):
    """Counts its statements at its database."""

    def __init__(self, session: Session, database: "Meter") -> None:
        super().__init__(session.connection)
        self._database = database

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Run a statement and count it."""
        self._database.statements += 1
        return super().execute(statement, parameters)

    def rows(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run a statement that gives many rows and count it."""
        self._database.statements += 1
        return super().rows(statement, parameters)


class Meter(Database):
    """Counts what it is asked while a step runs."""

    statements = 0
    transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run a transaction and count it."""
        self.transactions += 1
        with super().transaction() as session:
            yield CountedSession(session, self)

    @contextmanager
    def statement(self) -> Iterator[Session]:
        """Run one statement and count it as the transaction that it is."""
        self.transactions += 1
        with super().statement() as session:
            yield CountedSession(session, self)

    def cost(self, step: Callable[[], object]) -> Cost:
        """Run a step; give what it cost."""
        statements, transactions = self.statements, self.transactions
        began = time.process_time()
        step()
        spent = (time.process_time() - began) * 1000
        return spent, self.statements - statements, self.transactions - transactions


def measure(bench: Bench) -> None:
    """Run chains of several sizes, step by step."""
    bench.begin("the chain's steps")
    found: dict[int, dict[str, list[Cost]]] = {}
    with (
        simulator(bench.servers.data_dir / "logs", latency_s=0) as simulated,
        _context(bench, simulated.url) as context,
    ):
        meter = context.database
        assert isinstance(meter, Meter)
        with psycopg.connect(bench.servers.database_url("bench_steps")) as connection:
            connection.execute("SELECT pg_stat_reset_shared('wal')")
        for number in range(bench.scale.rounds + 1):  # the first is to warm up
            for size in bench.scale.batch_sizes:
                raws = [checkout(f"p-{number}-{size}", n, simulated.items) for n in range(size)]
                for name, cost in _chain(context, meter, raws).items():
                    if number:
                        found.setdefault(size, {}).setdefault(name, []).append(cost)
        address = bench.servers.database_url("bench_steps")
        with psycopg.connect(address) as connection:
            books.check_product(connection, [simulated.ask("GET", "/ledger")])
            bench.keep("storage", _storage(connection))
    bench.keep(
        "steps",
        [
            [size, name, median(c[0] for c in costs), costs[-1][1], costs[-1][2]]
            for size, steps in found.items()
            for name, costs in steps.items()
        ],
    )


def _storage(connection: psycopg.Connection[Any]) -> dict[str, float]:
    """Give bytes an order, by table with its indexes, and of the write-ahead log."""
    tables = connection.execute(
        "SELECT relname, pg_total_relation_size(oid) / (SELECT count(*) FROM orders) "
        "FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace "
        "AND pg_total_relation_size(oid) > 500000 ORDER BY 2 DESC"
    ).fetchall()
    wal = connection.execute(
        "SELECT wal_bytes / (SELECT count(*) FROM orders) FROM pg_stat_wal"
    ).fetchone()
    assert wal is not None
    return {**{str(name): float(size) for name, size in tables}, "WAL": float(wal[0])}


@contextmanager
def _context(bench: Bench, url: str) -> Iterator[Context]:
    account = AccountSettings(
        base_url=url, client_id=CLIENT_ID, client_secret=SecretStr(CLIENT_SECRET)
    )
    settings = Settings(
        _env_file=None,
        accounts={"main": account},
        public_url="http://127.0.0.1:9",
        batch_limit=max(bench.scale.batch_sizes),
    )
    database = Meter(bench.servers.fresh_database("bench_steps"))
    migrate(database)
    context = Context(settings, database, Seal(f"k1:{generate_key()}"))
    register_accounts(context)
    try:
        yield context
    finally:
        context.close()


def _chain(context: Context, meter: Meter, raws: list[dict[str, object]]) -> dict[str, Cost]:
    costs = {"intake": meter.cost(lambda: intake.receive_raw(context, raws))}
    batches = []
    costs["dispatch"] = meter.cost(lambda: batches.append(dispatch.dispatch(context, "main")))
    (batch,) = batches
    assert batch is not None
    for step in (
        catalog.refresh_catalog,
        funds.check_wallet,
        submission.submit_orders,
        reconciliation.schedule_reconciliation,
    ):
        costs[step.__name__] = meter.cost(lambda step=step: step(context, batch))  # type: ignore[misc]
    return costs
