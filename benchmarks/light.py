"""Light load: one order every 200 ms, from the checkout to the accepted purchase."""

import time
from statistics import median

from benchmarks.bench import Bench
from benchmarks.checkouts import checkout
from benchmarks.results import Goal, percentile
from benchmarks.servers import Broker
from benchmarks.stack import baselines, product, simulator, until

LATENCY_MS = 20.0
REQUESTS = 3  # catalog, wallet, purchase: each waits for the one before
GAP_S = 0.2


def measure(bench: Bench) -> None:
    """Measure product and plain Celery order by order, in turns."""
    for broker in bench.brokers():
        bench.begin(f"light load on {broker.name}")
        _measure_on(bench, broker)


def _measure_on(bench: Bench, broker: Broker) -> None:
    count = bench.scale.light
    sent: dict[str, float] = {}
    with (
        simulator(bench.servers.data_dir / "logs", latency_s=LATENCY_MS / 1000) as simulated,
        product(bench.servers, broker, simulated) as running,
        baselines(bench.servers, broker, simulated, ["celery_chain"]) as others,
    ):
        other = others["celery_chain"]
        running.burst("p-warm", 100)
        other.burst("warm", 20)
        time.sleep(1)
        began = time.time()
        for place in range(count):
            time.sleep(max(began + place * GAP_S - time.time(), 0))
            event = checkout("p", place, simulated.items)
            sent[event["externalId"]] = time.time()
            running.http.post("/v1/checkouts", json=event).raise_for_status()
            time.sleep(max(began + (place + 0.5) * GAP_S - time.time(), 0))
            sent[f"c-{place}-0.stuck"] = other.send(f"c-{place}", 1)
        accepted = (
            "SELECT external_id, extract(epoch FROM confirmed_at)::float8 FROM attempts "
            "WHERE confirmed_at IS NOT NULL"
        )
        until(
            lambda: running.count("SELECT count(confirmed_at) FROM attempts") >= 100 + count,
            "accepted",
        )
        ours: dict[str, float] = dict(running.database.execute(accepted).fetchall())
        time.sleep(1)
        query = "SELECT external_id, extract(epoch FROM accepted_at)::float8 FROM orders"
        theirs: dict[str, float] = dict(other.database.execute(query).fetchall())
        running.check_books()
    ours_ms = [(ours[n] - at) * 1000 for n, at in sent.items() if n in ours]
    theirs_ms = [(theirs[n] - at) * 1000 for n, at in sent.items() if n in theirs]
    floor = LATENCY_MS * REQUESTS
    rounds = [ours_ms[i :: bench.scale.rounds] for i in range(bench.scale.rounds)]
    bench.record(
        f"light-{broker.name}", f"5 orders/s, checkout to accepted, p50, {broker.name}", "ms",
        [median(each) for each in rounds], f"{REQUESTS} x the provider's {LATENCY_MS:g} ms",
        [floor] * len(rounds), Goal(1.3, is_least=False),
        note=f"p95 {percentile(ours_ms, 0.95):.0f} ms; plain Celery chain p50 "
        f"{median(theirs_ms):.0f}, p95 {percentile(theirs_ms, 0.95):.0f} ms",
    )  # fmt: skip
    bench.keep(f"light-{broker.name}", {"product": ours_ms, "plain Celery": theirs_ms})
