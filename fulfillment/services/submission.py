"""Submit a batch's reserved orders concurrently, and resolve submits of unknown outcome.

Intents are committed before a byte leaves; outcomes are written as they arrive, grouped by a few
tens of milliseconds, so that a slow answer delays only its own order.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate

from msgspec.structs import replace

from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.providers.base import Provider
from fulfillment.services import backstop, outages
from fulfillment.services.answers import Answer, Answered, NotSent, Unknown, ask
from fulfillment.services.brakes import LastLook
from fulfillment.services.budget import Grant
from fulfillment.services.claiming import (
    SUBMIT,
    WALLET,
    KeptClaim,
    claim_name,
    is_any_left,
    is_one_free,
    take_more,
    take_over,
)
from fulfillment.services.context import Context
from fulfillment.services.dispatch import make_batch, overdue_refusal
from fulfillment.services.intents import Task, begin, begin_within, committed, hold_back_within
from fulfillment.services.merchants import keep_own
from fulfillment.services.outcomes import write_outcomes
from fulfillment.services.purchases import Watch, go_ahead
from fulfillment.services.recovery import search_first
from fulfillment.services.routes import HELD_FOR, apply_ours
from fulfillment.services.sharing import room
from fulfillment.services.threads import Share
from fulfillment.services.unknowns import Step, next_step
from fulfillment.store import claims, ledger
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Attempt, Order
from schemas.enums import OrderStatus, Source
from schemas.messages import Batch

log = get_logger(__name__)

#: How long to gather answers that come together, so that they share a transaction.
_GROUP_S = 0.02
#: So many at the most are begun together with the claim where a rate budget bounds the requests.
_FEW = 4


@dataclass(frozen=True, slots=True)
class _Begun:
    """What was begun together with the claim, and what is next; the requests taken for both."""

    tasks: Sequence[Task]
    grant: Grant
    following: Sequence[Order] = ()

    @property
    def order_ids(self) -> set[int]:
        return {task.order.id for task in self.tasks} | {order.id for order in self.following}


def submit_orders(context: Context, batch: Batch) -> Batch | None:
    """Submit the batch; of one that is shared, the next orders as long as there are any.

    Gives those that were this copy's, None where others have them all, or where this process is at
    work on the batch already.
    """
    account = batch["account"]
    limit = context.account(account).max_submits_in_flight
    submitted: list[Order] = []
    with (
        context.threads.named(f"submit {batch['token']}") as is_only,
        # Whoever has a slot sends at once: no intent is committed that would wait for another one.
        context.threads.share(f"submit {account}", limit) as slots,
    ):
        if batch.get("is_copy") and not is_only:
            return None
        is_shared = len(batch["ids"]) > room(context, batch)
        while left := len(batch["ids"]) - len(submitted):
            free = slots.take(min(limit, left))
            if is_shared and not free:
                if batch.get("is_copy"):
                    break
                slots.wait()
                continue
            taken, is_through = _submit(context, batch, slots, free, is_shared=is_shared)
            if not taken:
                if batch.get("is_copy") or not is_one_free(context, batch):
                    break
                continue
            submitted += taken
            if not is_through:
                _leave(context, batch)
                break
    return make_batch(account, batch["token"], submitted) if submitted else None


@repeated
def _leave(context: Context, batch: Batch) -> None:
    """Leave what nobody has taken of the batch to the next sweep."""
    with context.database.transaction() as session:
        claims.release(session, batch["ids"], claim_name(batch["token"], WALLET))


def _submit(
    context: Context, batch: Batch, slots: Share, free: int, *, is_shared: bool
) -> tuple[Sequence[Order], bool]:
    """Submit the batch, the first orders of it in the `free` slots that were taken for it.

    Of a shared one no others, and then more as slots become free. Gives which they were, and
    whether nothing stopped it.
    """
    at_once = None

    def begin(session: Session, claim: KeptClaim) -> None:
        nonlocal at_once
        at_once = _begin_at_once(context, session, claim, free)

    is_through = True
    with take_over(context, batch, SUBMIT, begin, free if is_shared else None) as claim:
        if claim is None:
            slots.give_back(free)
            return (), True
        begun = at_once.tasks if at_once else []
        committed(begun)
        slots.give_back(free - len(begun))
        attempts = claim.attempts
        left = {order.id for order in claim.orders} - {task.order.id for task in begun}
        members = [order for order in _to_submit(claim.orders) if order.id in left]
        members = keep_own(context, claim, members)
        members = search_first(context, claim, members)
        unknown = {id_ for id_, attempt in attempts.items() if attempt.unknown_since is not None}
        late = [o for o in members if o.id not in unknown and o.submit_by <= context.now()]
        _refuse_late(context, late, claim)
        over = {order.id for order in late}
        due = [o for o in members if o.id not in over and o.id in attempts]
        if claim.purchases.are_broken:
            is_through = _go_on_broken(context, claim, due, slots)
        else:
            watch = Watch(context, claim)
            more = _More(context, batch, claim, watch) if is_shared else None
            is_through = _go_on(context, claim, at_once, due, slots, watch, more)
    return claim.orders, is_through


def _go_on(
    context: Context,
    claim: KeptClaim,
    at_once: _Begun | None,
    due: Sequence[Order],
    slots: Share,
    watch: Watch,
    more: "_More | None" = None,
) -> bool:
    """Take what is due as far as the budget reaches; say whether nothing stopped it."""
    waiting, grants = _afford(context, claim.account, due, claim.attempts)
    afforded = {order.id for order in waiting}
    _put_off(context, claim, [order for order in due if order.id not in afforded])
    if watch.is_ahead:  # a repetition that fails again would for ever be the one that goes ahead
        waiting = deque(sorted(waiting, key=lambda o: claim.attempts[o.id].posts))
    is_through = _run(context, claim, at_once, waiting, grants, slots, watch, more)
    later = [at_once.grant] if at_once else []
    for grant in [*grants.values(), *later, *(more.grants if more else ())]:
        grant.give_back()
    return is_through


class _More:
    """Takes the next orders of a shared batch into the run that has slots for them.

    What cannot be sent without a look at anything else is left to the next sweep.
    """

    def __init__(self, context: Context, batch: Batch, claim: KeptClaim, watch: Watch) -> None:
        self._context = context
        self._batch = batch
        self._claim = claim
        self._watch = watch
        self.is_over = False
        self.grants: list[Grant] = []
        #: Of what waits for a slot, by the order's id.
        self.grant_of: dict[int, Grant] = {}

    def begin(self, free: int) -> _Begun | None:
        """Commit the intents of up to so many together with their claim.

        None where all that are left are locked, or where it `is_over`: none are left, none that
        could be sent, or that fails: what is under way is to be written all the same.
        """
        try:
            return self._begin(free)
        except ServerUnreachable as error:
            log.warning("submit.no_more", reason=str(error))
        except Exception as error:  # of one of these orders; whoever comes to it next tells of it
            backstop.note_bug("submit.no_more", error)
        self.is_over = True
        return None

    def _begin(self, free: int) -> _Begun | None:
        while not self.is_over:
            group, begun = self._take(free)
            if group is None:
                self.is_over = not is_any_left(self._context, self._batch)
                break
            self._watch.hear(group)
            if begun is None:
                is_held_up = group.has_failed or group.purchases.are_broken
                # Of what is fresh, the budget did not reach for any.
                self.is_over = is_held_up or bool(
                    _fresh(group, self._context.now(), is_priced_now=True)
                )
                continue
            self.grants.append(begun.grant)
            self.grant_of |= {order.id: begun.grant for order in begun.following}
            committed(begun.tasks)
            if begun.tasks or begun.following:
                return begun
        return None

    def _take(self, free: int) -> tuple[KeptClaim | None, _Begun | None]:
        begun: _Begun | None = None

        def begin(session: Session, group: KeptClaim) -> None:
            nonlocal begun
            begun = _begin_at_once(self._context, session, group, free, are_alike=True)
            kept = begun.order_ids if begun else set()
            claims.release(session, [id_ for id_ in group.order_ids if id_ not in kept], group.name)

        # To take each alone would cost more than to send it does; few are to wait for a slot.
        limit = max(free, room(self._context, self._batch) // 4)
        return take_more(self._context, self._batch, self._claim, limit, begin), begun


def _go_on_broken(context: Context, claim: KeptClaim, due: Sequence[Order], slots: Share) -> bool:
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


def _begin_at_once(
    context: Context, session: Session, claim: KeptClaim, free: int, *, are_alike: bool = False
) -> _Begun | None:
    """Commit the first intents together with the claim, where nothing is to be looked at before.

    Where some may be of unknown outcome, and not all are alike, those take their requests first.
    """
    budget = context.budget(claim.account)
    if claim.has_failed or claim.purchases.are_broken:
        return None
    now = context.now()
    fresh = _fresh(claim, now, is_priced_now=are_alike)
    if not fresh[:free]:
        return None
    if budget.is_limited and not are_alike and not len(fresh) == len(claim.orders) <= _FEW:
        return None
    wanted = fresh if are_alike else fresh[:free]
    following = wanted[free:]
    cost = context.provider(claim.account).requests_per_purchase
    if not budget.seems_enough(session, Purpose.SUBMIT, len(wanted) * cost):
        return None
    begun = begin_within(context, session, claim, fresh[:free], now)
    # Last: its row is waited for. What it does not suffice for after all is not sent.
    count = len(begun) + len(following)
    return _Begun(begun, budget.take_within(session, Purpose.SUBMIT, count * cost), following)


def _fresh(claim: KeptClaim, now: datetime, *, is_priced_now: bool) -> list[Order]:
    """Give the orders that are to be bought, and about which nothing is to be found out before.

    With `is_priced_now` without those that are to be priced afresh.
    """
    priced_after = now - HELD_FOR if is_priced_now else datetime.min.replace(tzinfo=UTC)
    if any(order.is_doubted(claim.doubt) for order in claim.orders):
        return []
    return [
        order
        for order in _to_submit(claim.orders)
        if order.submit_by > now
        and (a := claim.attempts.get(order.id))
        and a.unknown_since is None
        and a.created_at > priced_after
        and order.was_searched(claim.doubt)
    ]


def _to_submit(members: Sequence[Order]) -> list[Order]:
    statuses = (OrderStatus.RESERVED, OrderStatus.SUBMITTING)
    return [order for order in members if order.status in statuses and not order.is_waiting]


def _afford(
    context: Context, account: str, due: Sequence[Order], attempts: Mapping[int, Attempt]
) -> tuple[deque[Order], dict[Purpose, Grant]]:
    """Take the batch's requests out of the budget: for the unknown, then for the new.

    Gives the orders that they suffice for, of each kind the longest due, and what was granted.
    """
    provider = context.provider(account)
    waiting: deque[Order] = deque()
    grants: dict[Purpose, Grant] = {}
    for purpose in (Purpose.URGENT, Purpose.SUBMIT):
        members = [order for order in due if _purpose(attempts[order.id]) is purpose]
        members.sort(key=lambda o: (o.next_attempt_at or o.created_at, o.id))
        costs = [_cost(provider, attempts[order.id]) for order in members]
        grants[purpose] = grant = context.budget(account).take(purpose, sum(costs))
        totals = zip(members, accumulate(costs), strict=True)
        waiting += [order for order, total in totals if total <= grant.size]
    return waiting, grants


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
    at_once: _Begun | None,
    waiting: deque[Order],
    grants: Mapping[Purpose, Grant],
    slots: Share,
    watch: Watch,
    more: "_More | None",
) -> bool:
    """Keep up to the allowed number of requests in flight; say whether nothing stopped it.

    At an account that did not answer last, one goes ahead; each answer then doubles what may fly.
    Where all may, and none waits, `more` of them are begun.
    """
    limit = context.account(claim.account).max_submits_in_flight
    allowed = 1 if claim.has_failed or watch.is_ahead else limit
    flying: dict[Future[Answer], Task] = {}
    look = LastLook(context, claim.account)
    is_stopped = False
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
                group = [waiting.popleft() for _ in range(free)]
                begun = begin(context, claim, group, is_ahead=watch.is_ahead)
                slots.give_back(free - len(begun))
                send(begun)
                claim.comes_on |= bool(begun)
            if not flying:
                if waiting or is_more():
                    slots.wait()
                    is_stopped = not claim.is_held
                continue
            answers = _collect(context, flying)
            write_outcomes(context, claim, answers)
            # What was not begun keeps its hold and becomes due again.
            is_stopped = is_stopped or watch.heed(answers) or not claim.is_held
            if not is_stopped and not watch.is_ahead and allowed < limit:
                if any(isinstance(a, Answered) for _, a in answers):
                    outages.works(context, claim.account)
                allowed = min(2 * allowed, limit)
    _put_off(context, claim, list(waiting))
    return not is_stopped


def _collect(context: Context, flying: dict[Future[Answer], Task]) -> list[tuple[Order, Answer]]:
    """Wait for an answer, and a moment longer for those that come with it."""
    done = context.threads.first_done(flying, _GROUP_S)
    return [(flying.pop(future).order, future.result()) for future in done]


def _ask(context: Context, claim: KeptClaim, task: Task, grant: Grant, look: LastLook) -> Answer:
    if not claim.is_held:
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
                lambda: claim.is_held,
                look.why_not,
                task.made_at_s,
            )

    return backstop.alone(act, task.order.external_id, Unknown)
