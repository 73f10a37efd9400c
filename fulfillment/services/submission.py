"""Submit a batch's reserved orders concurrently, and resolve submits of unknown outcome.

Intents are committed before a byte leaves; outcomes are written as they arrive, grouped by a few
tens of milliseconds, so that a slow answer delays only its own order.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from msgspec.structs import replace

from fulfillment.log import get_logger
from fulfillment.providers.base import Provider
from fulfillment.services import backstop, outages
from fulfillment.services.answers import Answer, Answered, NotSent, Unknown, ask
from fulfillment.services.beginning import Begun, More, begin_at_once, let_stale_go, to_submit
from fulfillment.services.brakes import LastLook
from fulfillment.services.budget import Grant
from fulfillment.services.claiming import (
    SUBMIT,
    KeptClaim,
    is_any_left,
    take_over,
)
from fulfillment.services.context import Context
from fulfillment.services.dispatch import make_batch, overdue_refusal
from fulfillment.services.intents import Task, begin, committed, hold_back_within
from fulfillment.services.merchants import keep_own
from fulfillment.services.outcomes import write_outcomes
from fulfillment.services.purchases import Watch, go_ahead
from fulfillment.services.recovery import search_first
from fulfillment.services.routes import apply_ours
from fulfillment.services.sharing import leave, room
from fulfillment.services.threads import Share
from fulfillment.services.unknowns import Step, next_step
from fulfillment.store import claims, ledger
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Attempt, Order
from schemas.enums import Source
from schemas.messages import Batch

log = get_logger(__name__)

#: How long to gather answers that come together, so that they share a transaction.
_GROUP_S = 0.02
#: For so many threads of a process one may wait until its account has a slot.
_THREADS_A_PLACE = 4
#: So often what somebody else has locked is tried again.
_LOCKED_S = 0.2


def submit_orders(context: Context, batch: Batch) -> Batch | None:
    """Submit the batch; of one that is shared, the next orders as long as there are any.

    Gives those that were this copy's, None where others have them all, or where this process is at
    work on the batch already.
    """
    account = batch["account"]
    limit = context.account(account).max_submits_in_flight
    submitted: list[Order] = []
    waits_until_s = None
    with (
        context.threads.named(f"submit {batch['token']}") as is_only,
        # Whoever has a slot sends at once: no intent is committed that would wait for another one.
        context.threads.share(f"submit {account}", limit) as own_slots,
        # The runs of one account are not to take all threads while they wait for them.
        context.threads.share(f"wait to submit {account}", _places(context)) as places,
    ):
        if batch.get("is_copy") and not is_only:
            return None
        slots = _Slots(own_slots, places)
        is_shared = len(batch["ids"]) > room(context, batch)
        while left := len(batch["ids"]) - len(submitted):
            if context.threads.is_ending:
                if not batch.get("is_copy"):
                    leave(context, batch)
                break
            free = slots.take(min(limit, left))
            # Of copies one waits, see `_wait`: it holds up nothing that was left to it.
            if not (free or batch.get("is_copy") or slots.may_wait()):
                leave(context, batch)
                break
            if is_shared and not free:
                if not _wait(context, batch, own_slots):
                    break
                continue
            turn = _submit(context, batch, slots, free, is_shared=is_shared)
            if turn is None:
                now_s = context.clock.monotonic()
                waits_until_s = waits_until_s or now_s + context.lease.total_seconds()
                is_waited_for = not batch.get("is_copy") and is_any_left(context, batch)
                if not is_waited_for or now_s >= waits_until_s:  # by then it is the sweep's
                    break
                context.threads.pause(_LOCKED_S * (1 + context.jitter()))
                continue
            waits_until_s = None
            submitted += turn.orders
            if turn.is_stopped or context.threads.is_ending:
                leave(context, batch)
            if not turn.is_to_be_continued or context.threads.is_ending:
                break
    return make_batch(account, batch["token"], submitted) if submitted else None


class _Slots:
    """A run's slots, and its place among the account's runs that wait for one."""

    def __init__(self, slots: Share, places: Share) -> None:
        self.take = slots.take
        self.give_back = slots.give_back
        self._wait = slots.wait
        self._places = places
        self._has_place = False

    def may_wait(self) -> bool:
        """Say whether there is a place; who has one keeps it to the end."""
        self._has_place = self._has_place or bool(self._places.take(1))
        return self._has_place

    def wait(self) -> bool:
        """Wait for a slot; say no at once where there is no place to wait."""
        if not self.may_wait():
            return False
        self._wait()
        return True


def _places(context: Context) -> int:
    return max(1, context.settings.worker_threads // _THREADS_A_PLACE)


def _wait(context: Context, batch: Batch, slots: Share) -> bool:
    """Wait for a slot, where this worker is to have one at all; say so.

    Of all copies one waits: the process's other threads are for other accounts. It waits for half
    of the slots, which are free when those at work here have no more to send: with each slot by
    itself orders would be taken one by one.
    """
    if not batch.get("is_copy"):
        slots.wait()
        return True
    size = min(1, context.settings.worker_threads // _THREADS_A_PLACE)
    with context.threads.share("copies that wait", size) as places:
        if not places.take(1):
            return False
        limit = context.account(batch["account"]).max_submits_in_flight
        slots.wait(max(1, limit // 2))
    return True


@dataclass(frozen=True, slots=True)
class _Turn:
    """Which orders were dealt with, and what becomes of the batch's others."""

    orders: Sequence[Order]
    #: Nothing more of it is to be sent now, by anybody.
    is_stopped: bool
    is_to_be_continued: bool


