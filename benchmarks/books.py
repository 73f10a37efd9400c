"""Compare the provider's ledger with our tables: every benchmark that buys ends with it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg

#: Ids that the product was given begin so; the baselines' begin with the baseline's name.
OURS = "p-"
#: Statuses in which the provider has the order; webhooks may have moved it on.
TAKEN = frozenset({"accepted", "queued", "processing", "pending", "sent", "completed"})


def check_product(database: psycopg.Connection[Any], ledgers: Sequence[dict[str, Any]]) -> None:
    """Raise RuntimeError unless all know the same purchases, once each, for the same money."""
    purchases = [each for ledger in ledgers for each in ledger["purchases"]]
    movements = [each for ledger in ledgers for each in ledger["wallet"]["movements"]]
    rows = database.execute(
        "SELECT o.external_id, o.status, a.hold_mills FROM orders o "
        "JOIN attempts a ON a.order_id = o.id"
    ).fetchall()
    ours = {name: held for name, status, held in rows if status in TAKEN}
    wrong = [f"{name} is {status} here" for name, status, _ in rows if status not in TAKEN]
    if len(ours) != len(rows):
        wrong.append("an order has two attempts")
    bought = [p for p in purchases if p["externalId"].startswith(OURS)]
    theirs = {p["externalId"]: p["amountMills"] for p in bought}
    wrong += [f"{name} is bought, and not here" for name in theirs.keys() - ours.keys()]
    wrong += [f"{name} is here, and not bought" for name in ours.keys() - theirs.keys()]
    wrong += [f"{n} costs {theirs[n]} mills, held are {ours[n]}" for n in theirs.keys() & ours
              if theirs[n] != ours[n]]  # fmt: skip
    charges = Counter(m["externalId"] for m in movements if m["kind"] == "charge")
    wrong += [f"{name} was charged {count} times" for name, count in charges.items() if count > 1]
    if wrong:
        raise RuntimeError(f"the books differ in {len(wrong)} points: {'; '.join(wrong[:5])}")


def check_baseline(database: psycopg.Connection[Any], ledger: dict[str, Any]) -> None:
    """Raise RuntimeError unless what the baselines accepted is what the provider sold them."""
    rows = database.execute("SELECT external_id FROM orders WHERE status = 'accepted'").fetchall()
    theirs = {p["externalId"] for p in ledger["purchases"]}
    theirs = {name for name in theirs if not name.startswith(OURS)}
    differ = {name for (name,) in rows} ^ theirs
    if differ:
        raise RuntimeError(f"the baselines' books differ in {len(differ)} orders")
