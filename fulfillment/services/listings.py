"""Which listing each order of a batch is priced at: what is on sale once is bought once."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.provider import Quote, Quotes, Want


@dataclass(frozen=True, slots=True)
class Bid:
    """What an order wants, and the most that it may cost."""

    order_id: int
    want: Want
    limit_mills: int


def allot(bids: Iterable[Bid], quotes: Quotes, taken: Iterable[Quote] = ()) -> dict[int, Quote]:
    """Give each order its listing, by the order's id; those that are `taken` are somebody else's.

    Who may pay least chooses first. Where no listing is left that is not too dear, an order gets
    one that others have as well, and the provider's answer decides.
    """
    is_taken = Counter(taken)
    free: dict[Quote, deque[Quote]] = {}
    found = {}
    for bid in sorted(bids, key=lambda bid: (bid.limit_mills, bid.order_id)):
        cheapest = quotes.found.get(bid.want)
        if cheapest is None:
            continue
        offers = [cheapest, *quotes.dearer.get(bid.want, ())]
        left = free.setdefault(cheapest, deque(offers))
        while left and is_taken[left[0]]:
            is_taken[left.popleft()] -= 1
        is_left = left and left[0].price_mills <= bid.limit_mills
        found[bid.order_id] = left.popleft() if is_left else _dearest(offers, bid.limit_mills)
    return found


def listed_often(quotes: Quotes) -> set[str]:
    """Name what has several listings, so that it matters who has which."""
    return {offers[0].market_hash_name for offers in quotes.dearer.values() if offers}


def _dearest(offers: Sequence[Quote], limit_mills: int) -> Quote:
    fitting = [offer for offer in offers if offer.price_mills <= limit_mills]
    return fitting[-1] if fitting else offers[0]