def _submit(
    context: Context, batch: Batch, slots: _Slots, free: int, *, is_shared: bool
) -> _Turn | None:
    """Submit the batch, the first orders of it in the `free` slots that were taken for it.

    Of a shared one no others, and then more as slots become free. None where none could be taken.
    """
    at_once = None

    def begin(session: Session, claim: KeptClaim) -> None:
        nonlocal at_once
        let_stale_go(context, session, claim)
        at_once = begin_at_once(context, session, claim, free)

    is_through = True
    with take_over(context, batch, SUBMIT, begin, free if is_shared else None) as claim:
        if claim is None:
            slots.give_back(free)
            return None
        begun = at_once.tasks if at_once else []
        committed(begun)
        slots.give_back(free - len(begun))
        left = {order.id for order in claim.orders} - {task.order.id for task in begun}
        # What was begun with the claim is sent, whatever becomes of the others.
        look = partial(_find_due, context, claim, left)
        found, has_failed = backstop.left_to_others(look, "submit.not_looked_at")
        due = found or []
        if claim.purchases.are_broken:
            is_through = _go_on_broken(context, claim, due, slots)
        else:
            watch = Watch(context, claim)
            may_grow = claim.may_grow and not has_failed
            more = More(context, batch, claim, watch) if may_grow else None
            is_through = _go_on(context, claim, at_once, due, slots, watch, more)
        is_through &= not has_failed
        # Who slept knows nothing of the others, which somebody else may be at work on.
        is_stopped = not is_through and claim.is_held
    return _Turn(claim.orders, is_stopped, is_to_be_continued=is_through and claim.may_grow)


def _find_due(context: Context, claim: KeptClaim, left: Set[int]) -> list[Order]:
    """Give which of these are to be bought or looked up, after what must come before that."""
    attempts = claim.attempts
    members = [order for order in to_submit(claim.orders) if order.id in left]
    members = keep_own(context, claim, members)
    members = search_first(context, claim, members)
    unknown = {id_ for id_, attempt in attempts.items() if attempt.unknown_since is not None}
    late = [o for o in members if o.id not in unknown and o.submit_by <= context.now()]
    _refuse_late(context, late, claim)
    over = {order.id for order in late}
    return [o for o in members if o.id not in over and o.id in attempts]


def _go_on(
    context: Context,
    claim: KeptClaim,
    at_once: Begun | None,
    due: Sequence[Order],
    slots: _Slots,
    watch: Watch,
    more: More | None = None,
) -> bool:
    """Take what is due as far as the budget reaches; say whether nothing stopped it."""
    grants: dict[Purpose, Grant] = {}
    afford = partial(_afford, context, claim, due, grants)
    afforded, has_failed = backstop.left_to_others(afford, "submit.not_afforded")
    waiting = afforded or deque()
    if watch.is_ahead:  # a repetition that fails again would for ever be the one that goes ahead
        waiting = deque(sorted(waiting, key=lambda o: claim.attempts[o.id].posts))
    more = None if has_failed else more
    try:
        is_through = _run(context, claim, at_once, waiting, grants, slots, watch, more)
    finally:
        later = [at_once.grant] if at_once else []
        for grant in [*grants.values(), *later, *(more.grants if more else ())]:
            grant.give_back()
    return is_through and not has_failed


