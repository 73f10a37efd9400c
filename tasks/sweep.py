"""The sweep: whatever a lost message or a dead worker left behind is set going again."""

from fulfillment.broker import app, hint
from fulfillment.services import pulse, sharing, sweep
from schemas import messages
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.RESUME_STUCK)
def resume_stuck(self: FulfillmentTask, /, stands_in: bool = False) -> dict[str, int]:
    """Send what the sweep found; `stands_in`: no beat asked for it, but a worker."""
    found = sweep.resume_stuck(context(), pulse.STAND_IN if stands_in else pulse.SWEEP)
    for account in found.accounts:
        hint(messages.DISPATCH, account)
    for batch in found.batches:
        if not hint(messages.SUBMIT_ORDERS, batch):
            sharing.leave(context(), batch)  # the next sweep need not wait for a lease
    if found.has_webhooks:
        hint(messages.APPLY_WEBHOOK)
    return {"dispatches": len(found.accounts), "batches": len(found.batches)}
