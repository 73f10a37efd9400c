"""Apply webhooks that were stored."""

from fulfillment.broker import app
from fulfillment.services import webhooks
from schemas import messages
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.APPLY_WEBHOOK)
def apply_webhook(self: FulfillmentTask, /, *external_ids: str) -> dict[str, list[str]]:
    """Apply the deliveries that are due.

    `external_ids` name the orders that gave cause for it, for people who watch Flower.
    """
    del external_ids
    return {"orders": webhooks.apply_deliveries(context())}