def _go_on_broken(context: Context, claim: KeptClaim, due: Sequence[Order], slots: _Slots) -> bool:
    """Look up what may be bought; where the pause of purchases is over, let one go ahead.

    Says whether nothing stopped that.
    """
    account, attempts = claim.account, claim.attempts
    policy = context.provider(account).after_unknown
    is_resting = claim.purchases.are_paused(context.now())
    lookups = [
        order
        for order in due
        if (attempt := attempts[order.id]).unknown_since is not None
        and (is_resting or next_step(policy, attempt) is Step.LOOK_UP)
    ]
    looked_up = {order.id for order in lookups}
    rest = [order for order in due if order.id not in looked_up]
    is_through = not lookups or _go_on(context, claim, None, lookups, slots, Watch(context, claim))
    until = None
    if rest and is_through and not is_resting:
        until = go_ahead(context, account)
    if until is None:
        _hold_back(context, claim, rest)
        return is_through
    watch = Watch(context, claim, until)
    is_through = _go_on(context, claim, None, rest, slots, watch)
    watch.end()
    return is_through


def _afford(
    context: Context, claim: KeptClaim, due: Sequence[Order], grants: dict[Purpose, Grant]
) -> deque[Order]:
    """Take the batch's requests out of the budget: for the unknown, then for the new.

    Gives the orders that they suffice for, of each kind the longest due; what was granted is put
    into `grants`, also where this fails then. The others are left to the next sweep.
    """
    account, attempts = claim.account, claim.attempts
    provider = context.provider(account)
    waiting: deque[Order] = deque()
    for purpose in (Purpose.URGENT, Purpose.SUBMIT):
        members = [order for order in due if _purpose(attempts[order.id]) is purpose]
        members.sort(key=lambda o: (o.next_attempt_at or o.created_at, o.id))
        costs = [_cost(provider, attempts[order.id]) for order in members]
        grants[purpose] = grant = context.budget(account).take(purpose, sum(costs))
        totals = zip(members, accumulate(costs), strict=True)
        waiting += [order for order, total in totals if total <= grant.size]
    afforded = {order.id for order in waiting}
    _put_off(context, claim, [order for order in due if order.id not in afforded])
    return waiting


def _purpose(attempt: Attempt) -> Purpose:
    return Purpose.SUBMIT if attempt.unknown_since is None else Purpose.URGENT


def _cost(provider: Provider, attempt: Attempt) -> int:
    """Count the requests of an attempt's next step; a refused replay is looked up besides."""
    if next_step(provider.after_unknown, attempt) is Step.LOOK_UP:
        return 1
    return provider.requests_per_purchase + (attempt.unknown_since is not None)


@repeated
def _refuse_late(context: Context, late: list[Order], claim: KeptClaim) -> None:
    if not late:
        return
    now = context.now()
    ends = [overdue_refusal(order, now, Source.SUBMIT, claim.name) for order in late]
    moves = [replace(end, unless_told=True) for end in ends if end]
    with context.database.transaction() as session:
        moved = apply_ours(session, moves, claim, now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in moved], now)


@repeated
def _put_off(context: Context, claim: KeptClaim, rest: list[Order]) -> None:
    """Leave orders to the next sweep; they keep their places."""
    if rest:
        with context.database.transaction() as session:
            claims.release(session, [order.id for order in rest], claim.name)


@repeated
def _hold_back(context: Context, claim: KeptClaim, rest: Sequence[Order]) -> None:
    if rest:
        with context.database.transaction() as session:
            hold_back_within(session, claim, rest, context.now())


