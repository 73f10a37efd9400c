"""One simulated run: real services on a real PostgreSQL, all around them in virtual time.

Nothing here is asserted; `run.py` asks `invariants.py` what it thinks of what happened.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import psycopg
from psycopg.rows import dict_row
from sqlalchemy.engine import Engine

from fulfillment.broker import hint
from fulfillment.errors import FulfillmentError, ServerUnreachable
from fulfillment.services import backstop, intake
from fulfillment.services.context import Context, register_accounts
from fulfillment.settings import Settings, load_settings
from fulfillment.store import ledger
from fulfillment.store.engine import SETTING, Database, Session
from fulfillment.store.sealing import Seal
from schemas import messages
from tests.faults.bus import Bus, Message
from tests.faults.happenings import Happenings
from tests.faults.invariants import Judge, overcommitted
from tests.faults.kinds import BY_SCENARIO, Faults
from tests.faults.market import Account, Postman
from tests.faults.plan import PUBLIC_URL, Plan, PlannedOrder
from tests.faults.scheduler import Process, Scheduler, SimulatedThreads
from tests.support import TRADE_URL, FakeClock

#: Of faults that have a chance at every transaction.
RARE = 0.05
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEYS = "sim:" + "A" * 43 + "="
TABLES = (
    "webhook_deliveries, outbox_messages, wallet_entries, order_events, attempts, orders, "
    "wallets, accounts, account_switches, leases, heartbeats"
)
#: When something of ours is due next, by the tick that would find it.
_DUE = """
    SELECT extract(epoch FROM
             least((SELECT min(greatest(next_attempt_at, claimed_until,
                      CASE WHEN o.fallbacks = '[]' THEN a.paused_until END,
                      CASE WHEN o.fallbacks = '[]' AND o.status <> 'submitting'
                           THEN a.purchases_paused_until END))
                      FROM orders o JOIN accounts a ON a.name = o.account
                     WHERE next_attempt_at IS NOT NULL),
                   (SELECT min(next_apply_at) FROM webhook_deliveries),
                   (SELECT min(greatest(least(ended_at, CASE WHEN absorbed_at IS NULL
                                                              AND t.account <> ALL(%(at_end)s)
                                                        THEN confirmed_at END)
                                        + make_interval(secs => %(lag)s), a.paused_until))
                      FROM attempts t JOIN accounts a ON a.name = t.account
                     WHERE absorbed_at IS NULL OR hold_closed_at IS NULL))) AS sweep,
           extract(epoch FROM (SELECT min(next_poll_at) FROM orders)) AS poll,
           extract(epoch FROM (SELECT min(next_watch_at) FROM orders)) AS watch
