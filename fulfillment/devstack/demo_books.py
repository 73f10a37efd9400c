"""Compare what we believe with what the provider's ledger says, to the cent."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fulfillment.devstack.demo_script import Run
from schemas.enums import OrderStatus


def dollars(cents: int) -> str:
    sign = "-" if cents < 0 else ""
    return f"{sign}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"


@dataclass(frozen=True)
class Books:
    """Our view of the orders is in the runs; the rest is as HTTP answered it."""

    runs: Sequence[Run]
    wallet: dict[str, Any]
    ledger: dict[str, Any]
    webhooks: Sequence[dict[str, Any]]

    def differences(self) -> list[str]:
        """Name everything that differs; nothing where the books agree."""
        return [*self._orders(), *self._money(), *self._forgeries()]

    def lines(self) -> list[str]:
        """Say in a few lines what was compared."""
        by_kind = self._by_kind()
        opening, balance = self.ledger["wallet"]["opening"], self.ledger["wallet"]["balance"]
        posts = sum(purchase["posts"] for purchase in self.ledger["purchases"])
        hooks = Counter("bad" if h["tamper"] else h["outcome"] for h in self.webhooks)
        charges, refunds = dollars(-by_kind["charge"]), dollars(by_kind["refund"])
        top_up, total = dollars(by_kind["top_up"]), dollars(opening + by_kind.total())
        here = dollars(self.wallet["balance"] or 0)
        return [
            f"purchases  {len(self.ledger['purchases'])} from {posts} POSTs, none twice; "
            "status and charge of each as here",
            f"wallet     {dollars(opening)} + {top_up} top-up - {charges} charges "
            f"+ {refunds} refunds",
            f"balance    {total} by that sum, {dollars(balance)} at the provider, {here} here",
            f"spent      {dollars(self._spent())} at the provider, {dollars(self._booked())} here; "
            f"{dollars(self.wallet['held'])} still held",
            f"webhooks   {hooks['delivered']} delivered, {hooks['lost']} lost on purpose; "
            f"of {hooks['bad']} forged ones none was taken",
        ]

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
            if run.status != purchase["status"]:
                yield f"{run.external_id}: {run.end} here, {purchase['status']} at the provider"
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