def _run(
    context: Context,
    claim: KeptClaim,
    at_once: Begun | None,
    waiting: deque[Order],
    grants: Mapping[Purpose, Grant],
    slots: _Slots,
    watch: Watch,
    more: More | None,
) -> bool:
    """Keep up to the allowed number of requests in flight; say whether nothing stopped it.

    At an account that did not answer last, one goes ahead; each answer then doubles what may fly.
    Where all may, and none waits, `more` of them are begun.
    """
    limit = context.account(claim.account).max_submits_in_flight
    allowed = 1 if claim.has_failed or watch.is_ahead else limit
    flying: dict[Future[Answer], Task] = {}
    look = LastLook(context, claim.account)
    unwritten: list[tuple[Order, Answer]] = []
    is_stopped = False

    def write(answers: Sequence[tuple[Order, Answer]]) -> None:
        write_outcomes(context, claim, answers)

    with context.threads.pool(limit, "submit") as executor:

        def send(tasks: Sequence[Task], taken: Grant | None = None) -> None:
            for task in tasks:
                known = more.grant_of.get(task.order.id) if more else None
                grant = taken or known or grants[_purpose(task.attempt)]
                future = executor.submit(_ask, context, claim, task, grant, look)
                future.add_done_callback(lambda _: slots.give_back())
                flying[future] = task

        def is_more() -> bool:
            return more is not None and not more.is_over and allowed == limit and not is_stopped

        if at_once:
            send(at_once.tasks, at_once.grant)
        while flying or (waiting and not is_stopped) or is_more():
            is_stopped |= context.threads.is_ending
            if more and is_more() and not waiting and (free := slots.take(limit - len(flying))):
                found = more.begin(free)
                slots.give_back(free - (len(found.tasks) if found else 0))
                if found:
                    send(found.tasks, found.grant)
                    waiting += found.following
                    claim.comes_on = True
                elif not flying:
                    more.is_over = True  # whoever has the rest locked may be waited for
            most = 0 if is_stopped else min(allowed - len(flying), len(waiting))
            if most > 0 and (free := slots.take(most)):
                next_ones = [waiting.popleft() for _ in range(free)]
                group = [order for order in next_ones if claim.holds(order.id)]
                begun, has_failed = backstop.left_to_others(
                    partial(begin, context, claim, group, is_ahead=watch.is_ahead),
                    "submit.not_begun",
                )
                begun = begun or []
                slots.give_back(free - len(begun))
                send(begun)
                claim.comes_on |= bool(begun)
                is_stopped |= has_failed  # what is under way is heard all the same
            if not flying:
                if (waiting and not is_stopped) or is_more():
                    is_stopped |= not slots.wait() or not claim.is_held
                continue
            answers = _collect(context, flying, is_hurried=bool(more and more.is_locked))
            if not answers:
                continue
            _, has_failed = backstop.left_to_others(partial(write, answers), "submit.not_written")
            if has_failed:
                unwritten += answers
            # What was not begun keeps its hold and becomes due again.
            is_stopped |= has_failed or _heed(context, watch, answers, is_slow=allowed < limit)
            is_stopped |= not claim.is_held
            if not is_stopped and not watch.is_ahead:
                allowed = min(2 * allowed, limit)
    _write_again(write, unwritten)
    _put_off(context, claim, list(waiting))
    return not is_stopped


def _write_again(
    write: Callable[[Sequence[tuple[Order, Answer]]], None],
    unwritten: Sequence[tuple[Order, Answer]],
) -> None:
    """Write what could not be written before: together, and each by itself where that fails.

    One that somebody has locked for long takes no other with it; a second that fails is no longer
    about an order, and the rest is looked up when it is due.
    """

    def has_failed(answers: Sequence[tuple[Order, Answer]]) -> bool:
        act = partial(backstop.apart, write, answers, lambda each: each[0].external_id)
        return backstop.left_to_others(act, "submit.not_written")[1]

    if unwritten and has_failed(unwritten) and len(unwritten) > 1:
        failures = 0
        for each in unwritten:
            failures += has_failed([each])
            if failures > 1:
                break


def _heed(
    context: Context, watch: Watch, answers: Sequence[tuple[Order, Answer]], *, is_slow: bool
) -> bool:
    """Note what the answers tell of the account; say whether to stop here.

    Also where that cannot be kept, which costs no answer that is under way.
    """

    def note() -> bool:
        if watch.heed(answers):
            return True
        if is_slow and not watch.is_ahead and any(isinstance(a, Answered) for _, a in answers):
            outages.works(context, watch.account)
        return False

    stops, has_failed = backstop.left_to_others(note, "submit.not_heeded")
    return has_failed or bool(stops)


def _collect(
    context: Context, flying: dict[Future[Answer], Task], *, is_hurried: bool
) -> list[tuple[Order, Answer]]:
    """Wait for an answer, and a moment longer for those that come with it.

    Who is hurried, because there is more to try, may get none.
    """
    done = context.threads.first_done(flying, _GROUP_S, _LOCKED_S if is_hurried else None)
    return [(flying.pop(future).order, future.result()) for future in done]


def _ask(context: Context, claim: KeptClaim, task: Task, grant: Grant, look: LastLook) -> Answer:
    if not claim.holds(task.order.id):
        reason = "the claim was lost before the request"
        # That this request was not sent says nothing about an earlier one.
        return NotSent(reason) if task.attempt.unknown_since is None else Unknown(reason)

    def act() -> Answer:
        with grant:
            return ask(
                context,
                task.order,
                task.attempt,
                task.body,
                task.step,
                lambda: claim.holds(task.order.id),
                look.why_not,
                task.made_at_s,
            )

    return backstop.alone(act, task.order.external_id, Unknown)
