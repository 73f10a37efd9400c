"""Which listing each order of a batch is priced at: what is on sale once is bought once."""

from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fulfillment.services.funds import allocate
from schemas.provider import Quote, Quotes, Want


@dataclass(frozen=True, slots=True)
class Bid:
    """What an order wants, and the most that it may cost."""

    order_id: int
    want: Want
    limit_mills: int


def allot(
    bids: Iterable[Bid],
    quotes: Quotes,
    taken: Iterable[Quote] = (),
    money_mills: int | None = None,
    *,
    may_wait: bool = True,
) -> dict[int, Quote]:
    """Give each order its listing, by the order's id; those that are `taken` are somebody else's.

    Who wants one item and no other of its name chooses first, then who may pay least. Where no
    listing is left that is not too dear, an order gets one that others have as well, and the
    provider's answer decides. Those that buy a name up to a price all bid as much as the dearest
    listing of theirs costs: sent side by side, each gets the cheapest that is left. Of those whose
    own listings the money covers, where it is known, the last to come are left out of that until it
    covers the bids: they wait for what the others do not spend. Where they may not, nobody bids
    more than for a listing of its own.
    """
    often = listed_often(quotes)
    bids = wanted = [bid for bid in bids if bid.want in quotes.found]
    found = {bid.order_id: quotes.found[bid.want] for bid in bids}
    # Of what is on sale once, everybody gets that.
    bids = [bid for bid in bids if found[bid.order_id].market_hash_name in often]
    if not bids:
        return found
    used = _used(taken, quotes)
    left: dict[Want, _Left] = {}
    given: set[int] = set()
    for bid in sorted(bids, key=lambda bid: _place(bid, quotes)):
        cheapest = found[bid.order_id]
        offers = [cheapest, *quotes.dearer.get(bid.want, ())]
        free = left.setdefault(bid.want, _Left(deque(offers))).first(used)
        if free is not None and free.price_mills <= bid.limit_mills:
            found[bid.order_id] = free
            _use(used, free)
            given.add(bid.order_id)
        else:  # nobody's by this: it is too dear, or has been counted
            found[bid.order_id] = _dearest(offers, bid.limit_mills)
    payable = [bid for bid in wanted if found[bid.order_id].price_mills <= bid.limit_mills]
    own = {bid.order_id: found[bid.order_id].price_mills for bid in payable}
    if money_mills is not None:
        covered = allocate(money_mills, sorted(own.items()))
        payable = sorted((b for b in payable if b.order_id in covered), key=lambda b: b.order_id)
    raised = _raised(payable, found, given)
    while money_mills is not None and payable and sum(raised.values()) > money_mills:
        payable = payable[:-1] if may_wait else []
        raised = _raised(payable, found, given)
    return found | {i: replace(found[i], price_mills=price) for i, price in raised.items()}


def _raised(
    bids: Sequence[Bid], found: Mapping[int, Quote], given: Container[int]
) -> dict[int, int]:
    """Say what each bids (mills): for a name as much as the dearest that one of them is given."""
    prices: dict[str, set[int]] = {}
    for bid in bids:
        quote = found[bid.order_id]
        if bid.order_id in given and _is_by_name(quote):
            prices.setdefault(quote.market_hash_name, set()).add(quote.price_mills)
    raised = {}
    for bid in bids:
        quote = found[bid.order_id]
        others = prices.get(quote.market_hash_name, set()) if _is_by_name(quote) else set()
        all_prices = others | {quote.price_mills}
        raised[bid.order_id] = max(price for price in all_prices if price <= bid.limit_mills)
    return raised


def _is_by_name(quote: Quote) -> bool:
    return quote.catalog_item_id == quote.market_hash_name


def _used(taken: Iterable[Quote], quotes: Quotes) -> Counter[Quote]:
    """Count the listings that are taken; who buys by name up to a price has the cheapest left."""
    named = {
        found.market_hash_name: _Left(deque([found, *quotes.dearer.get(want, ())]))
        for want, found in quotes.found.items()
        if _is_by_name(found)
    }
    used = Counter[Quote]()
    for quote in sorted(taken, key=lambda quote: (_is_by_name(quote), quote.price_mills)):
        left = named.get(quote.market_hash_name) if _is_by_name(quote) else None
        free = left.first(used) if left else None
        _use(used, free if free and free.price_mills <= quote.price_mills else quote)
    return used


def _use(used: Counter[Quote], quote: Quote) -> None:
    """Count a listing; where a name is bought up to a price, one of that price is gone as well."""
    by_name = replace(quote, catalog_item_id=quote.market_hash_name)
    used.update({quote, by_name})


def _place(bid: Bid, quotes: Quotes) -> tuple[bool, int, int]:
    return bool(quotes.dearer.get(bid.want)), bid.limit_mills, bid.order_id


@dataclass(frozen=True, slots=True)
class _Left:
    """The listings that will do for a want, without those that are known to be somebody's."""

    offers: deque[Quote]
    passed: Counter[Quote] = field(default_factory=Counter)

    def first(self, used: Counter[Quote]) -> Quote | None:
        """Give the cheapest that is nobody's; of several that are alike so many are `used`."""
        while self.offers and used[self.offers[0]] > self.passed[self.offers[0]]:
            self.passed[self.offers.popleft()] += 1
        return self.offers[0] if self.offers else None


def listed_often(quotes: Quotes) -> set[str]:
    """Name what has several listings, so that it matters who has which."""
    return {offers[0].market_hash_name for offers in quotes.dearer.values() if offers}


def _dearest(offers: Sequence[Quote], limit_mills: int) -> Quote:
    fitting = [offer for offer in offers if offer.price_mills <= limit_mills]
    return fitting[-1] if fitting else offers[0]
