"""Keep a batch's claim alive while a step works on it, and know when it is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from fulfillment.crash import crash_point
from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.services.context import Context
from fulfillment.store import claims, doubts, leases, ledger
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import Attempt, Doubt, Order
from fulfillment.store.purchases import Purchases
from schemas.messages import Batch

log = get_logger(__name__)

#: The steps in their order; a claim reads `<token>/<step>`.
CLAIMED, CATALOG, WALLET, SUBMIT = "claimed", "catalog", "wallet", "submit"
_BEFORE = {CATALOG: CLAIMED, WALLET: CATALOG, SUBMIT: WALLET}


def claim_name(token: str, step: str) -> str:
    return f"{token}/{step}"


def gather_lease(account: str) -> str:
    """Name the lease of which an account has one: whoever has it gathers a batch."""
    return f"gather:{account}"


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Whether the chain goes on, and whether more orders wait for somebody to gather them.

    `rerouted_to` are other accounts that orders of the batch have gone on to.
    """

    goes_on: bool
    is_more_waiting: bool = False
    rerouted_to: tuple[str, ...] = ()


class _Lapse:
    """The end of a lease that begins now, by two clocks: one stands still with a suspended machine,
    the other can be set back."""

    def __init__(self, context: Context) -> None:
        self._clock = context.clock
        self._at = context.now() + context.lease
        self._at_s = context.clock.monotonic() + context.lease.total_seconds()

    @property
    def is_over(self) -> bool:
        return self._clock.monotonic() >= self._at_s or self._clock.now() >= self._at


class KeptClaim:
    """A claim under which this step works; `is_held` and `holds` say whether it still may."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        step: str,
        orders: list[Order],
        lapse: _Lapse,
        *,
        may_grow: bool,
    ) -> None:
        self._context = context
        self._batch = batch
        self.account = batch["account"]
        self._gathers = step != SUBMIT
        self.name = claim_name(batch["token"], step)
        #: As they were when they were taken over.
        self.orders = orders
        #: Whether the account failed to answer last.
        self.has_failed = False
        #: What was heard of the account's purchases.
        self.purchases = Purchases()
        #: Which of our rows may lack what was done.
        self.doubt: Doubt | None = None
        #: The orders' open attempts, where they are to be submitted.
        self.attempts: dict[int, Attempt] = {}
        self.order_ids = [order.id for order in orders]
        #: Of each order that was under the claim when it was renewed last: they join one by one.
        self._lapses = dict.fromkeys(self.order_ids, lapse)
        self._lapsing = context.threads.lock()
        #: Whether others of the batch may be taken later: nobody has, or somebody had them locked.
        self.may_grow = may_grow
        #: Whether something was begun lately: then what nobody has taken of the batch is kept, too.
        self.comes_on = may_grow

    def join(self, group: "KeptClaim") -> None:
        """Have more of the batch's orders, which were taken over just now."""
        self.orders += group.orders
        self.order_ids += group.order_ids
        self.attempts.update(group.attempts)
        with self._lapsing:
            self._lapses.update(group._lapses)

    def leave_only(self, orders: list[Order]) -> None:
        """Go on with these of the batch's orders; the others are dealt with."""
        self.orders = orders
        self.order_ids = [order.id for order in orders]

    @property
    def is_held(self) -> bool:
        """Say whether the lease is known to run still; a frozen process finds that it does not."""
        with self._lapsing:
            lapses = set(self._lapses.values())
        return not lapses or not all(lapse.is_over for lapse in lapses)

    def holds(self, order_id: int) -> bool:
        """Say whether it does for this order, which else may be somebody else's by now."""
        lapse = self._lapses.get(order_id)
        return lapse is not None and not lapse.is_over

    @repeated
    def renew(self) -> bool:
        """Lengthen the claim (and the gathering lease); say whether any order is still under it.

        What has lapsed is let go: a process that slept goes on with none of it.
        """
        lapse = _Lapse(self._context)
        now = self._context.now()
        until = now + self._context.lease
        with self._lapsing:
            known = dict(self._lapses)
        running = [id_ for id_, each in known.items() if not each.is_over]
        with self._context.database.transaction() as session:
            renewed = claims.renew(session, running, self.name, until)
            held = claims.still_under(session, list(known), self.name)
            if self._gathers:
                lease = gather_lease(self._batch["account"])
                leases.acquire(session, lease, self._batch["token"], now, until)
        crash_point("claim.renewed")
        longer = {id_: lapse for id_ in renewed if not known[id_].is_over}
        with self._lapsing:
            self._lapses |= longer
            for id_ in known.keys() - held:  # done with, or somebody else's
                del self._lapses[id_]
        if self.may_grow and self.comes_on:
            self._keep_rest(until)
        return bool(held) or self.may_grow

    def _keep_rest(self, until: datetime) -> None:
        self.comes_on = False
        rest = claim_name(self._batch["token"], _BEFORE[SUBMIT])
        with self._context.database.transaction() as session:
            claims.renew(session, self._batch["ids"], rest, until)

    def keep(self) -> bool:
        """Renew in the background; say whether to go on with that."""
        try:
            return self.renew()
        except ServerUnreachable as error:
            # The claim may lapse; then the next holder goes on where we stop.
            log.warning("claim.not_renewed", reason=str(error))
            return True