"""
_hold = ledger.hold
TICKS = {
    "sweep": messages.RESUME_STUCK,
    "poll": messages.POLL_DUE,
    "watch": messages.WATCH_TRADE_WINDOWS,
}


class OurClock:
    """The store's clock; it may be set wrong while the provider's stays right."""

    def __init__(self, true: FakeClock) -> None:
        self._true = true
        self.offset = timedelta()

    def now(self) -> datetime:
        return self._true.now() + self.offset

    def monotonic(self) -> float:
        return self._true.monotonic()


class FaultyDatabase(Database):
    """The real database; strands take turns between transactions, never inside one."""

    def __init__(self, engine: Engine, scheduler: Scheduler, faults: Faults) -> None:
        self.engine = engine
        self._scheduler = scheduler
        self._faults = faults
        self.transactions = 0
        self.has_held = False
        self.on_held: Callable[[], None] = lambda: None

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        faults = self._faults
        self._scheduler.pause(self._lag())
        self.transactions += 1
        with super().transaction() as session:
            yield session
            struck = faults.strikes("connection_lost", "serialization_failure", weight=RARE)
            if struck == "connection_lost":
                raise psycopg.OperationalError("the server closed the connection")
            if struck == "serialization_failure":
                raise psycopg.errors.SerializationFailure("could not serialize")
        if self.has_held:
            self.has_held = False
            self.on_held()
        if faults.strikes("commit_unacknowledged", weight=RARE):
            raise ServerUnreachable("PostgreSQL", SETTING, "OperationalError")

    @contextmanager
    def statement(self) -> Iterator[Session]:
        """Run one statement as a whole transaction: what strikes before its end undoes it."""
        with self.transaction() as session:
            yield session

    def _lag(self) -> float:
        dice = self._faults.source.random()
        return 0.0 if dice < 0.93 else dice - 0.93 if dice < 0.995 else 4 * dice


class World:
    """Everything of one seed; `with` makes it and takes it down again."""

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self.plan = plan
        self.source = random.Random(f"run {plan.seed}")
        self.true_clock = FakeClock(START)
        self.clock = OurClock(self.true_clock)
        self.scheduler = Scheduler(self.source, self.true_clock)
        self.faults = Faults(self.source, plan.kinds, self.statuses)
        self.bus = Bus(self.scheduler, self.faults)
        self.workers = [Process(f"worker{n}") for n in range(len(plan.worker_slots))]
        self.web = Process("web")
        #: Purchase requests for which no intent was committed first.
        self.unintended: list[str] = []
        #: Where more money was held than there was, at the commit that held it.
        self.overcommitted: list[str] = []
        self.refused_checkouts: list[str] = []
        self.acknowledged: set[str] = set()
        self.foreign_mills: dict[str, int] = {}
        #: When a backup was read back.
        self.lost_at: datetime | None = None
        self._events: dict[str, dict[str, Any]] = {}
        #: Messages that the store has, where a relay runs; a message may come twice.
        self.published: list[dict[str, Any]] = []
        self._engine = engine
        self._address = engine.url.set(drivername="postgresql").render_as_string(False)
        self._debited_at_end = [n for n, o in plan.options.items() if o.debits_at == "final"]
        self._due_known: tuple[int, dict[str, float]] = (-1, {})
        self._last_tick = 0.0
        self._beat_dead_until = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "World":
        self.sql = self._stack.enter_context(
            psycopg.connect(self._address, autocommit=True, row_factory=dict_row)
        )
        self.empty()
        settings = load_settings(
            _env_file=None,
            database_url=self._address,
            data_dir="/nonexistent",
            public_url=PUBLIC_URL,
            api_token="token",
            encryption_keys=KEYS,
            accounts=self.plan.accounts,
            **self.plan.settings,
        )
        self.database = FaultyDatabase(self._engine, self.scheduler, self.faults)
        self.accounts = {
            name: Account(
                name,
                settings.accounts[name],
                options,
                self.scheduler,
                self.faults,
                self.true_clock,
                self._check_intent,
            )
            for name, options in self.plan.options.items()
        }
        self.context = Context(
            settings=settings,
            database=self.database,
            seal=Seal(KEYS),
            clock=self.clock,
            jitter=self.source.random,
            threads=SimulatedThreads(self.scheduler),
        )
        self._connect()
        self.postmen = {
            name: Postman(account, self.context, self.snapshot, lambda: self.web)
            for name, account in self.accounts.items()
        }
        with self.faults.off():
            register_accounts(self.context)
        self._stack.enter_context(self.bus.installed(self.context))
        # What is set aside is a bug: nothing that the simulation sends may come to that.
        aside = mock.patch.object(backstop, "note_bug", self._note_bug)
        self._stack.enter_context(aside)
        self._stack.enter_context(mock.patch.object(ledger, "hold", self._hold))
        self.database.on_held = self._check_held
        self._stack.callback(self.scheduler.close)
        for order in self.plan.orders:
            self._plan_order(order)
        Happenings(self, TABLES).plan()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _note_bug(self, event: str, error: Exception, **what: str) -> None:
        self.scheduler.errors.append((f"{event} {what}", error))

    def empty(self) -> None:
        """Take all rows away."""
        # Down to files of no length: rows without an order come as they lie, which must not depend
        # on the seeds before. TRUNCATE would make each file anew, a hundred times slower; off are
        # the triggers that keep the logs append-only.
        names = TABLES.split(", ")
        deletes = "; ".join(f"DELETE FROM {name}" for name in names)
        self.sql.execute(f"SET session_replication_role = replica; {deletes}")
        self.sql.execute(f"VACUUM (TRUNCATE) {TABLES}")
        self.sql.execute(
            "RESET session_replication_role; "
            "SELECT setval(format('%I', sequencename)::regclass, 1, false) FROM pg_sequences"
        )

    def forget(self, settings: Settings) -> None:
        """Let the processes, which begin anew, have these settings and nothing in their memory."""
        context = self.context
        context.settings, context.clock_seen, context.told_from = settings, None, None
        context.next_beats.clear()
        self._connect()
        self._due_known = (-1, {})

    def _connect(self) -> None:
        """Give the processes' context adapters and budgets that know of nothing before."""
        context = self.context
        context._budgets.clear()
        for name in context.settings.accounts:
            context._providers[name] = self.accounts[name].connect()
            self.accounts[name].spend = context.budget(name).spend

    # What the store and the market do

    def _plan_order(self, order: PlannedOrder) -> None:
        for each in self.accounts.values():
            each.market.scenario_of_id[order.external_id] = order.scenario
        event = self.event_of(order)
        began = self.scheduler.now
        self.scheduler.at(began + order.at, lambda: self.check_out(event))
        for at in order.copies:
            self.scheduler.at(began + at, lambda: self._send(event))
        if order.is_changed_later:
            other = {**event, "expectedPrice": event["expectedPrice"] + 1}
            self.scheduler.at(began + order.at + 30, lambda: self.check_out(other, again=False))

    def event_of(self, order: PlannedOrder) -> dict[str, Any]:
        """Give the checkout as the store sends it, however often: at the price of the first."""
        if order.external_id not in self._events:
            self._events[order.external_id] = self._write_event(order)
        return self._events[order.external_id]

    def _write_event(self, order: PlannedOrder) -> dict[str, Any]:
        account = self.accounts.get(order.account) or next(iter(self.accounts.values()))
        item = list(account.market.items.values())[order.item]
        return {
            "externalId": order.external_id,
            "account": order.account,
            "catalogItemId": item.id,
            "marketHashName": item.name,
            "expectedPrice": max(item.price_cents + order.slack_cents, 1),
            "tradeUrl": TRADE_URL,
        }

    def check_out(self, event: dict[str, Any], *, again: bool = True) -> None:
        """Hand an event in as the store does: again until it is acknowledged."""
        self.scheduler.spawn(self.web, f"intake {event['externalId']}", lambda: receive())
        if again:
            retry_s = self.source.uniform(2, 10)

            def look() -> None:
                if event["externalId"] not in self.acknowledged:
                    self.check_out(event)

            self.scheduler.at(self.scheduler.now + retry_s, look)

        def receive() -> None:
            try:
                (result,) = intake.receive_raw(self.context, [event])
            except FulfillmentError:
                return
            if result.error is not None:
                self.refused_checkouts.append(event["externalId"])
            else:
                self.acknowledged.add(event["externalId"])
                for account in intake.new_accounts([result]):
                    hint(messages.DISPATCH, account)

    def _send(self, event: dict[str, Any]) -> None:
        self.bus.waiting.append(Message(messages.RECEIVE, [event], {}, None, self.scheduler.now, 0))

    # The loop

    def step(self) -> bool:
        """Do one thing, or let time pass to the next; False when nothing is left at all."""
        self.bus.listen()
        for account in self.accounts.values():
            account.market.timeline.run_due(1000)
        for postman in self.postmen.values():
            postman.collect()
        if self.faults.is_on and self.scheduler.is_busy():
            self._hurt_processes()
        others = [lambda m=m, w=w: self._start(m, w) for m in self.bus.due() for w in self._free()]
        if self.scheduler.step(others):
            return True
        return self._pass_time()

    def _free(self) -> list[Process]:
        """Give a worker that can take a message up now, the least busy one."""
        pairs = zip(self.workers, self.plan.worker_slots, strict=True)
        now = self.scheduler.now
        free = [
            worker
            for worker, slots in pairs
            if worker.frozen_until <= now and self.scheduler.count(worker) < slots
        ]
        return free[:1]

    def _start(self, message: Message, worker: Process) -> None:
        self.bus.waiting.remove(message)
        name = f"{worker.name} {message.name} {' '.join(message.orders)}"
        self.scheduler.spawn(worker, name, lambda: self.bus.run(message))

    def _pass_time(self) -> bool:
        now = self.scheduler.now
        dues = [self.scheduler.next_due(), self.bus.next_due() if self._free() else None]
        dues += [
            now + due - account.market.clock.now()
            for account in self.accounts.values()
            if (due := account.market.timeline.next_due) is not None
        ]
        known = [due for due in dues if due is not None]
        next_tick = max(self._last_tick + self.plan.tick_s, self._beat_dead_until)
        ours: dict[str, float] = {}
        if not known or min(known) >= next_tick:  # before that no tick comes, whatever is due
            ours = self._ours_due()
        if ours:
            known.append(max(now + min(ours.values()), next_tick))
        if not known:
            return False
        self.true_clock.advance(max(min(known) - now, 0.001))
        self._tick(ours, self.scheduler.now - now)
        return True

    def _ours_due(self) -> dict[str, float]:
        """Say in how many seconds which tick would find something."""
        ours = self.clock.now()
        if self._due_known[0] != self.database.transactions:
            lag = self.context.wallet_lag.total_seconds()
            (row,) = self.rows(_DUE, lag=lag, at_end=self._debited_at_end)
            known = {name: float(due) for name, due in row.items() if due is not None}
            self._due_known = (self.database.transactions, known)
        return {name: max(due - ours.timestamp(), 0) for name, due in self._due_known[1].items()}

    def _tick(self, due: dict[str, float], passed: float) -> None:
        """Let beat send the ticks that would find something; the others would find nothing."""
        now = self.scheduler.now
        names = [name for name, in_s in due.items() if in_s <= passed]
        if not names:
            return
        if self.faults.strikes("beat_dead", weight=0.3):
            self._beat_dead_until = now + self.source.uniform(60, 240)
            return
        self._last_tick = now
        for name in names:
            for _ in range(2 if self.faults.strikes("beat_doubled") else 1):
                if not self.bus.has(TICKS[name]):
                    self.bus.send_tick(TICKS[name])

    def _hurt_processes(self) -> None:
        if self.faults.source.random() > 0.02:
            return
        place = self.source.randrange(len(self.workers) + 1)
        process = self.workers[place] if place < len(self.workers) else self.web
        orders = self.scheduler.orders_of(process)
        if self.scheduler.count(process) == 0:
            return
        if self.faults.strikes("process_killed", orders=orders):
            self.replace(process, self.source.uniform(0, 20))
        elif self.faults.strikes("process_frozen", orders=orders):
            lease_s = self.context.lease.total_seconds()
            process.frozen_until = self.scheduler.now + lease_s * self.source.uniform(0.5, 4)

    def replace(self, process: Process, worker_pause_s: float) -> None:
        """Kill a process and start its successor, a worker after a pause."""
        self.scheduler.kill(process)
        fresh = Process(process.name)
        if process is self.web:
            self.web = fresh
        elif process in self.workers:
            self.workers[self.workers.index(process)] = fresh
            fresh.frozen_until = self.scheduler.now + worker_pause_s

    def end_faults(self) -> None:
        """Let everything work from now on; what was done stays done."""
        self.faults.is_on = False
        self.clock.offset = timedelta()
        self._beat_dead_until = 0.0

    # What is read

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.sql.execute(query, parameters).fetchall()

    def statuses(self, orders: Sequence[str]) -> list[str]:
        query = "SELECT status FROM orders WHERE external_id = ANY(%(ids)s)"
        return [row["status"] for row in self.rows(query, ids=list(orders))]

    def snapshot(self) -> list[dict[str, Any]]:
        """Read what no forged webhook may change."""
        return self.rows(
            "SELECT (SELECT sum(sequence) FROM orders) AS events, "
            "(SELECT count(*) FROM wallet_entries) AS entries, "
            "(SELECT count(*) FROM outbox_messages) AS messages"
        )

    def _check_intent(self, account: str, orders: list[str]) -> None:
        query = (
            "SELECT 1 FROM orders o JOIN attempts a ON a.order_id = o.id WHERE o.external_id = "
            "ANY(%(ids)s) AND a.account = o.account AND o.account = %(account)s "
            "AND o.status NOT IN ('received', 'quoted', 'awaiting_funds', 'reserved') "
            "AND a.posts > 0 AND a.body_sealed IS NOT NULL"
        )
        if len(self.rows(query, ids=orders, account=account)) != len(orders):
            self.unintended += orders

    def _hold(self, *args: Any) -> Any:
        self.database.has_held = True
        return _hold(*args)

    def _check_held(self) -> None:
        if "clock_jumped" in self.plan.kinds:
            return  # the age of a balance may be told wrong, see docs/reliability.md
        attempts = self.rows("SELECT * FROM attempts WHERE state IN ('reserved', 'sending')")
        for name in self.accounts:
            self.overcommitted += overcommitted(name, self.judge_of(name), attempts)

    def judge_of(self, name: str) -> Judge:
        """Give an account as the provider's own ledger has it now."""
        return self.accounts[name].judge(self.foreign_mills.get(name, 0))

    def note_scenarios(self) -> None:
        """Count the faults that a purchase's own way was."""
        for order in self.plan.orders:
            accounts = self.accounts.values()
            is_bought = any(order.external_id in a.market.orders for a in accounts)
            if order.kind in BY_SCENARIO and is_bought:
                self.faults.note(order.kind, [order.external_id])
