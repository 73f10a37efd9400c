"""Light load: one order every 200 ms, from the checkout to the accepted purchase.

The baseline is the provider's latency: what three of its smallest answers take bare httpx, one
after the other, in the same run.
"""

import time
from statistics import median

import httpx

from benchmarks.bench import Bench
from benchmarks.checkouts import checkout
from benchmarks.results import Goal, percentile
from benchmarks.servers import Broker
from benchmarks.stack import (
    CLIENT_ID,
    CLIENT_SECRET,
    Simulator,
    baselines,
    product,
    simulator,
    until,
)

LATENCY_MS = 20.0
REQUESTS = 3  # catalog, wallet, purchase: each waits for the one before
GAP_S = 0.2
BARE = 10  # measurements a round


def measure(bench: Bench) -> None:
    """Measure product and plain Celery order by order, in turns."""
    for broker in bench.brokers():
        bench.begin(f"light load on {broker.name}")
        _measure_on(bench, broker)


def _measure_on(bench: Bench, broker: Broker) -> None:
    count = bench.scale.light
    sent: dict[str, float] = {}
    by_round: list[list[str]] = []
    bare_ms: list[float] = []
    with (
        simulator(bench.servers.data_dir / "logs", latency_s=LATENCY_MS / 1000) as simulated,
        product(bench.servers, broker, simulated) as running,
        baselines(bench.servers, broker, simulated, ["celery_chain"]) as others,
    ):
        other = others["celery_chain"]
        bare = _bare_client(simulated)
        running.burst("p-warm", 100)
        other.burst("warm", 20)
        time.sleep(1)
        for number in range(bench.scale.rounds):
            bare_ms.append(median(_bare_ms(bare) for _ in range(BARE)))
            by_round.append([])
            began = time.time() + GAP_S
            for place in range(number, count, bench.scale.rounds):
                time.sleep(max(began - time.time(), 0))
                event = checkout("p", place, simulated.items)
                by_round[-1].append(event["externalId"])
                sent[event["externalId"]] = time.time()
                running.http.post("/v1/checkouts", json=event).raise_for_status()
                time.sleep(max(began + GAP_S / 2 - time.time(), 0))
                sent[f"c-{place}-0.stuck"] = other.send(f"c-{place}", 1)
                began += GAP_S
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
    own = median(ours_ms) / (LATENCY_MS * REQUESTS)
    bench.record(
        f"light-{broker.name}", f"5 orders/s, checkout to accepted, p50, {broker.name}", "ms",
        [median((ours[n] - sent[n]) * 1000 for n in names) for names in by_round],
        f"{REQUESTS} requests by bare httpx",
        bare_ms, Goal(1.3, is_least=False),
        note=f"p95 {percentile(ours_ms, 0.95):.0f} ms; {own:.2f} of {REQUESTS} x the "
        f"{LATENCY_MS:g} ms that the provider sleeps; plain Celery chain p50 "
        f"{median(theirs_ms):.0f}, p95 {percentile(theirs_ms, 0.95):.0f} ms",
    )  # fmt: skip
    bench.keep(f"light-{broker.name}", {"product": ours_ms, "plain Celery": theirs_ms})


def _bare_client(simulated: Simulator) -> httpx.Client:
    headers = {"x-client-id": CLIENT_ID, "x-client-secret": CLIENT_SECRET}
    return httpx.Client(base_url=simulated.url, headers=headers, trust_env=False)


def _bare_ms(bare: httpx.Client) -> float:
    began = time.perf_counter()
    for _ in range(REQUESTS):
        bare.get("/v1/wallet").raise_for_status()
    return (time.perf_counter() - began) * 1000
