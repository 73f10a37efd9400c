"""One running product with its provider, and the baselines' processes beside it.

The provider is a simulator in a process of its own that answers after `latency_s`. Orders are of
the kind that is accepted and never moved on, and the first poll is an hour away, so that nothing
but the work measured goes on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from pydantic import SecretStr

from benchmarks import books, machine
from benchmarks.baselines.work import SCHEMA
from benchmarks.checkouts import checkout
from benchmarks.servers import HOST, Broker, Servers
from fulfillment.devstack.configuration import claim_port
from fulfillment.devstack.processes import Child, ProcessGroup, launch_command
from fulfillment.devstack.stack import Stack, StackOptions
from fulfillment.settings import DEFAULT_ACCOUNT, AccountSettings, Settings
from fulfillment.simulator.options import path_of
from schemas.enums import ProviderName

ROOT = Path(__file__).parents[1]
CLIENT_ID, CLIENT_SECRET = "bench", "bench-secret"
#: The default of 64 is for many accounts, each of whose chains is to be quick.
BATCH_LIMIT = 256
PATIENCE_S = 180.0
BALANCE_CENTS = 10**12
RATE_PER_MINUTE = 1_000_000
CHUNK = 250  # checkouts in one HTTP request of a burst
ALL = ("web", "worker", "beat", "intake")


def until(condition: Callable[[], object], what: str, every_s: float = 0.02) -> float:
    """Await a condition; give the time when it was seen to hold."""
    deadline = time.time() + PATIENCE_S
    while not condition():
        if time.time() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(every_s)
    return time.time()


class Simulator:
    """The provider and its side door."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self._http = httpx.Client(base_url=f"{url}/_sim", timeout=120, trust_env=False)
        self.items: list[dict[str, Any]] = []

    def prepare(self, latency_s: float) -> None:
        """Make the items never sell out; answer after so long, as often as asked."""
        limit = {"requests_per_minute": 0}
        self.ask("POST", "/options", latency_s=latency_s, reusable_items=True, **limit)
        self.items = self.ask("GET", "/items?limit=2000")["items"]

    def ask(self, method: str, path: str, **content: Any) -> Any:
        return self._http.request(method, path, json=content or None).raise_for_status().json()

    def close(self) -> None:
        self._http.close()

    def requests(self) -> int:
        """Count the requests to the provider's API so far."""
        return sum(self.ask("GET", "/ledger")["requests"].values())


@contextmanager
def simulator(
    logs: Path, *, provider: str = "skinsnode", items: int = 2000, latency_s: float = 0.02
) -> Iterator[Simulator]:
    """Run a provider with a wallet that never empties and items that never sell out."""
    claims = ExitStack()
    port = claim_port(claims, HOST, 0, "port", is_fixed=False)
    options = {"--provider": provider, "--port": port, "--items": items}
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "fulfillment.cli", "simulator", *words]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FULFILLMENT_SIMULATOR_CLIENT_ID": CLIENT_ID,
        "FULFILLMENT_SIMULATOR_CLIENT_SECRET": CLIENT_SECRET,
    }
    group = ProcessGroup(logs)
    try:
        group.start(Child("simulator", [*command, "--balance-cents", str(BALANCE_CENTS)], env))
        running = Simulator(f"http://{HOST}:{port}", group.pids["simulator"])
        until(lambda: _is_up(running), "the simulator answers")
        running.prepare(latency_s)
        yield running
        running.close()
    finally:
        group.stop()
        claims.close()


def _is_up(running: Simulator) -> bool:
    try:
        return bool(running.ask("GET", "/healthz"))
    except httpx.HTTPError:
        return False


