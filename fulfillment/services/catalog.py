"""Refresh the catalog for a batch: every order gets a fresh price, or a definite no."""

from dataclasses import replace
from datetime import datetime, timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import ProviderError
from fulfillment.log import get_logger
from fulfillment.services import funds, outages
from fulfillment.services.claiming import (
    CATALOG,
    KeptClaim,
    StepOutcome,
    finish_gathering,
    give_back,
    take_over,
)
from fulfillment.services.context import Context
from fulfillment.services.recovery import search_first
from fulfillment.services.routes import leave_unreachable, reroute_or_refuse, rerouted_to
from fulfillment.store import accounts, claims, leases, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import Move, Order
from fulfillment.store.proof import Figure
from schemas.enums import FailureCode, OrderStatus, Source
from schemas.messages import Batch
from schemas.money import cents_to_mills, charge_in_cents
from schemas.provider import Quote, Quotes, Want

log = get_logger(__name__)

#: How soon to ask again about an item whose price the catalog does not clearly say.
_UNCLEAR_S = 10.0
# A list that lost so much at once is more likely a fault than a sale: nobody is refused by it at
# first. Of a short list a few sales are a large part.
_DOUBTED_SHARE = 0.6
_SMALLEST_JUDGED = 20
_DOUBT = timedelta(minutes=10)
_HALF = "the catalog is suddenly much shorter than before"


def refresh_catalog(context: Context, batch: Batch) -> StepOutcome:
    """Quote the batch's orders; the chain goes on if any is left for the next step.

    The answer serves exactly the orders claimed before the request was sent.
    """
    account = batch["account"]
    with take_over(context, batch, CATALOG) as claim:
        if claim is None:
            return StepOutcome(goes_on=False)
        left = search_first(context, claim, claim.orders)
        if not left:
            return StepOutcome(False, finish_gathering(context, batch))
        claim.leave_only(left)
        # A catalog that no wallet request can follow would only have to be asked for again.
        grants = context.budget(account).take_for_each(Purpose.SUBMIT, 2)
        if not grants:
            give_back(context, batch, claim)
            return StepOutcome(goes_on=False)
        for_catalog, for_wallet = grants
        requested_at = context.now()
        asked = list(dict.fromkeys(map(_want, claim.orders)))

        def ask() -> Quotes:
            with for_catalog:
                return context.provider(account).quote(asked)

        try:
            if claim.has_failed:  # one request shows whether the account answers again
                quotes, figure = ask(), None
            else:
                quotes, figure = funds.read_beside(context, account, ask, for_wallet)
        except ProviderError as error:
            due_at = outages.pause(context, account, error)
            left_for = leave_unreachable(context, claim, error, Source.CATALOG)
            give_back(context, batch, claim, due_at)
            return StepOutcome(goes_on=False, rerouted_to=left_for)
        finally:
            for_wallet.give_back()
        crash_point("catalog.answered")
        goes_on, left_for = _write(context, claim, quotes, requested_at, figure)
        if not goes_on:
            # Where the wallet is asked next, its answer says whether the account works: pauses
            # grow although the catalog alone can be read.
            outages.works(context, account)
        is_more_waiting = not goes_on and finish_gathering(context, batch)
        return StepOutcome(goes_on, is_more_waiting, left_for)


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
        listed = accounts.last_catalog_size(session, claim.account)
        if _is_doubted(session, claim.account, quotes, requested_at, listed):
            wants = map(_want, claim.orders)
            gone = {w for w in wants if w not in quotes.found and w not in quotes.unasked}
            quotes = replace(quotes, unclear=dict.fromkeys(gone, _HALF) | dict(quotes.unclear))
        else:
            listed = quotes.listed
        moved, is_any_unchanged = _quote(context, session, claim, quotes)
        # Last: who takes requests out of the account's budget waits for its row.
        accounts.note_catalog(session, claim.account, listed, requested_at)
        crash_point("catalog.before_commit")
    crash_point("catalog.after_commit")
    goes_on = is_any_unchanged or any(order.claim == claim.name for order in moved.values())
    return goes_on, rerouted_to(claim.account, moved)


def _is_doubted(
    session: Session, account: str, quotes: Quotes, requested_at: datetime, before: int
) -> bool:
    """Say whether much of what was on sale may only seem to be gone.

    A list that lost a large part is believed when it stays so for long enough.
    """
    doubt = f"catalog:{account}"
    is_less = quotes.listed < before * _DOUBTED_SHARE and before >= _SMALLEST_JUDGED
    if quotes.is_whole and is_less:
        over_at = leases.until(session, doubt)
        if over_at is None:
            leases.acquire(session, doubt, account, requested_at, requested_at + _DOUBT)
            log.error("catalog.shrunk", account=account, listed=quotes.listed, before=before)
        if over_at is None or over_at > requested_at:
            return True
    if quotes.is_whole:
        leases.give_up(session, doubt, account)
    return False


def _want(order: Order) -> Want:
    return Want(order.catalog_item_id, order.market_hash_name, or_by_name=order.route is not None)


def _quote(
    context: Context, session: Session, claim: KeptClaim, quotes: Quotes
) -> tuple[dict[int, Order], bool]:
    """Write the prices and refusals; give the orders moved, and say whether any has no news."""
    settings = context.account(claim.account)
    members = claim.orders
    moves: list[Move] = []
    is_any_unchanged = False
    unclear = [order for order in members if _want(order) in quotes.unclear]
    unasked = [order for order in members if _want(order) in quotes.unasked]
    unquoted = {order.id for order in (*unclear, *unasked)}
    for order in members:
        if order.id in unquoted:
            continue
        quote = quotes.found.get(_want(order))
        limit_cents = settings.price_limit_cents(order.expected_price_cents)
        if quote is None:
            code, message = FailureCode.ITEM_UNAVAILABLE, "the item is not in the catalog"
            moves.append(
                reroute_or_refuse(context, order, code, message, Source.CATALOG, claim.name)
            )
        elif quote.price_mills > cents_to_mills(limit_cents):
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
    moved = orders.apply(session, moves, context.now())
    if unasked:
        claims.release(session, [order.id for order in unasked], claim.name)
    if unclear:
        # A list that cannot be read here is the provider's fault of the moment, not a no.
        due_at = context.now() + timedelta(seconds=_UNCLEAR_S)
        claims.release(session, [order.id for order in unclear], claim.name, due_at)
        why = {order.external_id: quotes.unclear[_want(order)] for order in unclear}
        log.warning("catalog.unclear", account=claim.account, orders=why)
    return moved, is_any_unchanged


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
