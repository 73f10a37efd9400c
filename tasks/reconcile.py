"""Polls: find what is due, then ask about it."""

from fulfillment.broker import app, hint
from fulfillment.services import reconciliation
from schemas import messages
from schemas.messages import Batch
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.POLL_DUE)
def poll_due(self: FulfillmentTask, /) -> dict[str, int]:
    """Claim the orders that are due for a poll and hand them out in batches."""
    claimed = 0
    for batch in reconciliation.poll_due(context()):
        hint(messages.POLL_ORDERS, batch)
        claimed += len(batch["ids"])
    return {"orders": claimed}


@app.task(bind=True, base=FulfillmentTask, name=messages.POLL_ORDERS)
def poll_orders(self: FulfillmentTask, /, batch: Batch) -> dict[str, int]:
    """Ask the provider about the batch and apply the answers."""
    changed = reconciliation.poll_orders(context(), batch["account"], batch["ids"])
    return {"orders": len(batch["ids"]), "changed": changed}
