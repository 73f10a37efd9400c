"""Housekeeping: check what must always hold, and erase what must not be kept."""

from fulfillment.broker import app
from fulfillment.services import erasure, invariants
from schemas import messages
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.CHECK_INVARIANTS)
def check_invariants(self: FulfillmentTask, /) -> dict[str, int]:
    """Count what breaks each invariant that does not hold."""
    found = invariants.check(context())
    return {violation.invariant: len(violation.subjects) for violation in found}


@app.task(bind=True, base=FulfillmentTask, name=messages.ERASE)
def erase_due(self: FulfillmentTask, /) -> dict[str, int]:
    """Erase the trade URLs and sent bodies of orders that have been over for long enough."""
    return {"orders": erasure.erase(context())}
