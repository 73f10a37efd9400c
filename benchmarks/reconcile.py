"""Reconciliation: a tick on a small and on a large table, and polls a second end to end."""

import ast
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from pydantic import SecretStr

from benchmarks.baselines import raw
from benchmarks.bench import NORMAL, Bench, add
from benchmarks.results import Goal
from benchmarks.servers import Servers
from benchmarks.stack import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENCE_S,
    Product,
    product,
    simulator,
)
from fulfillment.broker import app
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import reconciliation
from fulfillment.services.context import Context, register_accounts
from fulfillment.settings import AccountSettings, Settings
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from fulfillment.store.schema import is_current
from fulfillment.store.sealing import Seal, generate_key
from schemas.enums import ProviderName
from schemas.messages import POLL_DUE
from schemas.provider import OrderReport, ReportState

#: Orders under way in either table; all others have ended.
UNDER_WAY = 5000
#: In bulk so many times more are asked about: a thousand are over before a rate can be told.
IN_BULK = 10
#: A tick takes milliseconds, and what a disk does beside it as long: so many times more rounds.
_ROUNDS_MORE = 9
#: After a burst, until the last first poll is planned and cannot undo that we make polls due.
SETTLE_S = 4.0

_FILL = """
INSERT INTO orders (external_id, account, fingerprint, catalog_item_id, market_hash_name,
    expected_price_cents, submit_by, status, provider_status, quoted_mills, charged_mills, overdue,
    polls, next_poll_at, sequence, created_at, updated_at)
SELECT 't-' || n, 'main', 'k1:' || md5(n::text), md5((n %% 34500)::text)::uuid::text,
    'AK-47 | Redline (Field-Tested)', 1000 + n %% 5000, at + interval '1 hour',
    CASE WHEN is_open THEN 'accepted' ELSE 'completed' END,
    CASE WHEN is_open THEN 'accepted' ELSE 'completed' END,
    10000, CASE WHEN is_open THEN NULL ELSE 10000 END, false, 1,
    CASE WHEN is_open THEN 'infinity'::timestamptz END, 7, at, at
  FROM (SELECT n, n %% %(every)s = 0 AS is_open, now() - (n || ' seconds')::interval AS at
          FROM generate_series(1, %(rows)s) AS n) AS made
"""


class QuietProvider:
    """Knows every order and has no news: what is left is the cost of our own tables."""

    after_unknown = AfterUnknown.REPLAY
    lookup_limit = 100
    requests_per_purchase = 1

    def reports(self, external_ids: Sequence[str]) -> Mapping[str, OrderReport]:
        return {
            name: OrderReport(name, ReportState.ACCEPTED, raw_status="accepted")
            for name in external_ids
        }

    def close(self) -> None:
        pass


def measure_table(bench: Bench) -> None:
    """Tick with the same number due on a small and on a large table."""
    scale = bench.scale
    sizes = [scale.small_table, scale.large_table]
    if scale.name == "long":
        sizes.insert(1, NORMAL.large_table)
    contexts = {}
    for size in sizes:
        bench.begin(f"a table of {size:,} orders")
        contexts[size] = _context(_filled(bench.servers, size))
    ticks: dict[tuple[int, int], list[float]] = {}
    bench.begin("reconcile ticks")
    for number in range(-1, scale.rounds * _ROUNDS_MORE):  # the first is to warm up
        # In turns from either end: none always comes after the one that leaves most behind.
        for size, context in list(contexts.items())[:: -1 if number % 2 else 1]:
            for count in scale.due:
                spent = _tick(context, bench.servers.database_url(_name(size)), size, count, number)
                if number >= 0:
                    ticks.setdefault((size, count), []).append(spent)
    for context in contexts.values():
        context.close()
    small, large = sizes[0], sizes[-1]
    for count in scale.due:
        bench.record(
            f"tick-{count}", f"reconcile tick, {count:,} due of {large:,} orders", "ms",
            ticks[large, count], f"of {small:,} orders", ticks[small, count],
            Goal(1.25 if count <= 100 else 1.5, is_least=False),
        )  # fmt: skip
    bench.keep("ticks", [[size, count, spent] for (size, count), spent in ticks.items()])


def _name(size: int) -> str:
    return f"bench_orders_{size}"


