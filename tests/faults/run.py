"""Runs one seed: faults first, then without them until everything agrees; judged all along."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy.engine import Engine

from fulfillment.services import invariants as runtime
from tests.faults import invariants
from tests.faults.invariants import LIVENESS, SAFETY, History, violations
from tests.faults.plan import NEVER, draw
from tests.faults.world import World

#: How often, in steps, what must always hold is looked at.
_LOOK_EVERY = 300
_MOST_STEPS = 20_000
#: The simulator's heap still moves orders when something of it is due within this time.
_SOON_S = 7200.0
FEWEST_KINDS_FIRED = 3
#: Of the product's own invariants those about what a simulation has not: no relay runs in it.
_NOT_HERE = frozenset({"outbox_waits"})
#: A seed whose faults have hardly struck goes on with them so long.
_LONGEST_S = 900.0


@dataclass
class Report:
    """What one seed did."""

    seed: int
    violations: list[str] = field(default_factory=list)
    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    orders: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    trace: list[str] = field(default_factory=list, repr=False)
    #: Names the whole course of the run: two runs of one seed have the same.
    digest: str = ""
    #: What was asked for instead of what the seed draws.
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """Give the command that repeats this run, at the same commit."""
        words = [f"--seed {self.seed}"]
        if "kinds" in self.overrides:
            words.append(f"--kinds {','.join(self.overrides['kinds'])}")
        if "orders" in self.overrides:
            words.append(f"--orders {self.overrides['orders']}")
        return f"make faults ARGS='{' '.join(words)}'"


def run_seed(seed: int, engine: Engine, **overrides: Any) -> Report:
    """Run one seed from empty tables to its last check."""
    began = time.perf_counter()
    plan = draw(seed, **overrides)
    report = Report(seed, orders=len(plan.orders), overrides=overrides)
    with World(plan, engine) as world:
        _run_phases(world, report)
        report.fired = world.faults.fired
        report.trace = world.scheduler.trace
        report.digest = world.scheduler.digest
        report.virtual_s = world.scheduler.now - 1000
        report.ends = Counter(world.statuses([o.external_id for o in plan.orders]))
    report.real_s = time.perf_counter() - began
    return report


def _run_phases(world: World, report: Report) -> None:
    plan, began = world.plan, world.scheduler.now
    fewest = min(FEWEST_KINDS_FIRED, len(plan.kinds))

    def is_enough() -> bool:
        passed = world.scheduler.now - began
        has_struck = len(world.faults.kinds_fired) >= fewest
        return passed >= plan.faults_until and (has_struck or passed >= _LONGEST_S)

    while not is_enough() and world.step():
        report.steps += 1
        if report.steps % _LOOK_EVERY == 0 and _judge(world, report, SAFETY):
            return
    world.end_faults()
    deadline = world.scheduler.now + invariants.CONVERGES_WITHIN.total_seconds()
    look_at = world.scheduler.now
    while world.scheduler.now < deadline and report.steps < _MOST_STEPS and world.step():
        report.steps += 1
        if report.steps % _LOOK_EVERY == 0 and _judge(world, report, SAFETY):
            return
        if world.scheduler.now >= look_at and is_quiet(world):
            if not violations(read(world), LIVENESS) and not _own_violations(world):
                break
            look_at = world.scheduler.now + 20
    world.note_scenarios()
    _judge(world, report, SAFETY + LIVENESS)
    fired = world.faults.kinds_fired
    if len(fired) < fewest:
        report.violations.append(f"harness: of {plan.kinds} only {sorted(fired)} struck")


def is_quiet(world: World) -> bool:
    """Say whether all has arrived and nothing is on its way."""
    dues = (
        due - account.market.clock.now()
        for account in world.accounts.values()
        if (due := account.market.timeline.next_due) is not None
    )
    waiting = world.bus.next_due() is not None or world.scheduler.is_busy()
    arrived = len(world.acknowledged) == len(world.plan.orders)
    return arrived and not waiting and all(due > _SOON_S for due in dues)


def _judge(world: World, report: Report, checks: Any) -> bool:
    """Look whether these checks hold now; say whether one does not."""
    found = look(world, checks)
    report.violations += found
    if found:
        world.scheduler.note("VIOLATION " + "; ".join(found))
    return bool(found)


def look(world: World, checks: Any) -> list[str]:
    """Give what does not hold now, and the errors that nobody expected."""
    found = violations(read(world), checks)
    if LIVENESS[0] in checks:  # the product's own checker, which must agree
        found += _own_violations(world)
    return found + [f"error in {name}: {_told(error)}" for name, error in _errors(world)]


def _own_violations(world: World) -> list[str]:
    own = runtime.violations(world.context)
    return [f"{v.invariant}: {v.subjects}" for v in own if v.invariant not in _NOT_HERE]


def _errors(world: World) -> list[tuple[str, BaseException]]:
    """Give what ended a task or strand and was neither ours nor injected."""
    errors = [*world.bus.crashes, *world.scheduler.errors]
    world.bus.crashes.clear()
    world.scheduler.errors.clear()
    # A chain that cannot be published, because the broker is away, fails its task.
    return [(name, error) for name, error in errors if not isinstance(error, BrokerAway)]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def read(world: World) -> History:
    """Read our tables and the judge's ledgers as they are now."""
    orders = world.rows("SELECT * FROM orders ORDER BY id")
    planned = {order.external_id: order for order in world.plan.orders}
    caps = {
        (name, order.external_id): 10
        * account.settings.price_limit_cents(world.event_of(order)["expectedPrice"])
        for name, account in world.accounts.items()
        for order in world.plan.orders
    }
    forgeries = [f for postman in world.postmen.values() for f in postman.forgeries]
    return History(
        orders=orders,
        events=world.rows("SELECT * FROM order_events ORDER BY order_id, sequence"),
        attempts=world.rows("SELECT * FROM attempts ORDER BY id"),
        entries=world.rows("SELECT * FROM wallet_entries ORDER BY id"),
        messages=_messages(world),
        wallets=world.rows("SELECT * FROM wallets"),
        judges={name: world.judge_of(name) for name in world.accounts},
        caps_mills=caps,
        endless=frozenset(n for n, o in planned.items() if o.scenario.name in NEVER),
        unpaid=frozenset(n for n, o in planned.items() if "funds" in o.scenario.name),
        acknowledged=frozenset(world.acknowledged),
        unintended=world.unintended,
        overcommitted=world.overcommitted,
        forged_changes=sum(forgery.before != forgery.after for forgery in forgeries),
        is_clock_right="clock_jumped" not in world.plan.kinds,
        is_timed=not {"process_frozen", "clock_jumped"} & set(world.plan.kinds),
        lost_at=world.lost_at,
    )


def _messages(world: World) -> list[dict[str, Any]]:
    """Give what the store was told, as it first came, and what it is yet to be told."""
    told: dict[str, dict[str, Any]] = {}
    for message in world.published:
        told.setdefault(message["name"], message)
    waiting = world.rows(
        "SELECT order_id, b->>'eventId' AS name, CAST(b->>'sequence' AS int) AS sequence "
        "FROM outbox_messages, LATERAL CAST(body AS jsonb) AS b ORDER BY id"
    )
    return [*told.values(), *(each for each in waiting if each["name"] not in told)]