@contextmanager
def take_over(
    context: Context,
    batch: Batch,
    step: str,
    also: Callable[[Session, KeptClaim], None] | None = None,
    limit: int | None = None,
) -> Iterator[KeptClaim | None]:
    """Take the batch's orders over for `step`; None when nothing of it is left to this copy.

    To be submitted, only those that nobody has locked, the first `limit`. `also` is done in the
    same transaction, and again where that has to be repeated.
    """
    claim = _take_over(context, batch, step, also, limit)
    if claim is None:
        yield None
        return
    crash_point("claim.taken_over")
    with context.threads.repeating(context.lease.total_seconds() / 3, claim.keep, "claim-keeper"):
        yield claim


@repeated
def is_any_left(context: Context, batch: Batch) -> bool:
    """Say whether some of the batch wait to be submitted by whoever has room for them."""
    with context.database.statement() as session:
        return claims.is_any_left(session, batch["ids"], claim_name(batch["token"], WALLET))


def take_more(
    context: Context,
    batch: Batch,
    claim: KeptClaim,
    limit: int,
    also: Callable[[Session, KeptClaim], None],
) -> KeptClaim | None:
    """Take the batch's next orders over for the step that has the claim: those, and what holds for
    them now. None where nothing is left, or what is left is locked. `also` as for `take_over`.
    """
    group = _take_over(context, batch, SUBMIT, also, limit)
    if group is not None:
        claim.join(group)
    return group


@repeated
def _take_over(
    context: Context,
    batch: Batch,
    step: str,
    also: Callable[[Session, KeptClaim], None] | None,
    limit: int | None,
) -> KeptClaim | None:
    with context.database.transaction() as session:
        claim = take_over_within(context, session, batch, step, limit)
        if claim is not None:
            if step != SUBMIT:
                lease, now = gather_lease(claim.account), context.now()
                leases.acquire(session, lease, batch["token"], now, now + context.lease)
            condition = doubts.condition(session, claim.account, context.now())
            claim.has_failed = condition.failures > 0
            claim.doubt = condition.doubt
            claim.purchases = condition.purchases
            if step == SUBMIT:
                claim.attempts = ledger.attempts_of(session, claim.order_ids)
            if also is not None:
                also(session, claim)
    return claim


def take_over_within(
    context: Context,
    session: Session,
    batch: Batch,
    step: str,
    limit: int | None = None,
) -> KeptClaim | None:
    """Take a batch over in a transaction that does the rest of the step; nothing renews it."""
    lapse, until = _Lapse(context), context.now() + context.lease
    old, new = claim_name(batch["token"], _BEFORE[step]), claim_name(batch["token"], step)
    ids = batch["ids"]
    may_grow = False
    if step == SUBMIT:
        taken = claims.take_over_some(session, ids, old, new, until, limit)
        # Of a shared one nobody looks: who takes more finds out.
        may_grow = 0 < len(taken) < len(ids) and (
            limit is not None or claims.is_any_left(session, ids, old)
        )
    else:
        taken = claims.take_over(session, ids, old, new, until)
    return KeptClaim(context, batch, step, taken, lapse, may_grow=may_grow) if taken else None


@repeated
def finish_gathering(context: Context, batch: Batch) -> bool:
    """Let another batch gather; say whether one is waiting.

    The lease is given up before the look: an order that comes in between finds it free.
    """
    with context.database.transaction() as session:
        give_up_gathering(session, batch)
    return is_more_waiting(context, batch)


def give_up_gathering(session: Session, batch: Batch) -> None:
    """Let another batch gather once the transaction is committed; then see `is_more_waiting`."""
    leases.give_up(session, gather_lease(batch["account"]), batch["token"])


@repeated
def is_more_waiting(context: Context, batch: Batch) -> bool:
    """Say whether orders wait that came while the batch was gathered."""
    crash_point("gather.released")
    with context.database.statement() as session:
        return claims.is_waiting(session, batch["account"], context.now())


@repeated
def give_back(
    context: Context, batch: Batch, claim: KeptClaim, due_at: datetime | None = None
) -> None:
    """Return what is left of a batch, to be taken up again at `due_at`; others may gather now.

    Without `due_at` its orders keep their places, for the next sweep.
    """
    with context.database.transaction() as session:
        claims.release(session, claim.order_ids, claim.name, due_at)
        give_up_gathering(session, batch)
    crash_point("gather.given_back")