def _filled(servers: Servers, size: int) -> str:
    """Give the database with a table of this size; made once, then kept in the data directory."""
    url = servers.database_url(_name(size))
    if servers.has_database(_name(size)):
        database = Database(url, pool_size=1)
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT to_regclass('bench_done') IS NOT NULL").fetchone()
        is_usable = is_current(database) and found is not None and found[0]
        database.close()
        if is_usable:
            return url
    servers.fresh_database(_name(size))
    database = Database(url, pool_size=1)
    migrate(database)
    database.close()
    every = max(size // UNDER_WAY, 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL, {"rows": size, "every": every})
        connection.execute("VACUUM ANALYZE")
        connection.execute("CREATE TABLE bench_done ()")
    return url


def _context(url: str) -> Context:
    account = AccountSettings(base_url="http://127.0.0.1:9", client_id=CLIENT_ID,
                              client_secret=SecretStr(CLIENT_SECRET))  # fmt: skip
    settings = Settings(_env_file=None, accounts={"main": account}, poll_min_interval_s=30)
    context = Context(
        settings, Database(url), Seal(f"k1:{generate_key()}"),
        _providers={"main": QuietProvider()},  # type: ignore[dict-item]  # only looks up
    )  # fmt: skip
    register_accounts(context)
    return context


def _tick(context: Context, url: str, size: int, count: int, number: int) -> float:
    """Make `count` orders due, spread over the table; give the ms until all are polled."""
    step = max(size // UNDER_WAY, 1)
    stride = UNDER_WAY // count if size >= UNDER_WAY else 1
    ids = [(place * stride + number % stride + 1) * step for place in range(count)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE orders SET next_poll_at = 'infinity' WHERE next_poll_at < now()")
        made = connection.execute(
            "UPDATE orders SET next_poll_at = now() - interval '1 second' WHERE id = ANY(%s)", [ids]
        )
        due = made.rowcount
    began = time.perf_counter()
    polled = 0
    while polled < due:
        for batch in reconciliation.poll_due(context):
            reconciliation.poll_orders(context, batch["account"], batch["ids"])
            polled += len(batch["ids"])
    return (time.perf_counter() - began) * 1000


def measure_polls(bench: Bench) -> None:
    """Poll one by one (SkinsNode) and in bulk (SkinsBack), by the workers and the beat."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    one, many = bench.scale.polls, bench.scale.polls * IN_BULK
    found: dict[str, list[float]] = {"one": [], "bulk": [], "bare": []}
    for name, provider, count in (
        ("one", ProviderName.SKINSNODE, one),
        ("bulk", ProviderName.SKINSBACK, many),
    ):
        bench.begin(f"polls of {provider}")
        with (
            simulator(bench.servers.data_dir / "logs", provider=provider) as simulated,
            product(bench.servers, broker, simulated, provider=provider) as running,
        ):
            running.burst("p", count)
            time.sleep(SETTLE_S)
            headers = {"x-client-id": CLIENT_ID, "x-client-secret": CLIENT_SECRET}
            _make_due(running)
            _poll_all(running, count)  # learns the charges
            parts: dict[str, list[float]] = {}
            for _ in range(bench.scale.rounds):
                _make_due(running)
                before = running.cpu_s()
                found[name].append(_poll_all(running, count))
                add(parts, running.cpu_ms_since(before, count))
                if name == "one":
                    paths = [f"/v1/orders/p-{place}.stuck" for place in range(count)]
                    found["bare"].append(raw.get_in_threads(simulated.url, headers, paths))
            running.check_books()
        bench.keep_parts(f"a poll of {provider}", parts)
    bench.record(
        "polls", f"{one:,} polls at 20 ms, one by one", "orders/s", found["one"],
        f"httpx.Client in {raw.THREADS} threads", found["bare"], Goal(0.6),
    )  # fmt: skip
    bench.record(
        "polls-bulk", f"{many:,} polls in bulk (SkinsBack)", "orders/s", found["bulk"],
        "the same, one by one", found["bare"], Goal(20),
    )  # fmt: skip


def _make_due(running: Product) -> None:
    running.database.execute("UPDATE orders SET next_poll_at = now()")
    # What that leaves behind is the benchmark's: no poll has to clean it up.
    running.database.execute("VACUUM orders")


def _poll_all(running: Product, count: int) -> float:
    """Have all orders polled by one tick; give how many a second, up to the last answer's end.

    An answer without news writes nothing: the workers' own events tell when they are through.
    """
    # Of two ticks within a second the second claims nothing: here it is to be this one.
    running.database.execute("DELETE FROM leases WHERE name LIKE 'poll:%'")
    asked, began, ended = 0, 0.0, 0.0

    def tick(*_: Any, **__: Any) -> None:
        nonlocal began
        with app.connection_for_write(running.broker.url) as connection:
            began = time.time()
            app.send_task(POLL_DUE, connection=connection)  # as if the beat had just ticked

    def note(event: dict[str, Any]) -> None:
        nonlocal asked, ended
        result = event["result"]
        if "changed" in result and "orders" in result:
            asked += ast.literal_eval(result)["orders"]
            ended = time.time()

    with app.connection_for_read(running.broker.url) as connection:
        receiver = app.events.Receiver(connection, handlers={"task-succeeded": note})
        receiver.on_consume_ready = tick
        events = receiver.consume(limit=None, timeout=PATIENCE_S, wakeup=False)
        while asked < count:
            next(events)
        events.close()
    return count / (ended - began)
