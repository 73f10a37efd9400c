"""Turns of the switch that come at once, and the last look at it before a request leaves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

from fulfillment import account_commands
from fulfillment.errors import NotAllowedNow, ProviderOutcomeUnknown
from fulfillment.providers.base import BeforeSend
from fulfillment.services import brakes, diagnosis, funds, submission
from fulfillment.services.context import Context
from fulfillment.services.operations import Check
from fulfillment.simulator.app import SimulatorOptions, running
from fulfillment.store import switches
from fulfillment.store.engine import Database, Session
from schemas.enums import AttemptState
from schemas.enums import OrderStatus as S
from schemas.orders import AccountView
from schemas.provider import OrderReport
from tests.conftest import CLIENT_ID, SECRET, MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    assert_invariants,
    attempt_of,
    checkout,
    entries,
    gather,
    receive,
    receive_one,
    rows,
    run_chain,
    run_sweep,
    take_figure,
    until,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
T = TypeVar("T")


def stop(context: Context) -> None:
    brakes.stop(context, "main", "suspicious prices", "anna@host")


def resume(context: Context) -> switches.Stop | None:
    return brakes.resume(context, "main", "prices are right", "anna@host")


def shown(context: Context) -> AccountView:
    (view,) = brakes.show_accounts(context)
    return view


def by_the_wallet(context: Context, session: Session) -> None:
    funds.record_figure(context, session, "main", funds.read_figure(context, "main"))


def by_another_person(context: Context, session: Session) -> None:
    by, reason, now = "bert@host", "not so fast", context.now()
    switches.turn(session, "main", is_stopped=True, by=by, reason=reason, now=now)


def meanwhile(
    context: Context, turn: Callable[[Context, Session], None], act: Callable[[], T]
) -> T:
    """Act while the switch is being turned, and give what came of it."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    with ThreadPoolExecutor(1) as executor:
        with context.database.transaction() as session:
            turn(context, session)
            flying = executor.submit(act)
            until(lambda: rows(context, waiting))
        return flying.result()


@pytest.mark.parametrize(
    ("anew", "by"), [(by_the_wallet, "wallet watch"), (by_another_person, "bert@host")]
)
def test_a_stop_that_nobody_has_looked_at_yet_is_not_resumed(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    anew: Callable[[Context, Session], None],
    by: str,
) -> None:
    """The person sees the stop before, and turns the switch when the new one is committed."""
    context = make_context(provider, main={"stop_at_unexplained_cents": 1000})
    take_figure(context)
    stop(context)
    clock.advance(10)
    provider.balance_mills -= 5_000_000
    ended = meanwhile(context, anew, lambda: resume(context))
    after = shown(context)

    assert ended is None
    assert after.stopped_by == by
    assert resume(context)
    assert shown(context).stopped_at is None


def test_the_command_says_that_it_did_not_resume_what_was_stopped_anew(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_commands, "make_context", lambda: context)
    stop(context)

    with pytest.raises(
        NotAllowedNow, match=r"main not resumed, .* by bert@host: not so fast; look"
    ):
        meanwhile(context, by_another_person, lambda: account_commands.resume("main"))


def test_who_stops_an_account_waits_for_who_is_stopping_it_just_now(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, main={"stop_at_unexplained_cents": 1000})
    take_figure(context)
    clock.advance(10)
    provider.balance_mills -= 5_000_000
    meanwhile(context, by_the_wallet, lambda: stop(context))

    query = "SELECT by FROM account_switches ORDER BY id"
    assert [row["by"] for row in rows(context, query)] == ["wallet watch", "anna@host"]


