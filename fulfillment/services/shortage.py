"""Whether what a catalog lacks may only seem to be gone: then nobody is refused by it yet.

A fault of the provider is told from a sale by how much is missing at once. One item that is gone is
believed at once, whoever wants it.
"""

from datetime import datetime, timedelta

from fulfillment.log import get_logger
from fulfillment.store import accounts, leases
from fulfillment.store.accounts import Catalog
from fulfillment.store.engine import Session
from schemas.provider import Quotes

log = get_logger(__name__)

# A list that lost so much at once is more likely a fault than a sale. Of a short list a few sales
# are a large part.
_DOUBTED_SHARE = 0.6
_SMALLEST_JUDGED = 20
#: So many different names of which nothing is on sale, in one search or in several without any
#: other find, are more than chance.
_SEVERAL_NAMES = 3
#: How long it is doubted, and what still looks the same after that is believed as long.
_DOUBT = timedelta(minutes=10)


def judge(
    session: Session, account: str, quotes: Quotes, requested_at: datetime
) -> tuple[bool, Catalog]:
    """Say whether what the answer lacks is to be doubted, and what to note of the catalog."""
    known = accounts.last_catalog(session, account)
    if quotes.is_whole:
        if _is_shrunk(session, account, quotes, known, requested_at):
            return True, known
        return False, Catalog(quotes.listed, known.missed)
    absent = [name for name, is_listed in quotes.searched.items() if not is_listed]
    is_any_listed = len(absent) < len(quotes.searched)
    missed = dict.fromkeys(() if is_any_listed else (*known.missed, *absent))
    seen = Catalog(known.items, tuple(missed)[:_SEVERAL_NAMES])
    return _is_empty(session, account, quotes, absent, seen, requested_at), seen


def _is_shrunk(
    session: Session, account: str, quotes: Quotes, known: Catalog, requested_at: datetime
) -> bool:
    """Say whether the whole list lost a large part; it is believed when it stays so long enough."""
    doubt = accounts.catalog_doubt(account)
    is_less = quotes.listed < known.items * _DOUBTED_SHARE and known.items >= _SMALLEST_JUDGED
    if is_less:
        over_at = leases.until(session, doubt, requested_at + _DOUBT)
        if over_at is None:
            leases.acquire(session, doubt, account, requested_at, requested_at + _DOUBT)
            log.error("catalog.shrunk", account=account, listed=quotes.listed, before=known.items)
        if over_at is None or over_at > requested_at:
            return True
    if known.is_doubted:
        leases.give_up(session, doubt, account)
    return False


def _is_empty(
    session: Session,
    account: str,
    quotes: Quotes,
    absent: list[str],
    seen: Catalog,
    requested_at: datetime,
) -> bool:
    """Say whether a search found too little of what it was asked for.

    Other searches beside it say nothing about that, so the doubt has its time whatever they find.
    """
    found = len(quotes.searched) - len(absent)
    if found:
        is_less = found < len(quotes.searched) * _DOUBTED_SHARE and len(absent) >= _SEVERAL_NAMES
    else:
        is_less = bool(absent) and len(seen.missed) >= _SEVERAL_NAMES
    if not is_less:
        return False
    doubt = f"search:{account}"
    over_at = leases.until(session, doubt, requested_at + _DOUBT)
    if over_at is None or over_at + _DOUBT <= requested_at:
        leases.acquire(session, doubt, account, requested_at, requested_at + _DOUBT)
        log.error("catalog.names_missing", account=account, asked=len(quotes.searched), found=found)
        return True
    return over_at > requested_at
