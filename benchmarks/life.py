"""Orders over their whole life: checkouts at a steady rate, every webhook, the trade's end.

Nothing waits for anything here: what counts is the CPU of an order, and that it is seen to its end.
"""

import time
from statistics import median

from benchmarks.bench import Bench, add
from benchmarks.checkouts import checkout
from benchmarks.results import percentile
from benchmarks.stack import Product, product, until
from fulfillment.settings import DEFAULT_ACCOUNT, AccountSettings
from schemas.enums import OrderStatus

#: The provider's time: a trade is over after 20 of its seconds.
SPEED = 4.0
SCENARIO = "delivered"
IDLE_S = 5.0
ROUNDS = 3


def measure(bench: Bench) -> None:
    """Measure at every rate of the scale what an order costs until it is completed."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    for per_s in bench.scale.life:
        bench.begin(f"{per_s} orders/s to their ends")
        with product(
            bench.servers, broker, None, speed=SPEED, accounts={DEFAULT_ACCOUNT: AccountSettings()}
        ) as running:
            _live(running, "p-warm", per_s, per_s)
            idle = _idle(running)
            parts: dict[str, list[float]] = {}
            count = round(per_s * bench.scale.life_s)
            for number in range(ROUNDS):
                bench.say(f"{per_s} orders/s: round {number + 1} of {ROUNDS}")
                before, began = running.cpu_s(), time.monotonic()
                _live(running, f"p-{number}", count, per_s)
                used = running.cpu_ms_since(before, count)
                elapsed_ms = (time.monotonic() - began) * 1000 / count
                add(parts, {part: ms - idle[part] * elapsed_ms for part, ms in used.items()})
            accepted_ms = _accepted_ms(running)
            running.check_books()
        each_ms = [sum(spent) for spent in zip(*parts.values(), strict=True)]
        bench.record(
            f"life-{per_s}", f"CPU of all parts per order, from the checkout to the trade's end "
            f"with every webhook, {per_s} orders/s", "ms", each_ms,
            note=f"{median(each_ms) * per_s / 1000:.2f} cores, and {sum(idle.values()):.2f} "
            "that an idle stack takes, too; "
            f"checkout to accepted p50 {median(accepted_ms):.0f}, "
            f"p95 {percentile(accepted_ms, 0.95):.0f} ms",
        )  # fmt: skip
        bench.keep_parts(f"an order to its end, {per_s} orders/s", parts)


def _idle(running: Product) -> dict[str, float]:
    """Give by part how many cores are busy while there is nothing to do."""
    before = running.cpu_s()
    time.sleep(IDLE_S)
    return {part: (used - before[part]) / IDLE_S for part, used in running.cpu_s().items()}


def _live(running: Product, prefix: str, count: int, per_s: float) -> None:
    """Send checkouts one by one at this rate, and await that all are completed."""
    ended = f"SELECT count(*) FROM orders WHERE status = '{OrderStatus.COMPLETED}'"
    wanted = running.count(ended) + count
    began = time.monotonic()
    for place in range(count):
        time.sleep(max(began + place / per_s - time.monotonic(), 0))
        event = checkout(prefix, place, running.simulator.items, SCENARIO)
        running.http.post("/v1/checkouts", json=event).raise_for_status()
    until(lambda: running.count(ended) >= wanted, f"{prefix} completed", every_s=0.2)


def _accepted_ms(running: Product) -> list[float]:
    query = (
        "SELECT extract(epoch FROM a.confirmed_at - o.created_at)::float8 * 1000 "
        "FROM orders o JOIN attempts a ON a.order_id = o.id WHERE o.external_id NOT LIKE %s"
    )
    return [float(ms) for (ms,) in running.database.execute(query, ["p-warm%"]).fetchall()]
