"""Apply webhooks that were stored."""

from fulfillment.broker import app
from fulfillment.services import webhooks
from schemas import messages
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.APPLY_WEBHOOK)
def apply_webhook(
    self: FulfillmentTask, /, delivery_id: int | None = None, external_id: str = ""
) -> dict[str, list[str]]:
    """Apply one delivery, or all that are due where none is named.

    `external_id` names its order for people who watch Flower.
    """
    del external_id
    return {"orders": webhooks.apply_deliveries(context(), delivery_id)}
