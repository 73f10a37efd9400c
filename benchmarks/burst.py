"""Bursts: the whole product against plain Celery, Dramatiq and the engine's own no-op chain."""

import time

from benchmarks.bench import Bench, add
from benchmarks.books import check_baseline
from benchmarks.results import Goal
from benchmarks.servers import Broker
from benchmarks.stack import Product, baselines, product, simulator

PEERS = {"celery_chain": "plain Celery chain", "dramatiq_pipeline": "Dramatiq pipeline"}
SETTLE_S = 0.5  # between two rounds, so that what the last one left is done


def measure(bench: Bench) -> None:
    """Measure on every broker: rates, provider requests, CPU."""
    for broker in bench.brokers():
        bench.begin(f"burst on {broker.name}")
        _measure_on(bench, broker)


def _measure_on(bench: Bench, broker: Broker) -> None:
    scale = bench.scale
    ours: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in (*PEERS, "noop_chain")}
    cpu_ms: dict[str, list[float]] = {name: [] for name in ("product", *PEERS)}
    parts: dict[str, list[float]] = {}
    requests: list[float] = []
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(bench.servers, broker, simulated) as running,
        baselines(bench.servers, broker, simulated, [*PEERS, "noop_chain"]) as others,
    ):
        running.burst("p-warm", scale.small_burst)
        for name, other in others.items():
            other.burst(f"{name}-warm", 10)
        for number in range(scale.rounds):
            bench.say(f"burst on {broker.name}: round {number + 1} of {scale.rounds}")
            time.sleep(SETTLE_S)
            before = running.cpu_s()
            ours.append(scale.burst / running.burst(f"p-{number}", scale.burst))
            add(parts, running.cpu_ms_since(before, scale.burst))
            cpu_ms["product"].append(sum(values[-1] for values in parts.values()))
            requests.append(_requests_per_order(running, f"p-few-{number}", scale.small_burst))
            for name, other in others.items():
                count = scale.noop if name == "noop_chain" else scale.peers
                time.sleep(SETTLE_S)
                began_s = other.cpu_s(broker)
                rates[name].append(count / other.burst(f"{name}-{number}", count))
                if name in PEERS:
                    cpu_ms[name].append((other.cpu_s(broker) - began_s) * 1000 / count)
        time.sleep(1)
        running.check_books()
        check_baseline(others["celery_chain"].database, simulated.ask("GET", "/ledger"))
    _record(bench, broker, ours, rates, cpu_ms, requests)
    bench.keep_parts(f"an order in a burst, {broker.name}", parts)
    bench.keep(f"rates-{broker.name}", {"product": ours, **rates})


def _requests_per_order(running: Product, prefix: str, count: int) -> float:
    before = running.simulator.requests()
    running.burst(prefix, count)
    return (running.simulator.requests() - before) / count


def _record(
    bench: Bench,
    broker: Broker,
    ours: list[float],
    rates: dict[str, list[float]],
    cpu_ms: dict[str, list[float]],
    requests: list[float],
) -> None:
    name = broker.name
    of = f"burst of {bench.scale.burst}, {name}"
    goals = {
        "celery_chain": ("plain Celery chain per order", Goal(7)),
        "dramatiq_pipeline": ("Dramatiq pipeline per order", Goal(6)),
        "noop_chain": ("no-op Celery chain of four", Goal(2 if name == "redis" else 1.2)),
    }
    for module, (title, goal) in goals.items():
        key = f"burst-{module.partition('_')[0]}-{name}"
        bench.record(key, of, "orders/s", ours, title, rates[module], goal)
    title = f"provider requests per order, burst of {bench.scale.small_burst}, {name}"
    goal_requests = Goal(1.1, is_least=False)
    bench.record(f"requests-{name}", title, "requests", requests, goal=goal_requests)
    for module, title in PEERS.items():
        goal_cpu = Goal(0.2, is_least=False) if module == "dramatiq_pipeline" else None
        key = f"cpu-{module.partition('_')[0]}-{name}"
        bench.record(
            key, f"CPU of all parts per order, {name}", "ms", cpu_ms["product"], title,
            cpu_ms[module], goal_cpu,
        )  # fmt: skip


def measure_large_catalog(bench: Bench) -> None:
    """Measure with a catalog ten times as large, against Dramatiq on Redis."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    scale = bench.scale
    bench.begin(f"burst with {scale.large_catalog:,} items")
    ours, theirs = [], []
    with (
        simulator(bench.servers.data_dir / "logs", items=scale.large_catalog) as simulated,
        product(bench.servers, broker, simulated) as running,
        baselines(bench.servers, broker, simulated, ["dramatiq_pipeline"]) as others,
    ):
        other = others["dramatiq_pipeline"]
        running.burst("p-warm", scale.small_burst)
        other.burst("warm", 5)
        for number in range(scale.rounds):
            bench.say(f"{scale.large_catalog:,} items: round {number + 1} of {scale.rounds}")
            ours.append(scale.burst / running.burst(f"p-{number}", scale.burst))
            time.sleep(SETTLE_S)
            theirs.append(scale.large_peers / other.burst(f"d-{number}", scale.large_peers))
            time.sleep(SETTLE_S)
        running.check_books()
    bench.record(
        "burst-large", f"burst of {scale.burst}, {scale.large_catalog:,} items, redis", "orders/s",
        ours, "Dramatiq pipeline per order", theirs, Goal(15),
    )  # fmt: skip


def measure_batch_sizes(bench: Bench) -> None:
    """Measure what one order costs where batches may be of this size at the most."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    costs = []
    for size in bench.scale.batch_sizes:
        bench.begin(f"batches of at most {size}")
        count = bench.scale.burst if size > 1 else bench.scale.small_burst // 5
        with (
            simulator(bench.servers.data_dir / "logs") as simulated,
            product(bench.servers, broker, simulated, batch_limit=size) as running,
        ):
            running.burst("p-warm", min(count, bench.scale.small_burst))
            before = sum(running.cpu_s().values())
            rates = [
                count / running.burst(f"p-{number}", count)
                for number in range(min(bench.scale.rounds, 3))
            ]
            used = (sum(running.cpu_s().values()) - before) * 1000 / (count * len(rates))
            running.check_books()
        costs.append((size, sorted(rates)[len(rates) // 2], used))
    bench.keep("batch-sizes", costs)


def measure_flower(bench: Bench) -> None:
    """Measure what it costs that Flower watches."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    bench.begin("burst with Flower watching")
    watched, alone = [], []
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(
            bench.servers, broker, simulated,
            children=("web", "worker", "beat", "intake", "flower"),
        ) as running,
    ):  # fmt: skip
        running.burst("p-warm", bench.scale.small_burst)
        for number in range(bench.scale.rounds):
            time.sleep(2)  # Flower's own start is over
            watched.append(bench.scale.burst / running.burst(f"p-w{number}", bench.scale.burst))
            running.stack.processes.end("flower")
            time.sleep(SETTLE_S)
            alone.append(bench.scale.burst / running.burst(f"p-a{number}", bench.scale.burst))
            running.stack.start_child("flower")
        running.check_books()
    bench.record(
        "flower", f"burst of {bench.scale.burst} with Flower, redis", "orders/s", watched,
        "without Flower", alone, Goal(0.8),
    )  # fmt: skip
