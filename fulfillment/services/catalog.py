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
from fulfillment.services.routes import leave_unreachable, reroute_or_refuse, rerouted_to
from fulfillment.store import accounts, claims, leases, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import repeated
from fulfillment.store.ledger import Figure
from fulfillment.store.models import Move, Order
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
        # A catalog that no wallet request can follow would only have to be asked for again.
        grant = context.budget(account).take(Purpose.SUBMIT, leaving=1)
        if not grant.size:
            give_back(context, batch, claim)
            return StepOutcome(goes_on=False)
        with context.database.transaction() as session:
            members = orders.get(session, claim.order_ids)
            has_failed = accounts.failures(session, account) > 0
        wants = {order.id: _want(order) for order in members}
        requested_at = context.now()
        asked = list(dict.fromkeys(wants.values()))

        def ask() -> Quotes:
            with grant:
                return context.provider(account).quote(asked)

        try:
            if has_failed:  # one request is enough to see whether the account answers again
                quotes, figure = ask(), None
            else:
                quotes, figure = funds.read_beside(context, account, ask)
        except ProviderError as error:
            due_at = outages.pause(context, account, error)
            left_for = leave_unreachable(context, claim, error, Source.CATALOG)
            give_back(context, batch, claim, due_at)
            return StepOutcome(goes_on=False, rerouted_to=left_for)
        crash_point("catalog.answered")
        if _note_answers(context, account, quotes, requested_at, figure):
            gone = {w for w in wants.values() if w not in quotes.found and w not in quotes.unasked}
            quotes = replace(quotes, unclear=dict.fromkeys(gone, _HALF) | dict(quotes.unclear))
        goes_on, left_for = _quote(context, claim, members, quotes)
        if not goes_on:
            # Where the wallet is asked next, its answer says whether the account works: pauses
            # grow although the catalog alone can be read.
            outages.works(context, account)
        is_more_waiting = not goes_on and finish_gathering(context, batch)
        return StepOutcome(goes_on, is_more_waiting, left_for)


@repeated
def _note_answers(
    context: Context, account: str, quotes: Quotes, requested_at: datetime, figure: Figure | None
) -> bool:
    """Note the balance and how much is on sale; say whether much of it may only seem to be gone.

    A list that lost a large part is believed when it stays so for long enough.
    """
    doubt = f"catalog:{account}"
    with context.database.transaction() as session:
        if figure is not None:
            funds.record_figure(context, session, account, figure)
        before = accounts.last_catalog_size(session, account)
        is_less = quotes.listed < before * _DOUBTED_SHARE and before >= _SMALLEST_JUDGED
        if quotes.is_whole and is_less:
            over_at = leases.until(session, doubt)
            if over_at is None:
                leases.acquire(session, doubt, account, requested_at, requested_at + _DOUBT)
                listed = {"listed": quotes.listed, "before": before}
                log.error("catalog.shrunk", account=account, **listed)
            if over_at is None or over_at > requested_at:
                accounts.note_catalog(session, account, before, requested_at)
                return True
        if quotes.is_whole:
            leases.give_up(session, doubt, account)
        accounts.note_catalog(session, account, quotes.listed, requested_at)
    return False


def _want(order: Order) -> Want:
    return Want(order.catalog_item_id, order.market_hash_name, or_by_name=order.route is not None)


@repeated
def _quote(
    context: Context, claim: KeptClaim, members: list[Order], quotes: Quotes
) -> tuple[bool, tuple[str, ...]]:
    """Write the prices and refusals; say whether any order goes on, and which leave for where."""
    settings = context.account(claim.account)
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
    with context.database.transaction() as session:
        moved = orders.apply(session, moves, context.now())
        claims.release(session, [order.id for order in unasked], claim.name)
        if unclear:
            # A list that cannot be read here is the provider's fault of the moment, not a no.
            due_at = context.now() + timedelta(seconds=_UNCLEAR_S)
            claims.release(session, [order.id for order in unclear], claim.name, due_at)
            why = {order.external_id: quotes.unclear[_want(order)] for order in unclear}
            log.warning("catalog.unclear", account=claim.account, orders=why)
        crash_point("catalog.before_commit")
    crash_point("catalog.after_commit")
    goes_on = is_any_unchanged or any(order.claim == claim.name for order in moved.values())
    return goes_on, rerouted_to(claim.account, moved)


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
