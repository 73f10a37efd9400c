"""Intake: how many checkouts a second are acknowledged and durable, by each way in.

No worker runs, and while HTTP is measured the relay stands still: what follows the intake is
measured by the bursts. The consumer's process relays besides.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from kombu import Connection, Producer

from benchmarks import load
from benchmarks.baselines import raw
from benchmarks.bench import Bench, add
from benchmarks.checkouts import checkout
from benchmarks.results import Goal
from benchmarks.stack import Product, product, simulator, until
from fulfillment.broker import checkout_queue, store_exchange
from schemas.messages import CHECKOUT_KEY

BASELINE = "psycopg, an insert a commit"
CONNECTIONS = 8
BATCH = 500


def measure(bench: Bench) -> None:
    """Measure single requests, batches and the consumer against bare inserts."""
    broker = bench.servers.broker("rabbitmq") or bench.servers.broker("redis")
    assert broker is not None
    bench.begin("intake")
    found: dict[str, list[float]] = {"single": [], "batch": [], "consumer": []}
    bare: list[float] = []
    parts: dict[str, dict[str, list[float]]] = {}
    ways = {
        "single": (_single, bench.scale.intake),
        "batch": (_batch, bench.scale.intake * 2),
        "consumer": (_consumer, bench.scale.intake * 2),
    }
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(bench.servers, broker, simulated, children=("web", "intake")) as running,
    ):
        address = bench.servers.database_url("bench_product")
        for number in range(-1, bench.scale.rounds):  # the first is to warm up
            rates = {}
            for name, (way, count) in ways.items():
                before = running.cpu_s()
                rates[name] = way(running, f"{name}{number}", count)
                add(parts.setdefault(name, {}), running.cpu_ms_since(before, count))
            inserts = raw.insert_per_commit(address, bench.scale.intake)
            if number >= 0:
                bare.append(inserts)
                for name, rate in rates.items():
                    found[name].append(rate)
    goals = {"single": 0.2, "batch": 2.0, "consumer": 0.5}
    titles = {
        "single": f"intake, POST /v1/checkouts, {CONNECTIONS} connections",
        "batch": f"intake, POST /v1/checkouts/batch by {BATCH}, 2 connections",
        "consumer": f"intake by the consumer, {broker.name}",
    }
    for name, goal in goals.items():
        bench.keep_parts(f"a checkout by {name}, its first update relayed", parts[name])
        title = titles[name]
        bench.record(
            f"intake-{name}", title, "checkouts/s", found[name], BASELINE, bare, Goal(goal)
        )


def _headers(running: Product) -> dict[str, str]:
    token = running.stack.settings.api_token.get_secret_value()
    return {"authorization": f"Bearer {token}", "content-type": "application/json"}


def _single(running: Product, prefix: str, count: int) -> float:
    events = [checkout(prefix, place, running.simulator.items) for place in range(count)]
    messages = [
        load.request("bench", "/v1/checkouts", _headers(running), json.dumps(event).encode())
        for event in events
    ]
    with _relay_stopped(running):
        rate = load.post_all(_port(running), messages, CONNECTIONS)
    _check(running, prefix, count)
    _drain(running)
    return rate


def _batch(running: Product, prefix: str, count: int) -> float:
    events = [checkout(prefix, place, running.simulator.items) for place in range(count)]
    messages = [
        load.request(
            "bench",
            "/v1/checkouts/batch",
            _headers(running),
            json.dumps({"checkouts": events[start : start + BATCH]}).encode(),
        )
        for start in range(0, count, BATCH)
    ]
    with _relay_stopped(running):
        requests = load.post_all(_port(running), messages, 2)
    _check(running, prefix, count)
    _drain(running)
    return requests * count / len(messages)


def _consumer(running: Product, prefix: str, count: int) -> float:
    """Let messages pile up while the consumer is stopped, then see how fast they are stored."""
    first = running.count("SELECT max(id) FROM orders")
    with _relay_stopped(running), Connection(running.broker.url) as connection:
        producer = Producer(connection, exchange=store_exchange)
        for place in range(count):
            event = checkout(prefix, place, running.simulator.items)
            producer.publish(event, routing_key=CHECKOUT_KEY, declare=[checkout_queue])
    began = time.time()
    query = "SELECT count(*) FROM orders WHERE id > %s"
    ended = until(lambda: running.count(query, first) >= count, "the queue is stored")
    _drain(running)
    return count / (ended - began)


@contextmanager
def _relay_stopped(running: Product) -> Iterator[None]:
    """Have the process of the relay and the consumer stand still."""
    running.stack.processes.kill("intake", signal.SIGSTOP)
    try:
        yield
    finally:
        running.stack.processes.kill("intake", signal.SIGCONT)


def _port(running: Product) -> int:
    port = urlsplit(running.stack.web_url).port
    assert port is not None
    return port


def _check(running: Product, prefix: str, count: int) -> None:
    query = "SELECT count(*) FROM orders WHERE external_id LIKE %s"
    stored = running.count(query, f"{prefix}-%")
    if stored != count:
        raise RuntimeError(f"expected {count} checkouts in the table, found {stored}")


def _drain(running: Product) -> None:
    """Wait for the relay, which shares a process with the consumer."""
    query = "SELECT count(*) FROM outbox_messages"
    until(lambda: not running.count(query), "the outbox is published", 0.1)
