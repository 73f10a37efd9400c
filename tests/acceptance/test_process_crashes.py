"""Real processes die by SIGKILL at crash points and come back; every order ends as it must."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from kombu import Producer

from fulfillment.broker import connect, store_exchange
from fulfillment.crash import FIRED, POINTS
from fulfillment.devstack.stack import StackOptions
from schemas.enums import ProviderName
from schemas.messages import CHECKOUT_KEY
from tests.acceptance.driver import QUICK, SPEED, Driver, running_stack, until

LEASE_S = 5
#: A dead worker's orders go on within the lease, the sweep's tick and the way that is left.
RECOVERED_S = 4 * LEASE_S
#: What brings somebody to a point, where a delivered order does not: the orders' scenario.
SCENARIOS = {
    "replay.begins": "timeout_before_accept",
    "claim.renewed": "late_answer",
    "ledger.ended": "fails_after_accept",
    "refresh.answered": "fails_after_accept",
    "refresh.before_commit": "fails_after_accept",
    "ledger.refunded": "reversed",
    "sweep.claimed": "timeout_before_accept",
    "watchdog.before_commit": "overdue",
    "watchdog.after_commit": "overdue",
    "poll.claimed": "webhooks_lost",
    "poll.answered": "webhooks_lost",
    "poll.before_commit": "webhooks_lost",
    "poll.after_commit": "webhooks_lost",
    "lookup.answered": "timeout_and_silence",
    "outcome.refused": "refused_item",
    "ledger.released": "refused_item",
}
#: Points that only an account with lookups and a rate limit comes by.
AT_SKINSBACK = ("lookup.answered", "budget.taken", "outcome.refused", "ledger.released")
BY_QUEUE = ("consumer.before_ack", "consumer.after_ack")
#: One stack whose providers are well comes by none of these; the simulation does.
ELSEWHERE = {
    *("gather.given_back", "outage.paused", "purchases.paused", "purchases.went_ahead"),
    *("reroute.before_commit", "reroute.after_commit", "expire.before_commit"),
    *("leave_paused.before_commit", "leave_paused.after_commit"),
    *("price_afresh.before_commit", "price_afresh.after_commit"),
    *("resolve.before_commit", "resolve.after_commit", "adopt.answered", "adopt.before_commit"),
    *("erase.before_commit", "erase.after_commit"),
    *("recovery.answered", "recovery.before_commit", "recovery.after_commit"),
    "wallet.answered",  # the figure was read beside the catalog
}
FEW = (
    "intake.after_commit",
    "dispatch.after_commit",
    "intent.after_commit",
    "http.sent",
    "post.answered",
    "outcome.before_commit",
    "webhook.after_commit",
    "ledger.settled",
    "consumer.before_ack",
    "relay.published",
)
#: Tried in long runs only: `make processes`.
OTHERS = sorted(set(POINTS) - ELSEWHERE - set(FEW))


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Run a stack of which every process may be told to die."""
    options = StackOptions(
        children=("simulator", "web", "worker", "beat", "intake"),
        workers=2,
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    folder = tmp_path_factory.mktemp("doomed")
    accounts = {
        "main": QUICK,
        "back": QUICK.model_copy(update={"provider": ProviderName.SKINSBACK}),
    }
    with running_stack(folder, options, crash_file=folder / "crash", accounts=accounts) as driver:
        yield driver


def send(driver: Driver, point: str) -> dict[str, str]:
    """Hand two checkouts in as a store does, again until they are taken; give how they must end."""
    scenario = SCENARIOS.get(point, "delivered")
    account = "back" if point in AT_SKINSBACK else "main"
    events = [driver.checkout(scenario, account) for _ in range(2)]
    if point in BY_QUEUE:
        with connect(driver.stack.settings) as connection:
            producer = Producer(connection, exchange=store_exchange)
            for event in events:
                producer.publish(event, routing_key=CHECKOUT_KEY)
    else:

        def is_taken() -> bool:
            try:
                return len(driver.send(events)) == len(events)
            except (httpx.HTTPError, ValueError):
                return False

        until(f"an answer to checkouts, {point}", is_taken)
    ends = {"fails_after_accept": "failed", "refused_item": "failed", "reversed": "reversed"}
    names = [event["externalId"] for event in events]
    return {name: ends.get(name.rpartition(".")[2], "completed") for name in names}


def die_at(driver: Driver, file: Path, point: str) -> tuple[dict[str, str], float]:
    """Have a process die at a point; give the orders sent for it and when it died."""
    fired = file.with_name(file.name + FIRED)
    ready = file.with_name("crash.new")
    ready.write_text(point)
    ready.rename(file)
    ends = send(driver, point)
    until(f"a death at {point}", fired.exists, 60)
    died_at = time.monotonic()
    fired.unlink()
    return ends, died_at


def await_ends(driver: Driver, ends: dict[str, str]) -> None:
    def have_ended() -> bool:
        try:
            return driver.statuses(ends) == ends
        except httpx.HTTPError:
            return False  # the web process is on its way back

    until(f"the ends {ends}", have_ended, 90)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("points", [FEW, pytest.param(OTHERS, marks=pytest.mark.long)], ids=len)
def test_processes_die_at_one_point_after_another_and_every_order_ends_as_it_must(
    doomed: Driver, points: Sequence[str]
) -> None:
    file = doomed.stack.data_dir / "crash"
    everything: dict[str, str] = {}

    for point in points:
        ends, _ = die_at(doomed, file, point)
        everything |= ends
    await_ends(doomed, everything)

    doomed.assert_agreement(everything)
    logs = doomed.logs()
    assert logs.count("crash.now") >= len(points)
    assert [point for point in points if point not in logs] == []
    until("nothing left to publish", lambda: outbox_is_empty(doomed))


def outbox_is_empty(driver: Driver) -> bool:
    metrics = driver.web.get("/metrics").text
    found = [line for line in metrics.splitlines() if line.startswith("fulfillment_outbox_waiting")]
    return bool(found) and all(float(line.split()[-1]) == 0 for line in found)


def test_work_of_a_dead_worker_goes_on_within_the_lease(doomed: Driver) -> None:
    ends, died_at = die_at(doomed, doomed.stack.data_dir / "crash", "intent.after_commit")
    await_ends(doomed, ends)
    recovered_s = time.monotonic() - died_at

    print(f"a dead worker's orders were delivered {recovered_s:.1f} s later")  # noqa: T201
    assert recovered_s < RECOVERED_S
    doomed.assert_agreement(ends)
