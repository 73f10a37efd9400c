"""What happens in the demo: every checkout, the way it comes in, and the end that it must have.

The provider's behaviour is named by the end of the order's id, see simulator/scenarios.py; a word
that is no scenario is one of ours, and the provider then simply delivers.
"""

# ruff: noqa: E501 - a row of the script stays on one line

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from fulfillment.devstack.configuration import SIMULATED
from fulfillment.errors import InvalidInput
from fulfillment.settings import DEFAULT_ACCOUNT
from fulfillment.simulator import catalog
from fulfillment.simulator.catalog import Item
from fulfillment.states import FINAL
from schemas.enums import FailedBy, OrderStatus

CATALOG_SIZE = 2_000
CATALOG_SEED = 1  # the simulator's default
CHEAPEST_CENTS = 50
TRADE_URL = "https://steamcommunity.com/tradeoffer/new/?partner=246813579&token=demoDEMO"
BAD_TRADE_URL = "https://steamcommunity.com/id/somebody"
BANNED_TRADE_URL = TRADE_URL.replace("demoDEMO", "TradeBan")  # see simulator/recipients.py


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkout. `end` is what must become of it, in the words of `Run.end`."""

    title: str
    account: str = DEFAULT_ACCOUNT
    name: str = "delivered"
    end: str = "completed"
    way: str = "http"
    #: The item's price at the provider, in percent of the agreed one, when the checkout comes in.
    market_percent: int = 100
    is_on_sale: bool = True
    trade_url: str = TRADE_URL
    #: Ways by which the same checkout comes in once more; `changed` is HTTP with another price.
    again: tuple[str, ...] = ()


FUNDS_LATER, FUNDS_NEVER = "funds_later", "funds_never"
SHOWN_AT_THE_END = "timeout_and_silence"
SETTLED = "completed, settled"  # it can be undone no more
BACK, LINK = "skinsback", "skinslink"

# fmt: off
_SCRIPT = (
    # SkinsNode
    Case(title="delivered"),
    Case(title="delivered", way="batch"),
    Case(title="delivered", way="batch"),
    Case(title="delivered", way="queue"),
    Case(title="delivered", way="celery"),
    Case(title="delivered", way="cli"),
    Case(title="delivered", way="cli"),
    Case(title="customer lets the offer expire", name="expired", end="expired"),
    Case(title="wallet short, topped up in time", name=FUNDS_LATER),
    Case(title="wallet short for good", name=FUNDS_NEVER, end="we refused: insufficient_funds"),
    Case(title="timeout after the accept", name="timeout_after_accept"),
    Case(title="timeout after accept, no webhook", name="timeout_and_silence", way="celery"),
    Case(title="timeout before the accept", name="timeout_before_accept"),
    Case(title="every webhook lost", name="webhooks_lost", way="queue"),
    Case(title="reversed later, money returned", name="reversed", end="reversed"),
    Case(title="price lower: bought at that", name="price_lower", market_percent=85),
    Case(title="price higher than agreed", name="price_higher", market_percent=115, end="we refused: price_changed"),
    Case(title="item gone from the catalog", name="not_on_sale", is_on_sale=False, end="we refused: item_unavailable"),
    Case(title="trade URL bad", name="bad_trade_url", trade_url=BAD_TRADE_URL, end="422: tradeUrl"),
    Case(title="same checkout sent twice", name="sent_twice", again=("http",)),
    Case(title="same checkout over four ways", name="sent_four_ways", again=("queue", "celery", "cli")),
    Case(title="same id, other content: 409", name="conflict", again=("changed",)),
    Case(title="failed after the 202", name="fails_after_accept", way="queue", end="failed: item_unavailable"),
    Case(title="price changed after the 202", name="price_changes_after_accept", end="failed: price_changed"),
    Case(title="cancelled by the provider", name="cancelled", way="celery", end="cancelled"),
    Case(title="webhook before the answer", name="webhook_before_answer"),
    Case(title="completed before the answer", name="completed_before_answer"),
    Case(title="garbage answer, yet accepted", name="garbage_answer"),
    Case(title="webhooks in reverse order", name="webhooks_reordered"),
    Case(title="forged webhooks among the true", name="webhooks_forged"),
    Case(title="webhooks with a wrong signature", name="webhooks_bad_signature"),
    Case(title="a status nobody documented", name="unknown_status"),
    # SkinsBack: refuses at once inside HTTP 200, is asked about the recipient before, has a hold
    Case(title="customer lets the offer expire", account=BACK, name="expired", end="expired"),
    Case(title="wallet short for good", account=BACK, name=FUNDS_NEVER, end="we refused: insufficient_funds"),
    Case(title="delivered, and its hold is over", account=BACK, name="hold_settles", end=SETTLED),
    Case(title="undone by the customer in the hold", account=BACK, name="reversed_without_refund", end="reversed"),
    Case(title="delivered", account=BACK, way="queue"),
    Case(title="timeout after the purchase", account=BACK, name="timeout_after_accept"),
    Case(title="error 7: the id is used, by us", account=BACK, name="duplicate_id"),
    Case(title="every webhook lost", account=BACK, name="webhooks_lost", way="celery"),
    Case(title="price higher than agreed", account=BACK, name="price_higher", market_percent=115, end="we refused: price_changed"),
    Case(title="item gone from the list", account=BACK, name="not_on_sale", is_on_sale=False, end="we refused: item_unavailable"),
    Case(title="recipient banned from trading", account=BACK, name="banned", trade_url=BANNED_TRADE_URL, end="failed: recipient_cannot_trade"),
    Case(title="failed after the purchase", account=BACK, name="fails_after_accept", end="failed: item_unavailable"),
    Case(title="customer declines the offer", account=BACK, name="declined", end="cancelled"),
    # Skinslink: never posted to twice, so nothing here is lost before it is accepted
    Case(title="delivered, and its hold is over", account=LINK, name="hold_settles", end=SETTLED),
    Case(title="undone in the hold", account=LINK, name="reversed_without_refund", end="reversed"),
    Case(title="delivered", account=LINK, way="queue"),
    Case(title="timeout after the purchase", account=LINK, name="timeout_after_accept"),
    Case(title="duplicate_purchase, yet bought", account=LINK, name="duplicate_purchase"),
    Case(title="every webhook lost", account=LINK, name="webhooks_lost", way="cli"),
    Case(title="price higher than agreed", account=LINK, name="price_higher", market_percent=115, end="we refused: price_changed"),
    Case(title="item sold before the purchase", account=LINK, name="refused_item", end="failed: item_unavailable"),
    Case(title="failed after the purchase", account=LINK, name="fails_after_accept", end="failed: item_unavailable"),
    Case(title="customer declines the offer", account=LINK, name="declined", end="cancelled"),
)
# fmt: on
SCRIPT = tuple(case for case in _SCRIPT if case.account in SIMULATED)


@dataclass
class Run:
    """One checkout on its way: what was sent, and what the HTTP API said of it last."""

    case: Case
    number: int
    item: Item
    sent_at: float | None = None
    refused: str = ""
    view: dict[str, Any] | None = None

    @property
    def external_id(self) -> str:
        return f"demo-{self.number:02d}.{self.case.name}"

    @property
    def event(self) -> dict[str, Any]:
        return {
            "externalId": self.external_id,
            "account": self.case.account,
            "catalogItemId": self.item.id,
            "marketHashName": self.item.name,
            "expectedPrice": self.item.price_cents,
            "tradeUrl": self.case.trade_url,
        }

    @property
    def status(self) -> str:
        return self.view["status"] if self.view else ""

    @property
    def end(self) -> str:
        """Say how the order stands, in the words of the script."""
        if self.refused:
            return self.refused
        failure = self.view and self.view["failure"]
        if failure and self.status == OrderStatus.FAILED:
            who = "we refused" if failure["by"] == FailedBy.US else "failed"
            return f"{who}: {failure['code']}"
        if self.view and self.status == OrderStatus.COMPLETED and not self.view["reversibleUntil"]:
            return SETTLED
        return self.status or "not here yet"

    @property
    def is_as_scripted(self) -> bool:
        return self.end == self.case.end

    @property
    def is_over(self) -> bool:
        """Say whether nothing more is to come; `completed` has one exit, which some wait for."""
        awaits_more = self.case.end in (OrderStatus.REVERSED, SETTLED) and not self.is_as_scripted
        may_go_on = self.status == OrderStatus.COMPLETED and awaits_more
        return bool(self.refused) or (self.status in FINAL and not may_go_on)

    @property
    def path(self) -> list[tuple[datetime, str]]:
        """Give every status that the order has had, and since when."""
        timeline = self.view["timeline"] if self.view else []
        return [
            (datetime.fromisoformat(e["at"]), e["to"]) for e in timeline if e["from"] != e["to"]
        ]


def acts(runs: Iterable[Run]) -> list[list[Run]]:
    """Group what is sent in one go: batches and files of the command line; accounts take turns."""
    by_account: dict[str, list[list[Run]]] = defaultdict(list)
    for (account, way), group in groupby(runs, key=lambda run: (run.case.account, run.case.way)):
        members = list(group)
        by_account[account] += [members] if way in ("batch", "cli") else [[run] for run in members]
    turns = [
        (place / len(own), act) for own in by_account.values() for place, act in enumerate(own)
    ]
    return [act for _, act in sorted(turns, key=lambda turn: turn[0])]


def cast(prices: Path | None) -> tuple[list[Run], int]:
    """Choose an item for every checkout, and the opening balance of every wallet.

    The balance pays for all but the orders that are to be short: one is so by a cent until its
    wallet is topped up by its price, the others cost more than there ever is. Raises InvalidInput
    for an unusable price file.
    """
    try:
        items = catalog.build(CATALOG_SIZE, prices, CATALOG_SEED)
    except (OSError, ValueError) as error:
        raise InvalidInput("--prices", str(error)) from None
    places = {item.id: place for place, item in enumerate(items)}
    items.sort(key=lambda item: item.price_cents)
    dearest = items[-1] if items else None
    half = [item for item in items if dearest and 2 * item.price_cents <= dearest.price_cents]
    most = half[-1].price_cents // (len(SCRIPT) + 5) if half else 0
    cheap = [item for item in half if CHEAPEST_CENTS <= item.price_cents <= most]
    if dearest is None or len(cheap) < len(SCRIPT):
        expected = f"expected {len(SCRIPT)} items of {CHEAPEST_CENTS} cents or more that cost"
        raise InvalidInput("--prices", f"{expected} a hundredth of the dearest, found {len(cheap)}")
    chosen = random.Random(CATALOG_SEED).sample(cheap, len(SCRIPT))  # noqa: S311
    special = {FUNDS_LATER: half[-1], FUNDS_NEVER: dearest}
    runs = []
    for number, (case, item) in enumerate(zip(SCRIPT, chosen, strict=True), start=1):
        item = special.get(case.name, item)
        own_id = catalog.IDS[SIMULATED[case.account].provider](item.name, places[item.id])
        runs.append(Run(case, number, replace(item, id=own_id)))
    return runs, half[-1].price_cents - 1
