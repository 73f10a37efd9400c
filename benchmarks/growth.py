"""What grows: a worker's memory with its orders, the rate with the workers and the accounts."""

from statistics import median

from benchmarks import machine
from benchmarks.bench import Bench
from benchmarks.results import Goal
from benchmarks.stack import RATE_PER_MINUTE, Product, product, simulator
from fulfillment.settings import DEFAULT_ACCOUNT, AccountSettings

PART = 2000
#: So slow that one account waits for its provider, and not for a core.
SLOW_S = 0.5
#: The setting's default, since this is what it is for.
MANY_BATCH_LIMIT = 64


def measure_memory(bench: Bench) -> None:
    """Compare the workers' resident memory after few and after many orders."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    few, many = bench.scale.memory
    bench.begin(f"memory after {many:,} orders")
    series = []
    with (
        simulator(bench.servers.data_dir / "logs") as simulated,
        product(bench.servers, broker, simulated) as running,
    ):
        done = 0
        part = min(PART, few)
        while done < many:
            running.burst(f"p-{done}", part)
            done += part
            series.append((done, _memory(running)))
            bench.say(f"memory: {done:,} of {many:,} orders")
        running.check_books()
    first = next(sizes for done, sizes in series if done >= few)
    bench.record(
        "memory", f"a worker's memory after {many:,} orders", "MB", series[-1][1],
        f"after {few:,} orders", first, Goal(1.1, is_least=False),
    )  # fmt: skip
    bench.keep("memory", series)


def _memory(running: Product) -> list[float]:
    pids = running.stack.processes.pids
    return [machine.rss_mb(pid) for name, pid in pids.items() if name.startswith("worker")]


def measure_scaling(bench: Bench) -> None:
    """Compare rates with more and more workers at a slow provider (200 ms).

    Each worker has as many orders to do: how long a burst takes to begin and to end is no share of
    its rate that would grow with the workers.
    """
    broker = bench.servers.broker("redis")
    assert broker is not None
    rates: dict[int, list[float]] = {}
    for workers in bench.scale.scaling:
        bench.begin(f"{workers} worker processes, provider at 200 ms")
        with (
            simulator(bench.servers.data_dir / "logs", latency_s=0.2) as simulated,
            product(bench.servers, broker, simulated, workers=workers) as running,
        ):
            count = bench.scale.scaling_burst * workers
            rates[workers], cores = _rates(running, count, bench.scale.rounds)
        if workers > 1:
            linear = [rate * workers for rate in rates[bench.scale.scaling[0]]]
            bench.record(
                f"scaling-{workers}", f"{workers} workers, provider at 200 ms", "orders/s",
                rates[workers], f"{workers} times one worker", linear, Goal(0.8),
                note=f"{cores:.1f} cores busy in the product",
            )  # fmt: skip
    bench.keep("scaling", [[workers, found] for workers, found in rates.items()])


def _rates(running: Product, count: int, rounds: int) -> tuple[list[float], float]:
    """Give the rate of every round, and how many cores the product kept busy."""
    running.burst("p-warm", count // 2)
    before = sum(running.cpu_s().values())
    rates = [count / running.burst(f"p-{number}", count) for number in range(rounds)]
    used = sum(running.cpu_s().values()) - before
    running.check_books()
    return rates, used * median(rates) / (count * rounds)


def measure_accounts(bench: Bench) -> None:
    """Compare the rates of more and more accounts, all of whose providers are slow (500 ms)."""
    broker = bench.servers.broker("redis")
    assert broker is not None
    rates: dict[int, list[float]] = {}
    for number in bench.scale.accounts:
        bench.begin(f"{number} accounts, providers at {SLOW_S * 1000:.0f} ms")
        names = [DEFAULT_ACCOUNT, *(f"account-{place}" for place in range(2, number + 1))]
        accounts = {name: AccountSettings(rate_per_minute=RATE_PER_MINUTE) for name in names}
        count = bench.scale.account_burst * number
        with product(
            bench.servers, broker, None,
            latency_s=SLOW_S, accounts=accounts, batch_limit=MANY_BATCH_LIMIT,
        ) as running:  # fmt: skip
            rates[number], cores = _rates(running, count, bench.scale.rounds)
        if number > 1:
            linear = [rate * number for rate in rates[bench.scale.accounts[0]]]
            bench.record(
                f"accounts-{number}", f"{number} accounts, providers at {SLOW_S * 1000:.0f} ms",
                "orders/s", rates[number], f"{number} times one account", linear,
                note=f"{cores:.1f} cores busy in the product",
            )  # fmt: skip
    bench.keep("accounts", [[number, found] for number, found in rates.items()])
