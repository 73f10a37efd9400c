"""Refresh the catalog for a batch: every order gets a fresh price, or a definite no."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import ProviderError, ProviderNotReached
from fulfillment.log import get_logger
from fulfillment.providers.reading import ITEM_LENGTH, clean
from fulfillment.services import backstop, funds, outages, shortage
from fulfillment.services.budget import Grant
from fulfillment.services.claiming import (
    CATALOG,
    KeptClaim,
    StepOutcome,
    finish_gathering,
    give_back,
    take_over,
)
from fulfillment.services.context import Context
from fulfillment.services.dispatch import is_buying
from fulfillment.services.listings import Bid, allot, listed_often
from fulfillment.services.purchases import fail
from fulfillment.services.recovery import search_first
from fulfillment.services.routes import (
    apply_ours,
    has_next,
    leave_unreachable,
    reroute,
    reroute_or_refuse,
    rerouted_to,
)
from fulfillment.store import accounts, claims
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import Move, Order
from fulfillment.store.proof import Figure
from schemas.enums import FailureCode, OnInsufficientFunds, OrderStatus, Source
from schemas.messages import Batch
from schemas.money import cents_to_mills, charge_in_cents
from schemas.provider import Quote, Quotes, Want

log = get_logger(__name__)

#: How soon to ask again about an item whose price the catalog does not clearly say.
_UNCLEAR_S = 10.0
#: So old an order that has another account waits no longer for one that is not clear about it.
_UNCLEAR_FOR = timedelta(minutes=1)
#: The catalog's and the wallet's.
_REQUESTS = 2
_UNFIT = "its id or name is no text that an item has"
_DOUBTED = "much of what the catalog had, or was asked for, is missing at once"


def refresh_catalog(context: Context, batch: Batch) -> StepOutcome:
    """Quote the batch's orders; the chain goes on if any is left for the next step.

    The answer serves exactly the orders claimed before the request was sent.
    """
    account = batch["account"]
    budget = context.budget(account)
    taken: list[Grant] = []

    def take(session: Session, claim: KeptClaim) -> None:
        # Not where orders are looked for first: who knows how long that takes.
        taken[:] = []
        if all(order.was_searched(claim.doubt) for order in claim.orders):
            taken.append(budget.take_within(session, Purpose.SUBMIT, _REQUESTS))

    with take_over(context, batch, CATALOG, take) as claim:
        if claim is None:
            return StepOutcome(goes_on=False)
        left = search_first(context, claim, claim.orders)
        if not left:
            return StepOutcome(False, finish_gathering(context, batch))
        claim.leave_only(left)
        if not taken and not is_buying(context, account):
            # Claimed to be looked for: a stop leaves lookups running, and nothing else.
            give_back(context, batch, claim)
            return StepOutcome(goes_on=False)
        # A catalog that no wallet request can follow would only have to be asked for again.
        whole = taken[0] if taken else budget.take(Purpose.SUBMIT, _REQUESTS)
        grants = whole.for_each(_REQUESTS)
        if not grants:
            give_back(context, batch, claim)
            return StepOutcome(goes_on=False)
        for_catalog, for_wallet = grants
        requested_at = context.now()
        asked = list(map(_want, claim.orders))

        def ask() -> Quotes:
            with for_catalog:
                return backstop.read(
                    lambda: context.provider(account).quote(asked), f"the catalog of {account}"
                )

        try:
            if claim.has_failed:  # one request shows whether the account answers again
                quotes, figure = ask(), None
            else:
                quotes, figure = funds.read_beside(context, account, ask, for_wallet)
        except ProviderError as error:
            due_at = outages.pause(context, account, error)
            return _leave(context, batch, claim, error, due_at)
        finally:
            for_wallet.give_back()
        crash_point("catalog.answered")
        if quotes.is_whole and not quotes.listed:
            # It is answered, so all else goes on; but nobody sells nothing at all.
            nothing = ProviderNotReached("the catalog lists nothing", is_outage=True)
            due_at = fail(context, account, [nothing], is_read=True)
            return _leave(context, batch, claim, nothing, due_at)
        goes_on, left_for = _write(context, claim, quotes, requested_at, figure)
        if not goes_on and (quotes.is_whole or quotes.searched):
            # Where the wallet is asked next, its answer says whether the account works: pauses
            # grow although the catalog alone can be read.
            outages.works(context, account)
        is_more_waiting = not goes_on and finish_gathering(context, batch)
        return StepOutcome(goes_on, is_more_waiting, left_for)


def _leave(
    context: Context, batch: Batch, claim: KeptClaim, error: ProviderError, due_at: datetime | None
) -> StepOutcome:
    """Give the batch back until `due_at`; orders that have another account go on to it."""
    left_for = leave_unreachable(context, claim, error, Source.CATALOG)
    give_back(context, batch, claim, due_at)
    return StepOutcome(goes_on=False, rerouted_to=left_for)


@repeated
def _write(
    context: Context,
    claim: KeptClaim,
    quotes: Quotes,
    requested_at: datetime,
    figure: Figure | None,
) -> tuple[bool, tuple[str, ...]]:
    """Write what was answered; say whether any order goes on, and which leave for where."""
    with context.database.transaction() as session:
        if figure is not None:
            funds.record_figure(context, session, claim.account, figure)
        is_doubted, seen = shortage.judge(session, claim.account, quotes, requested_at)
        moved, is_any_unchanged = _quote(
            context, session, claim, quotes, requested_at, is_doubted=is_doubted
        )
        # Last: who takes requests out of the account's budget waits for its row.
        accounts.note_catalog(session, claim.account, seen, requested_at)
        crash_point("catalog.before_commit")
    crash_point("catalog.after_commit")
    goes_on = is_any_unchanged or any(order.claim == claim.name for order in moved.values())
    return goes_on, rerouted_to(claim.account, moved)


def _want(order: Order) -> Want:
    return Want(order.catalog_item_id, order.market_hash_name, or_by_name=order.route is not None)


def _quote(
    context: Context,
    session: Session,
    claim: KeptClaim,
    quotes: Quotes,
    requested_at: datetime,
    *,
    is_doubted: bool,
) -> tuple[dict[int, Order], bool]:
    """Write the prices and refusals; give the orders moved, and say whether any has no news.

    Of a doubted catalog nobody is refused what it lacks; who has another account goes on to it.
    """
    settings = context.account(claim.account)
    members = claim.orders
    moves: list[Move] = []
    is_any_unchanged = False
    why_unclear = {o.id: quotes.unclear[w] for o in members if (w := _want(o)) in quotes.unclear}
    unasked = [order for order in members if _want(order) in quotes.unasked]
    unquoted = {*why_unclear, *(order.id for order in unasked)}
    limits = {o.id: settings.price_limit_cents(o.expected_price_cents) for o in members}
    allotted = _allot(context, session, claim, quotes, limits, requested_at)
    for order in members:
        if order.id in unquoted:
            continue
        quote = allotted.get(order.id)
        if quote is not None and not _can_be_kept(quote):
            why_unclear[order.id] = _UNFIT
        elif quote is None:
            code, message = FailureCode.ITEM_UNAVAILABLE, "the item is not in the catalog"
            if is_doubted and not has_next(context, order):
                why_unclear[order.id] = _DOUBTED
                continue
            moves.append(
                reroute_or_refuse(context, order, code, message, Source.CATALOG, claim.name)
            )
        elif quote.price_mills > cents_to_mills(limits[order.id]):
            message = (
                f"the price is {charge_in_cents(quote.price_mills)} cents, "
                f"agreed were {order.expected_price_cents}"
            )
            code = FailureCode.PRICE_CHANGED
            moves.append(
                reroute_or_refuse(context, order, code, message, Source.CATALOG, claim.name)
            )
        elif _is_as_before(order, quote):
            is_any_unchanged = True  # it waited, and nothing is new
        else:
            moves.append(_priced(order, quote, claim))
    for order in members:
        if order.id in why_unclear and context.now() - order.created_at >= _UNCLEAR_FOR:
            reason = why_unclear[order.id]
            if going_on := reroute(context, order, reason, Source.CATALOG, claim.name):
                moves.append(going_on)
                del why_unclear[order.id]
    moved = apply_ours(session, moves, claim, context.now())
    if unasked:
        claims.release(session, [order.id for order in unasked], claim.name)
    if why_unclear:
        # A list that cannot be read here is the provider's fault of the moment, not a no.
        due_at = context.now() + timedelta(seconds=_UNCLEAR_S)
        claims.release(session, list(why_unclear), claim.name, due_at)
        why = {o.external_id: why_unclear[o.id] for o in members if o.id in why_unclear}
        log.warning("catalog.unclear", account=claim.account, orders=why)
    return moved, is_any_unchanged


def _allot(
    context: Context,
    session: Session,
    claim: KeptClaim,
    quotes: Quotes,
    limits: Mapping[int, int],
    requested_at: datetime,
) -> dict[int, Quote]:
    """Give each order its listing; `limits` are the most that each may cost (cents)."""
    bids = [Bid(o.id, _want(o), cents_to_mills(limits[o.id])) for o in claim.orders]
    names = listed_often(quotes)
    if not names:
        return allot(bids, quotes)
    rows = claims.quotes_taken(session, claim.account, names, requested_at)
    money = funds.likely_mills(context, session, claim.account, limits)
    settings = context.account(claim.account)
    may_wait = settings.on_insufficient_funds is OnInsufficientFunds.WAIT
    may_wait &= not any(has_next(context, order) for order in claim.orders)
    return allot(bids, quotes, [Quote(*row) for row in rows], money, may_wait=may_wait)


def _can_be_kept(quote: Quote) -> bool:
    """Say whether its texts are of the kind that names are, and not of one that no row takes."""
    texts = (quote.catalog_item_id, quote.market_hash_name)
    return all(clean(text, ITEM_LENGTH) == text for text in texts)


def _item_id(order: Order, quote: Quote) -> str | None:
    """Name the quoted item where it is not the one that the checkout names."""
    return quote.catalog_item_id if quote.catalog_item_id != order.catalog_item_id else None


def _is_as_before(order: Order, quote: Quote) -> bool:
    return (order.quoted_mills, order.quoted_item_id) == (quote.price_mills, _item_id(order, quote))


def _priced(order: Order, quote: Quote, claim: KeptClaim) -> Move:
    """Write the price into the order and its log; one that waits for money keeps its status."""
    changes: dict[str, object] = {
        "quoted_mills": quote.price_mills,
        "quoted_item_id": _item_id(order, quote),
    }
    if order.market_hash_name is None:
        changes["market_hash_name"] = quote.market_hash_name
    return Move(
        order.id,
        order.status,
        OrderStatus.QUOTED if order.status is OrderStatus.RECEIVED else order.status,
        Source.CATALOG,
        f"priced at {charge_in_cents(quote.price_mills)} cents",
        changes,
        claim=claim.name,
    )