class Product:
    """The product as `fulfillment up` runs it, driven as a store would."""

    def __init__(
        self, stack: Stack, simulators: Mapping[str, Simulator], servers: Servers, broker: Broker
    ) -> None:
        self.stack = stack
        self.simulators = simulators
        self.servers = servers
        self.broker = broker
        self.database_url = servers.database_url("bench_product")
        self.database = psycopg.connect(self.database_url, autocommit=True)
        token = stack.settings.api_token.get_secret_value()
        self.http = httpx.Client(
            base_url=stack.web_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            trust_env=False,
        )

    @property
    def simulator(self) -> Simulator:
        """The provider of the account `main`."""
        return self.simulators[DEFAULT_ACCOUNT]

    def close(self) -> None:
        self.http.close()
        self.database.close()

    def count(self, query: str, *values: Any) -> int:
        """Run a query that gives one number."""
        row = self.database.execute(query.encode(), values).fetchone()
        assert row is not None
        return int(row[0] or 0)

    def send(self, prefix: str, count: int) -> None:
        """Take checkouts in by HTTP, in batches, one account's after another's."""
        for number, (account, simulated) in enumerate(self.simulators.items()):
            places = range(number, count, len(self.simulators))
            events = [checkout(prefix, place, simulated.items) for place in places]
            self._post([event | {"account": account} for event in events])

    def _post(self, events: list[dict[str, Any]]) -> None:
        for start in range(0, len(events), CHUNK):
            content = {"checkouts": events[start : start + CHUNK]}
            answer = self.http.post("/v1/checkouts/batch", json=content).raise_for_status()
            refused = [entry for entry in answer.json()["results"] if "error" in entry]
            if refused:
                raise RuntimeError(f"{len(refused)} checkouts refused, the first: {refused[0]}")

    def burst(self, prefix: str, count: int) -> float:
        """Send checkouts at once; give the seconds until the last is accepted."""
        first = self.count("SELECT max(id) FROM attempts")
        began = time.time()
        self.send(prefix, count)
        query = "SELECT count(*) FROM attempts WHERE id > %s AND confirmed_at IS NOT NULL"
        return until(lambda: self.count(query, first) >= count, f"{prefix} accepted") - began

    def cpu_s(self) -> dict[str, float]:
        """Give the CPU seconds used so far, by part."""
        parts = {"postgres": self.servers.postgres_pid, self.broker.name: self.broker.pid}
        found = {name: machine.cpu_s(pid) for name, pid in parts.items() if pid}
        for name, pid in self.stack.processes.pids.items():
            part = name.partition("-")[0]
            if part == "simulator":
                continue
            found[part] = found.get(part, 0.0) + machine.cpu_s(pid)
        return found

    def cpu_ms_since(self, before: dict[str, float], count: int) -> dict[str, float]:
        """Give the CPU milliseconds of each part since then, for each of `count` things done."""
        return {name: (used - before[name]) * 1000 / count for name, used in self.cpu_s().items()}

    def check_books(self) -> None:
        """Compare every order with the provider's ledger. Raises RuntimeError."""
        ledgers = [each.ask("GET", "/ledger") for each in self.simulators.values()]
        books.check_product(self.database, ledgers)


@contextmanager
def product(
    servers: Servers,
    broker: Broker,
    simulated: Simulator | None,
    *,
    provider: ProviderName = ProviderName.SKINSNODE,
    latency_s: float = 0.02,
    speed: float = 1.0,
    children: Sequence[str] = ALL,
    workers: int = 2,
    **settings: Any,
) -> Iterator[Product]:
    """Run the product on a fresh database until the block ends.

    Without a simulator the `accounts` are played by one of the stack's own, which answers after
    `latency_s` and runs `speed` times as fast as life.
    """
    values: dict[str, Any] = {
        "data_dir": servers.data_dir / "product",
        "database_url": SecretStr(servers.fresh_database("bench_product")),
        "broker_url": SecretStr(broker.url),
        "web_port": 0,
        "flower_port": 0,
        "poll_min_interval_s": 3600,
        "batch_limit": BATCH_LIMIT,
        **settings,
    }
    if simulated:
        values["accounts"] = {DEFAULT_ACCOUNT: _account(simulated, provider)}
    options = StackOptions(
        children=children if simulated else ["simulator", *children],
        workers=workers,
        simulator_speed=speed,
        simulator_balance_cents=BALANCE_CENTS,
        report=lambda line: None,
    )
    with Stack(Settings(_env_file=None, **values), options) as stack:
        if "worker" in children:
            stack.wait_ready(30)
        simulators = {DEFAULT_ACCOUNT: simulated} if simulated else _own(stack, latency_s)
        running = Product(stack, simulators, servers, broker)
        until(lambda: _serves(running), "the web process answers")
        try:
            yield running
        finally:
            running.close()


def _account(simulated: Simulator, provider: ProviderName) -> AccountSettings:
    return AccountSettings(
        provider=provider,
        base_url=simulated.url + ("/api.php" if provider is ProviderName.SKINSBACK else ""),
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
        rate_per_minute=RATE_PER_MINUTE,
    )


