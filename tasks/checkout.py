"""The chain: dispatch, refresh_catalog | check_wallet | submit_orders | schedule_reconciliation."""

import json
from typing import Any

from celery import chain

from fulfillment.broker import app, hint
from fulfillment.errors import FulfillmentError
from fulfillment.messaging.dead_letters import bury
from fulfillment.services import (
    catalog,
    dispatch,
    funds,
    intake,
    reconciliation,
    sharing,
    submission,
)
from fulfillment.services.claiming import StepOutcome
from fulfillment.settings import load_settings
from schemas import messages
from schemas.messages import Batch
from tasks.base import ID, FulfillmentTask, context


# Its message is the only copy of the checkout until the order is stored.
@app.task(bind=True, base=FulfillmentTask, name=messages.RECEIVE, acks_late=True)
def receive(
    self: FulfillmentTask, /, event: Any = None, *more: Any, **fields: Any
) -> dict[str, Any]:
    """Take a checkout in from a store that speaks Celery: one event, as a dict or as keywords."""
    raw = [event, *more] if more else fields if event is None else event
    results = _store(raw, self.request.headers)
    for account in intake.new_accounts(results):
        hint(messages.DISPATCH, account)
    (result,) = results
    # Flower shows the result: a sender's id is echoed only where it can be nothing but an id.
    shown = result.external_id if ID.fullmatch(result.external_id or "") else None
    if result.error is not None:
        _bury(raw, str(result.error), self.request.headers)
        return {"externalId": shown, "refused": str(result.error)}
    return {"externalId": shown, "status": result.status}


def _store(raw: Any, headers: Any) -> list[intake.Received]:
    try:
        return intake.receive_raw(context(), [raw])
    except FulfillmentError:
        raise  # the message is put back
    except Exception as error:
        # Acknowledged as failed, but not lost.
        _bury(raw, f"could not be stored: {type(error).__name__}", headers)
        raise


def _bury(raw: Any, reason: str, headers: Any) -> None:
    # Celery's own JSON brings times and other things back that plain JSON has no word for.
    bury(load_settings(), json.dumps(raw, default=str), "application/json", reason, headers)


@app.task(bind=True, base=FulfillmentTask, name=messages.DISPATCH)
def dispatch_waiting(self: FulfillmentTask, /, *accounts: str) -> dict[str, Any]:
    """Claim what waits for each account and start one chain for all of it."""
    batches = [dispatch.dispatch(context(), account) for account in accounts]
    steps = (refresh_catalog, check_wallet, submit_orders, schedule_reconciliation)
    for batch in filter(None, batches):
        chain(*(step.si(batch) for step in steps)).apply_async()
    return {"orders": sum(len(batch["ids"]) for batch in batches if batch)}


def _go_on(task: FulfillmentTask, batch: Batch, outcome: StepOutcome) -> dict[str, Any]:
    if outcome.is_more_waiting:
        hint(messages.DISPATCH, batch["account"])
    for account in outcome.rerouted_to:
        hint(messages.DISPATCH, account)
    if not outcome.goes_on:
        task.stop_chain()
    return {"goes_on": outcome.goes_on}


@app.task(bind=True, base=FulfillmentTask, name=messages.REFRESH_CATALOG)
def refresh_catalog(self: FulfillmentTask, /, batch: Batch) -> dict[str, Any]:
    """Give every order of the batch a fresh price or a definite no."""
    return _go_on(self, batch, catalog.refresh_catalog(context(), batch))


@app.task(bind=True, base=FulfillmentTask, name=messages.CHECK_WALLET)
def check_wallet(self: FulfillmentTask, /, batch: Batch) -> dict[str, Any]:
    """Hold money for the batch in the order of arrival."""
    return _go_on(self, batch, funds.check_wallet(context(), batch))


@app.task(bind=True, base=FulfillmentTask, name=messages.SUBMIT_ORDERS)
def submit_orders(self: FulfillmentTask, /, batch: Batch) -> dict[str, Any]:
    """Buy what is reserved, or find out what became of it; of much of it others take their part."""
    share, others = sharing.share_out(context(), batch, is_new=bool(self.request.chain))
    for other in others:
        hint(messages.SUBMIT_ORDERS, other)
    mine = submission.submit_orders(context(), share)
    if mine and not self.request.chain:  # of another one's batch, or what the sweep found
        hint(messages.SCHEDULE_RECONCILIATION, mine)
    if not mine:
        self.stop_chain()
    return {"goes_on": bool(mine)}


@app.task(bind=True, base=FulfillmentTask, name=messages.SCHEDULE_RECONCILIATION)
def schedule_reconciliation(self: FulfillmentTask, /, batch: Batch) -> dict[str, Any]:
    """See that the batch's orders are followed; then there is room for another one."""
    forgotten = reconciliation.schedule_reconciliation(context(), batch)
    if dispatch.is_waiting(context(), batch["account"]):
        hint(messages.DISPATCH, batch["account"])
    return {"scheduled": len(batch["ids"]), "forgotten": forgotten}
