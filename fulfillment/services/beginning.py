"""Begin a batch's purchases: the first are committed with the claim, more as slots are free."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fulfillment.services import backstop
from fulfillment.services.budget import Grant
from fulfillment.services.claiming import KeptClaim, is_any_left, take_more
from fulfillment.services.context import Context
from fulfillment.services.intents import Task, begin_within, committed
from fulfillment.services.purchases import Watch
from fulfillment.services.routes import HELD_FOR
from fulfillment.services.sharing import room
from fulfillment.store import claims
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session
from fulfillment.store.models import Order
from schemas.enums import OrderStatus
from schemas.messages import Batch

#: So many at the most are begun together with the claim where a rate budget bounds the requests.
_FEW = 4


@dataclass(frozen=True, slots=True)
class Begun:
    """What was begun together with the claim, and what is next; the requests taken for both."""

    tasks: Sequence[Task]
    grant: Grant
    following: Sequence[Order] = ()

    @property
    def order_ids(self) -> set[int]:
        return {task.order.id for task in self.tasks} | {order.id for order in self.following}


class More:
    """Takes the next orders of the batch into the run that has slots for them.

    What cannot be sent without a look at anything else is left to the next sweep.
    """

    def __init__(self, context: Context, batch: Batch, claim: KeptClaim, watch: Watch) -> None:
        self._context = context
        self._batch = batch
        self._claim = claim
        self._watch = watch
        self.is_over = False
        #: Whether somebody had locked all that are left.
        self.is_locked = False
        self.grants: list[Grant] = []
        #: Of what waits for a slot, by the order's id.
        self.grant_of: dict[int, Grant] = {}

    def begin(self, free: int) -> Begun | None:
        """Commit the intents of up to so many together with their claim.

        None where all that are left are locked, or where it `is_over`: none are left, none that
        could be sent, that fails or the process ends: what is under way is written all the same.
        """
        if self._context.threads.is_ending:
            self.is_over = True
            return None
        begun, has_failed = backstop.left_to_others(lambda: self._begin(free), "submit.no_more")
        self.is_over |= has_failed
        return begun

    def _begin(self, free: int) -> Begun | None:
        while not self.is_over:
            group, begun = self._take(free)
            self.is_locked = group is None and is_any_left(self._context, self._batch)
            if group is None:
                self.is_over = not self.is_locked
                break
            self._watch.hear(group)
            if begun is None:
                is_held_up = group.has_failed or group.purchases.are_broken
                # Of what is fresh, the budget did not reach for any.
                self.is_over = is_held_up or bool(_fresh(group, self._context.now()))
                continue
            self.grants.append(begun.grant)
            self.grant_of |= {order.id: begun.grant for order in begun.following}
            committed(begun.tasks)
            if begun.tasks or begun.following:
                return begun
        return None

    def _take(self, free: int) -> tuple[KeptClaim | None, Begun | None]:
        begun: Begun | None = None

        def begin(session: Session, group: KeptClaim) -> None:
            nonlocal begun
            let_stale_go(self._context, session, group)
            begun = begin_at_once(self._context, session, group, free, are_alike=True)
            kept = begun.order_ids if begun else set()
            claims.release(session, [id_ for id_ in group.order_ids if id_ not in kept], group.name)

        # To take each alone would cost more than to send it does; few are to wait for a slot.
        limit = max(free, room(self._context, self._batch) // 4)
        return take_more(self._context, self._batch, self._claim, limit, begin), begun


def begin_at_once(
    context: Context, session: Session, claim: KeptClaim, free: int, *, are_alike: bool = False
) -> Begun | None:
    """Commit the first intents together with the claim, where nothing is to be looked at before.

    Where some may be of unknown outcome, and not all are alike, those take their requests first.
    """
    budget = context.budget(claim.account)
    if claim.has_failed or claim.purchases.are_broken:
        return None
    now = context.now()
    fresh = _fresh(claim, now)
    if not fresh[:free]:
        return None
    if not are_alike and not all(order.was_searched(claim.doubt) for order in claim.orders):
        return None  # nothing is committed that would wait for a search
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
    return Begun(begun, budget.take_within(session, Purpose.SUBMIT, count * cost), following)


def let_stale_go(context: Context, session: Session, claim: KeptClaim) -> None:
    """Leave what was priced too long ago to the sweep, which prices it afresh.

    But for what is to be looked for first: that the sweep only hands on.
    """
    before = context.now() - HELD_FOR
    stale = {
        order.id
        for order in claim.orders
        if (attempt := claim.attempts.get(order.id))
        and attempt.is_untouched
        and attempt.created_at <= before
        and order.submit_by > context.now()
        and order.was_searched(claim.doubt)
    }
    if stale:
        claims.release(session, sorted(stale), claim.name)
        claim.leave_only([order for order in claim.orders if order.id not in stale])


def _fresh(claim: KeptClaim, now: datetime) -> list[Order]:
    """Give the orders that are to be bought, and about which nothing is to be found out before."""
    if any(order.is_doubted(claim.doubt) for order in claim.orders):
        return []
    return [
        order
        for order in to_submit(claim.orders)
        if order.submit_by > now
        and (a := claim.attempts.get(order.id))
        and a.unknown_since is None
        and order.was_searched(claim.doubt)
    ]


def to_submit(members: Sequence[Order]) -> list[Order]:
    statuses = (OrderStatus.RESERVED, OrderStatus.SUBMITTING)
    return [order for order in members if order.status in statuses and not order.is_waiting]
