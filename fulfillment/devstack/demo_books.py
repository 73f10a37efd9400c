"""Compare what we believe of an account with what its provider's ledger says, to the cent."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fulfillment.devstack.demo_script import Run
from fulfillment.states import UNFULFILLED
from schemas.enums import OrderStatus


def dollars(cents: int) -> str:
    sign = "-" if cents < 0 else ""
    return f"{sign}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"


@dataclass(frozen=True)
class Books:
    """One account. Our view of its orders is in the runs; the rest is as HTTP answered it."""

    runs: Sequence[Run]
    wallet: dict[str, Any]
    ledger: dict[str, Any]
    webhooks: Sequence[dict[str, Any]]

    def differences(self) -> list[str]:
        """Name everything that differs; nothing where the books agree."""
        return [*self._orders(), *self._money(), *self._forgeries()]

    def figures(self) -> dict[str, str]:
        """Say what was compared."""
        by_kind, wallet = self._by_kind(), self.ledger["wallet"]
        purchases = self.ledger["purchases"]
        hooks = Counter("bad" if h["tamper"] else h["outcome"] for h in self.webhooks)
        return {
            "purchases, none twice": str(len(purchases)),
            "POSTs for them": str(sum(purchase["posts"] for purchase in purchases)),
            "opening balance": dollars(wallet["opening"]),
            "+ top-up": dollars(by_kind["top_up"]),
            "- charges": dollars(-by_kind["charge"]),
            "+ refunds": dollars(by_kind["refund"]),
            "= balance by that sum": dollars(wallet["opening"] + by_kind.total()),
            "balance at the provider": dollars(wallet["balance"]),
            "balance here": dollars(self.wallet["balance"] or 0),
            "spent at the provider": dollars(self._spent()),
            "spent here": dollars(self._booked()),
            "still held here": dollars(self.wallet["held"]),
            "webhooks delivered": str(hooks["delivered"]),
            "webhooks lost on purpose": str(hooks["lost"]),
            "webhooks forged, none taken": str(hooks["bad"]),
        }

    def _by_kind(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        for movement in self.ledger["wallet"]["movements"]:
            sums[movement["kind"]] += movement["amountCents"]
        return sums

    def _spent(self) -> int:
        return sum(p["amountCents"] - p["refundedCents"] for p in self.ledger["purchases"])

    def _booked(self) -> int:
        spent = self.wallet["settled"] - self.wallet["refunded"]
        assert isinstance(spent, int)
        return spent

    def _orders(self) -> Iterator[str]:
        purchases = {p["externalId"]: p for p in self.ledger["purchases"]}
        if len(purchases) != len(self.ledger["purchases"]):
            yield "the provider sold one order twice"
        movements = self.ledger["wallet"]["movements"]
        charges = Counter(m["externalId"] for m in movements if m["kind"] == "charge")
        yield from (f"{name}: charged {n} times" for name, n in charges.items() if n > 1)
        for run in self.runs:
            ours = (run.view or {}).get("chargedPrice") or 0
            purchase = purchases.pop(run.external_id, None)
            if purchase is None:
                if ours or run.status == OrderStatus.COMPLETED:
                    yield f"{run.external_id}: {run.end} here, unknown to the provider"
                continue
            theirs = purchase["amountCents"] - purchase["refundedCents"]
            if purchase["status"] == OrderStatus.REVERSED:  # what was charged stays on the order
                theirs = purchase["amountCents"]
            if _kind(run.status) != _kind(purchase["status"]):
                yield f"{run.external_id}: {run.end} here, {purchase['status']} at the provider"
            # A purchase that was refused at once is no order here, and has no such word.
            word, said = purchase["providerStatus"], (run.view or {}).get("providerStatus")
            if said not in (word, None):
                yield f"{run.external_id}: {said} by our books, {word} at the provider"
            if ours != theirs:
                yield f"{run.external_id}: {dollars(ours)} here, {dollars(theirs)} at the provider"
        yield from (f"{name}: bought, and never ordered" for name in purchases)

    def _money(self) -> Iterator[str]:
        figures = self.ledger["wallet"]
        expected = figures["opening"] + self._by_kind().total()
        if expected != figures["balance"]:
            yield f"the provider's own ledger: {dollars(expected)}, {dollars(figures['balance'])}"
        if self._booked() != self._spent():
            here, there = dollars(self._booked()), dollars(self._spent())
            yield f"spent: {here} here, {there} at the provider"
        if self.wallet["held"]:
            yield f"held: {dollars(self.wallet['held'])} with nothing under way"
        if self.wallet["balance"] != figures["balance"]:
            here = dollars(self.wallet["balance"] or 0)
            yield f"balance: {here} here, {dollars(figures['balance'])} at the provider"

    def _forgeries(self) -> Iterator[str]:
        for hook in self.webhooks:
            if hook["tamper"] and hook["outcome"] == "delivered":
                yield f"{hook['externalId']}: a webhook was taken that is not genuine"


def _kind(status: str) -> str:
    """Tell apart what every provider does; each has its own words for an end without the item."""
    return "not delivered" if status in UNFULFILLED else status