def _own(stack: Stack, latency_s: float) -> dict[str, Simulator]:
    pid = stack.processes.pids["simulator"]
    found = {
        name: Simulator(stack.simulator_url + path_of(name), pid)
        for name in stack.settings.accounts
    }
    until(lambda: all(_is_up(each) for each in found.values()), "the simulator answers")
    for each in found.values():
        each.prepare(latency_s)
    return found


def _serves(running: Product) -> bool:
    try:
        return running.http.get("/healthz").is_success
    except httpx.HTTPError:
        return False


class Baseline:
    """One baseline's workers and store, on a database of its own."""

    def __init__(
        self, servers: Servers, group: ProcessGroup, store: subprocess.Popen[str], pipe: int
    ) -> None:
        self._servers = servers
        self._group = group
        self._store = store
        self._pipe = pipe
        self.database = psycopg.connect(servers.database_url("bench_baseline"), autocommit=True)

    def send(self, prefix: str, count: int) -> float:
        """Have the store take checkouts in; give the time of the first."""
        assert self._store.stdin is not None
        assert self._store.stdout is not None
        self._store.stdin.write(f"{prefix} {count}\n")
        self._store.stdin.flush()
        return float(json.loads(self._store.stdout.readline())["began"])

    def burst(self, prefix: str, count: int) -> float:
        """Send checkouts at once; give the seconds until the last is accepted."""
        if self._pipe >= 0:
            began = self.send(prefix, count)
            while count > 0:
                count -= len(os.read(self._pipe, count))
            return time.time() - began
        query = "SELECT count(*) FROM orders WHERE status = 'accepted'"
        done = count + self._count(query)
        began = self.send(prefix, count)
        return until(lambda: self._count(query) >= done, f"{prefix} accepted") - began

    def _count(self, query: str) -> int:
        row = self.database.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def cpu_s(self, broker: Broker) -> float:
        """Give the CPU seconds of the store, the workers, the database and the broker."""
        pids = [self._store.pid, *self._group.pids.values()]
        pids += [pid for pid in (self._servers.postgres_pid, broker.pid) if pid]
        return sum(machine.cpu_s(pid) for pid in pids)

    def close(self) -> None:
        self.database.close()
        self._store.kill()
        self._store.wait()
        self._group.stop(grace_s=1.0)


#: How many worker processes and threads each baseline gets; the product has 2 x 16.
WORKERS = {
    "celery_chain": (2, 16),
    "noop_chain": (2, 8),
    "dramatiq_pipeline": (2, 16),
}


@contextmanager
def baselines(
    servers: Servers, broker: Broker, simulated: Simulator, modules: Sequence[str]
) -> Iterator[dict[str, Baseline]]:
    """Run baselines; all of them wait idly while another is measured."""
    with ExitStack() as exit_stack:
        address = servers.fresh_database("bench_baseline", SCHEMA)
        pipe = servers.data_dir / "noop.pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe, 0o600)
        exit_stack.callback(pipe.unlink)
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BENCH_PROVIDER_URL": simulated.url,
            "BENCH_CLIENT_ID": CLIENT_ID,
            "BENCH_CLIENT_SECRET": CLIENT_SECRET,
            "BENCH_DATABASE_URL": address,
            "BENCH_BROKER_URL": broker.baseline_url,
            "BENCH_PIPE": str(pipe),
        }
        started = {}
        for module in modules:
            started[module] = _start(servers, module, env, pipe)
            exit_stack.callback(started[module].close)
        yield started


def _start(servers: Servers, module: str, env: dict[str, str], pipe: Path) -> Baseline:
    group = ProcessGroup(servers.data_dir / "logs")
    processes, threads = WORKERS[module]
    name = f"benchmarks.baselines.{module}"
    if module == "dramatiq_pipeline":
        words = ["dramatiq", name, "--processes", str(processes), "--threads", str(threads)]
        group.start(Child(module, [sys.executable, "-m", *words], env, cwd=ROOT))
    else:
        for number in range(processes):
            words = ["celery", "-A", name, "worker", "--pool=threads", f"--concurrency={threads}"]
            words += ["-n", f"{module}{number}@%h", "--without-gossip", "--without-mingle"]
            # The no-op chain must not take the other one's messages.
            words += ["-Q", module]
            child = Child(f"{module}-{number}", [sys.executable, "-m", *words], env, cwd=ROOT)
            group.start(child)
    command = [sys.executable, "-m", "benchmarks.baselines.store", module]
    store = subprocess.Popen(
        launch_command(command),
        env=env,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = os.open(pipe, os.O_RDWR) if module == "noop_chain" else -1
    return Baseline(servers, group, store, end)
