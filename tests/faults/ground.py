"""A whole stack on servers that a test may break; the simulator stays and judges.

The processes see PostgreSQL and the broker through proxies. What the test itself reads and does, it
does beside them.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.devstack.stack import StackOptions
from fulfillment.services import invariants
from fulfillment.services.context import Context, build_context
from tests.acceptance.driver import FINAL, SPEED, Driver, running_stack, until
from tests.faults.proxy import HOST, PostgresMessages, Proxy

#: What the processes log in as. Not a superuser: those are let in where nobody else is.
ROLE = "store"
ENDS = {"completed"}


class Flow(threading.Thread):
    """A store that sends checkouts one by one, each again until it is acknowledged."""

    def __init__(
        self, driver: Driver, count: int, gap_s: float, scenario: str, **changes: Any
    ) -> None:
        super().__init__(name="flow", daemon=True)
        self.acknowledged: list[str] = []
        self.answers: Counter[int] = Counter()
        self.odd: list[str] = []
        self.slowest_s = 0.0
        self._driver = driver
        self._events = [driver.checkout(scenario, **changes) for _ in range(count)]
        self._gap_s = gap_s
        self._is_over = threading.Event()

    @property
    def ids(self) -> list[str]:
        return [str(event["externalId"]) for event in self._events]

    def run(self) -> None:
        for event in self._events:
            while not self._is_over.is_set() and not self._is_taken(event):
                self._is_over.wait(0.2)
            self._is_over.wait(self._gap_s)

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _is_taken(self, event: dict[str, Any]) -> bool:
        began = time.monotonic()
        try:
            answer = self._driver.web.post("/v1/checkouts", json=event)
        except httpx.TransportError:
            self.answers[0] += 1
            return False
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.answers[answer.status_code] += 1
        if answer.status_code not in (200, 202, 503) or "Traceback" in answer.text:
            self.odd.append(f"{answer.status_code} {answer.text[:500]}")
        if answer.is_success:
            self.acknowledged.append(str(event["externalId"]))
        return answer.is_success


@dataclass
class Ground:
    """A running stack, its servers, and the ways to break them."""

    driver: Driver
    postgres: EmbeddedPostgres
    database: Proxy
    redis: EmbeddedRedis | None
    broker: Proxy
    #: Where the broker is reached beside the proxy.
    broker_url: str
    #: RabbitMQ's, where it is ours alone.
    vhost: str
    #: Reads the database beside the proxy.
    context: Context
    address: str
    ids: list[str] = field(default_factory=list)

    @property
    def pids(self) -> dict[str, int]:
        """The stack's processes that run now, by name."""
        return self.driver.stack.processes.pids

    def kill(self, name: str) -> None:
        """Kill a process of the stack, once it runs; it is started again."""
        until(name, lambda: name in self.pids)
        self.driver.stack.processes.kill(name, signal.SIGKILL)

    def sql(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Run a statement as the server's superuser, on a connection of its own."""
        with psycopg.connect(self.address, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, **values: Any) -> Any:
        (row,) = self.sql(query, **values)
        (value,) = row.values()
        return value

    def stop_database(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Stop PostgreSQL in immediate mode; it is started again and recovers."""
        pid = self.postgres.pid
        assert pid is not None, "PostgreSQL does not run"
        os.kill(pid, number)

    def events(self) -> int:
        """Count what has happened to orders so far."""
        return int(self.one("SELECT count(*) FROM order_events"))

    def until_busy(self) -> None:
        """Wait until some more has happened to orders."""
        begun = self.events()
        until("orders under way", lambda: self.events() > begun + 5)

    def recovery_s(self, fault: Callable[[], object], within_s: float = 60.0) -> float:
        """Break something; give after how long a checkout that is sent then is bought."""
        began = time.monotonic()
        fault()
        with self.flow(1) as flow:
            pass
        before = {"", "received", "quoted", "reserved", "submitting"}

        def is_bought() -> bool:
            return self.statuses(flow.ids).get(flow.ids[0], "") not in before

        until("a purchase", is_bought, within_s)
        return time.monotonic() - began

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        rows = self.sql(
            "SELECT external_id, status FROM orders WHERE external_id = ANY(%(ids)s)",
            ids=list(ids),
        )
        return {row["external_id"]: row["status"] for row in rows}

    @contextmanager
    def flow(
        self,
        count: int,
        gap_s: float = 0.02,
        scenario: str = "delivered",
        within_s: float = 90,
        **changes: Any,
    ) -> Iterator[Flow]:
        """Let a store send checkouts beside the block; all are acknowledged when it has ended."""
        flow = Flow(self.driver, count, gap_s, scenario, **changes)
        self.ids += flow.ids
        flow.start()
        try:
            yield flow
            flow.join(within_s)
            assert not flow.is_alive(), f"of {count} only {len(flow.acknowledged)} were taken"
        finally:
            flow.stop()
        assert flow.odd == []
        assert flow.acknowledged == flow.ids

    def send(self, count: int, scenario: str = "delivered", **changes: Any) -> list[str]:
        """Send checkouts at once, to a web process that is up; give their ids."""
        until("web", self._is_web_up)
        events = [self.driver.checkout(scenario, **changes) for _ in range(count)]
        ids = self.driver.send(events)
        self.ids += ids
        return ids

    def until_any(self, status: str, ids: Iterable[str]) -> None:
        wanted = list(ids)
        until(status, lambda: status in self.statuses(wanted).values())

    def assert_settled(self, ends: set[str] = ENDS, within_s: float = 90.0) -> None:
        """Wait until all orders so far have ended, then compare all books."""
        ids = self.ids

        def are_final() -> bool:
            found = self.statuses(ids)
            return len(found) == len(ids) and set(found.values()) <= FINAL

        until(f"the ends of {len(ids)} orders", are_final, within_s)
        until("web", self._is_web_up)
        assert set(self.statuses(ids).values()) <= ends
        self.driver.assert_agreement(ids)
        waiting = "SELECT count(*) FROM outbox_messages"
        until("the store has heard everything", lambda: self.one(waiting) == 0)
        held = "SELECT count(*) FROM attempts WHERE hold_closed_at IS NULL"
        until("no money is held", lambda: self.one(held) == 0)
        self._assert_money()
        found = invariants.violations(self.context)
        assert found == [], found
        logs = self.driver.logs()
        assert [secret for secret in self.driver.secrets() if secret in logs] == []
        # One that died of an error was started anew by the supervisor, and nothing else tells.
        assert "Unrecoverable error" not in logs

    def _is_web_up(self) -> bool:
        try:
            return self.driver.web.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def _assert_money(self) -> None:
        spent = sum(
            purchase["amountCents"] - purchase["refundedCents"]
            for account in self.driver.stack.settings.accounts
            for purchase in self._ledger(account)["purchases"]
        )
        wallets = self.driver.web.get("/v1/wallets").json()["wallets"]
        assert sum(wallet["settled"] - wallet["refunded"] for wallet in wallets) == spent

    def _ledger(self, account: str) -> dict[str, Any]:
        ledger = self.driver.ledger(account)
        charges = [m["externalId"] for m in ledger["wallet"]["movements"] if m["kind"] == "charge"]
        assert len(charges) == len(set(charges)), "charged twice"
        return ledger


@contextmanager
def breakable(
    home: Path,
    broker_url: str = "",
    vhost: str = "",
    *,
    workers: int = 2,
    seed: int = 0,
    **changes: Any,
) -> Iterator[Ground]:
    """Run a stack on a PostgreSQL of its own, and on the AMQP broker or a Redis of its own."""
    options = StackOptions(
        children=("simulator", "web", "worker", "beat", "intake"),
        workers=workers,
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    with ExitStack() as stack:
        postgres = EmbeddedPostgres(home / "servers")
        stack.callback(postgres.stop)
        url = make_url(postgres.start())
        folder = Path(str(url.query["host"]))
        address = (
            f"host={folder} port={url.query['port']} user={url.username} dbname={url.database}"
        )
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN")
            connection.execute(f"ALTER DATABASE {url.database} OWNER TO {ROLE}")
        socket = folder / f".s.PGSQL.{url.query['port']}"
        database = stack.enter_context(Proxy(socket, seed=seed, framer=PostgresMessages))
        redis = None
        if not broker_url:
            redis = EmbeddedRedis(home / "servers")
            stack.callback(redis.stop)
            broker_url = redis.start()
        broker = stack.enter_context(Proxy(_upstream(broker_url), seed=seed))
        driver = stack.enter_context(
            running_stack(
                home / "stack",
                options,
                database_url=SecretStr(
                    f"postgresql://{ROLE}@{HOST}:{database.port}/{url.database}"
                ),
                broker_url=SecretStr(_through(broker, broker_url)),
                **changes,
            )
        )
        direct = driver.stack.settings.model_copy(
            update={"database_url": SecretStr(url.render_as_string(hide_password=False))}
        )
        context = build_context(direct)
        stack.callback(context.close)
        yield Ground(driver, postgres, database, redis, broker, broker_url, vhost, context, address)


def _upstream(broker_url: str) -> int | Path:
    if broker_url.startswith("redis+socket://"):
        return Path(broker_url.removeprefix("redis+socket://"))
    port = make_url(broker_url).port
    assert port is not None
    return port


def _through(proxy: Proxy, broker_url: str) -> str:
    """Give the broker's address by way of the proxy."""
    if broker_url.startswith("redis+socket://"):
        return f"redis://{HOST}:{proxy.port}/0"
    address = make_url(broker_url).set(host=HOST, port=proxy.port)
    return address.render_as_string(hide_password=False)
