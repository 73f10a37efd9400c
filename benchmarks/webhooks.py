"""Webhooks at 100 a second: from due to answered 2xx and durable, idle and beside a burst."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks import load
from benchmarks.bench import Bench, add
from benchmarks.results import Goal, percentile
from benchmarks.stack import CLIENT_SECRET, Product, product, simulator, until
from fulfillment.simulator.skinsnode import signed_headers

PER_S = 100.0
WAITING = "SELECT count(*) FROM webhook_deliveries WHERE applied_at IS NULL"
_numbers = itertools.count()


def measure(bench: Bench) -> None:
    """Measure p99 in turns: idle, then while orders are being submitted."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    bench.begin("webhooks")
    count = bench.scale.webhooks
    idle, busy = [], []
    parts: dict[str, list[float]] = {}
    everything: dict[str, list[float]] = {"idle": [], "beside a burst": []}
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(bench.servers, broker, simulated) as running,
    ):
        running.burst("p-warm", bench.scale.small_burst)
        _post(running, bench.scale.small_burst, count)
        for number in range(bench.scale.rounds):
            bench.say(f"webhooks: round {number + 1} of {bench.scale.rounds}")
            time.sleep(1)
            before = running.cpu_s()
            quiet = _post(running, bench.scale.small_burst, count)
            until(lambda: not running.count(WAITING), "the webhooks are applied")
            add(parts, running.cpu_ms_since(before, count))
            stop = threading.Event()
            burster = threading.Thread(target=_keep_bursting, args=(running, number, stop, bench))
            burster.start()
            time.sleep(0.1)
            loud = _post(running, bench.scale.small_burst, count)
            stop.set()
            burster.join()
            idle.append(percentile(quiet, 0.99) * 1000)
            busy.append(percentile(loud, 0.99) * 1000)
            everything["idle"] += [spent * 1000 for spent in quiet]
            everything["beside a burst"] += [spent * 1000 for spent in loud]
        running.check_books()
    goal = Goal(5, is_least=False)
    bench.record("webhooks", "webhooks at 100/s beside a burst, p99", "ms", busy, "p99 when idle",
                 idle, goal)  # fmt: skip
    bench.record("webhooks-p99", "webhooks at 100/s beside a burst, p99", "ms", busy,
                 goal=Goal(100, is_least=False))  # fmt: skip
    bench.keep_parts("a webhook, applied", parts)
    bench.keep("webhooks", everything)


def _post(running: Product, orders: int, count: int) -> list[float]:
    port = urlsplit(running.stack.web_url).port
    assert port is not None
    return load.post_at_rate(port, list(_messages(orders, count)), PER_S)


def _messages(orders: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        number = next(_numbers)
        stamp = str(int(time.time()))
        external_id = f"p-warm-{number % orders}.stuck"
        body = json.dumps(
            {
                "externalId": external_id,
                "status": "queued",
                "timestamps": {"updatedAt": None, "number": number},
            }
        ).encode()
        headers = signed_headers(CLIENT_SECRET, stamp, f"d-{number}", body)
        yield load.request("bench", "/webhooks/main", headers, body)


def _keep_bursting(running: Product, number: int, stop: threading.Event, bench: Bench) -> None:
    for part in itertools.count():
        if stop.is_set():
            return
        running.burst(f"p-{number}-{part}", bench.scale.burst)