class SlowToSend(FakeProvider):
    """Something happens between the intent to buy and the last look before the first byte."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] = lambda: None

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        self.meanwhile()
        return super().purchase(body, before_send)


@pytest.fixture
def slow(make_context: MakeContext) -> tuple[Context, SlowToSend]:
    provider = SlowToSend()
    return make_context(provider), provider


def test_what_has_not_left_when_the_account_is_stopped_keeps_its_money_and_waits(
    slow: tuple[Context, SlowToSend], clock: FakeClock
) -> None:
    context, provider = slow
    provider.meanwhile = lambda: stop(context)
    order = receive_one(context)
    run_chain(context)
    provider.meanwhile = lambda: None
    put_off, attempt = again(context, order), attempt_of(context, order)
    note = view(context, order).timeline[-1].note
    for _ in range(5):
        clock.advance(11)
        run_sweep(context)
    while_stopped = list(provider.bodies), [read for read in provider.reads if "order" in read]
    held = entries(context, order)
    resume(context)
    clock.advance(11)
    run_sweep(context)

    assert note == (
        "nothing was bought yet: the account was stopped by anna@host, before the request"
    )
    assert (attempt.state, attempt.unknown_since, attempt.posts) == (AttemptState.SENDING, None, 0)
    assert put_off.next_attempt_at is not None
    assert (put_off.next_attempt_at - put_off.updated_at) == brakes.STOPPED_GAP
    assert while_stopped == ([], [])
    assert held == [("hold", PRICE_MILLS)]
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert_invariants(context)


def test_a_repetition_that_has_not_left_when_the_account_is_stopped_stays_unknown(
    slow: tuple[Context, SlowToSend], clock: FakeClock
) -> None:
    context, provider = slow
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    order = receive_one(context)
    run_chain(context)
    provider.meanwhile = lambda: stop(context)
    clock.advance(3)
    run_sweep(context)
    unknown_since = attempt_of(context, order).unknown_since
    clock.advance(31)
    run_sweep(context)

    assert unknown_since is not None
    assert len(provider.bodies) == 1
    assert again(context, order).status is S.ACCEPTED  # it was looked up
    assert_invariants(context)


class WatchedSession(Session):
    """Notes what is read in place of what is written."""

    statements: list[str]

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        self.statements.append(" ".join(statement.split()))
        return super().execute(statement, parameters)


class WatchedDatabase(Database):
    """The same database; its sessions note their statements here."""

    def __init__(self, database: Database) -> None:
        self.engine = database.engine
        self.statements: list[str] = []

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            watched = WatchedSession(session.connection)
            watched.statements = self.statements
            yield watched


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_switch_is_looked_at_again_only_where_a_connection_had_to_be_made(
    make_context: MakeContext, is_kept: bool
) -> None:
    options = SimulatorOptions(
        client_id=CLIENT_ID, client_secret=SECRET, port=0, reusable_items=True
    )
    with running(options) as url:
        simulator = Simulator(url, CLIENT_ID, SECRET)
        context = make_context(base_url=url, main={"max_submits_in_flight": 1})
        placed = receive(context, *(simulator.checkout("delivered") for _ in range(4)))
        batch = gather(context)
        assert batch is not None
        if not is_kept:
            context.provider("main").close()
        database = WatchedDatabase(context.database)
        submission.submit_orders(replace(context, database=database), batch)
        simulator.close()

    looks = [
        each
        for each in database.statements
        if each.startswith("SELECT DISTINCT ON (account) id, account, at")
    ]
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}
    assert len(looks) == (0 if is_kept else 1)


class Kept(FakeProvider):
    """Has a connection that is kept, so that nothing is waited for before a purchase leaves."""

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        return super().purchase(body, before_send and partial(before_send, is_at_once=True))


def test_what_waits_for_a_neighbours_lookup_is_begun_only_after_it(
    make_context: MakeContext, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Kept()
    context = make_context(provider)
    told_early, plain = receive(context, checkout(), checkout())
    with monkeypatch.context() as patched:
        patched.setattr("tests.support.submit", lambda *_: False)  # the worker died before it
        run_chain(context)
    early = "UPDATE orders SET told_early_at = %(now)s WHERE id = %(id)s RETURNING 1"
    rows(context, early, now=clock.now(), id=told_early.id)
    clock.advance(100)

    def stop_meanwhile(what: str) -> None:
        if told_early.external_id in what:
            clock.advance(15)
            stop(context)

    provider.on_read = stop_meanwhile
    run_sweep(context)

    assert again(context, plain).status is S.RESERVED
    assert provider.bodies == []


def test_threads_that_come_while_one_looks_share_the_next_look(context: Context) -> None:
    database = WatchedDatabase(context.database)
    look = brakes.LastLook(replace(context, database=database), "main")
    with ThreadPoolExecutor(8) as executor:
        with context.database.transaction() as session:
            session.execute("LOCK TABLE account_switches IN ACCESS EXCLUSIVE MODE")
            flying = [executor.submit(look.why_not) for _ in range(8)]
            until(lambda: rows(context, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            switches.turn(
                session, "main", is_stopped=True, by="anna", reason="now", now=context.now()
            )
        answers = {each.result() for each in flying}

    assert answers == {"the account was stopped by anna"}
    assert 1 <= len(database.statements) <= 3


def test_where_nobody_can_ask_about_the_switch_nothing_leaves(context: Context) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    look = brakes.LastLook(replace(context, database=away), "main")

    assert "nobody can say whether the account is stopped" in str(look.why_not())


@pytest.mark.parametrize(
    ("account", "by", "is_ok", "told"),
    [
        (None, "anna@host", True, "paused with all since "),
        ("main", "anna@host", True, "paused since "),
        ("main", "wallet watch", False, "paused since "),
    ],
)
def test_the_doctor_tells_who_has_stopped_an_account_and_why(
    context: Context, account: str | None, by: str, is_ok: bool, told: str
) -> None:
    brakes.stop(context, account, "suspicious prices", by)

    (check,) = stops_told(context)

    assert check.is_ok is is_ok
    assert check.detail.startswith(f"nothing new is bought: {told}")
    assert check.detail.endswith(f" by {by}: suspicious prices")


def test_whoever_stops_what_is_stopped_is_given_the_stop_that_is_replaced(
    context: Context,
) -> None:
    first = brakes.stop(context, "main", "suspicious prices", "anna@host")
    of_all = brakes.stop(context, None, "drill", "ben@host")
    second = brakes.stop(context, "main", "their ticket 5", "ben@host")

    assert (first, of_all) == (None, None)
    assert second is not None
    assert (second.by, second.reason) == ("anna@host", "suspicious prices")
    assert second.at == context.now()


def test_the_doctor_tells_of_an_automatic_pause_and_of_no_account_that_buys(
    context: Context,
) -> None:
    before = stops_told(context)
    pause = "UPDATE accounts SET paused_until = now() + interval '1 day', pause_reason = 'outage' "
    rows(context, pause + "WHERE name = 'main' RETURNING 1")

    (check,) = stops_told(context)

    assert before == []
    assert check.is_ok
    assert check.detail.endswith(": outage")


def stops_told(context: Context) -> list[Check]:
    return [c for c in diagnosis.examine(context.settings) if c.name == "buying at main"]
