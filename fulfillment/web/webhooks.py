"""`POST /webhooks/{account}`: the raw bytes are verified, stored and answered; applied later."""

from functools import partial

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import JSONResponse, Response

from fulfillment.errors import WebhookRejected
from fulfillment.log import get_logger
from fulfillment.services import webhooks
from fulfillment.services.webhooks import Taken, Verdict
from fulfillment.web.errors import documented
from fulfillment.web.requests import DirectRoute, Web, WebParts
from schemas.messages import APPLY_WEBHOOK
from schemas.orders import ReadModel

log = get_logger(__name__)
router = APIRouter(tags=["webhooks"], route_class=DirectRoute)


class WebhookAnswer(ReadModel):
    """What became of a delivery with a good signature."""

    status: Verdict


@router.post(
    "/webhooks/{account}",
    response_model=WebhookAnswer,
    responses=documented(400, 401, 404, 408, 413, 429, 503),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": {}}}}},
)
async def receive_webhook(account: str, request: Request, web: WebParts) -> Response:
    """Take one delivery of a provider. It is signed, so it needs no token."""
    if account not in web.context.settings.accounts:
        raise HTTPException(404, "there is no such account")
    act = partial(_take, web, account, request)
    try:
        taken = await web.webhooks.run_on_body(request, webhooks.MAX_WEBHOOK_BYTES, act)
    except WebhookRejected as error:
        web.metrics.webhooks.labels(account, "rejected").inc()
        web.note_failure(request)  # beyond its limit there is no line in the log either
        log.warning("webhook.rejected", account=account, reason=error.reason)
        raise
    web.metrics.webhooks.labels(account, taken.verdict).inc()
    if taken.delivery_id is not None:
        web.hints(APPLY_WEBHOOK, taken.external_id)
    return JSONResponse({"status": taken.verdict})


def _take(web: Web, account: str, request: Request, body: bytes) -> Taken:
    if not webhooks.is_known_account(web.context, account):
        raise HTTPException(404, "there is no such account")
    # These headers keep duplicates apart, which a dict would not.
    return webhooks.take(web.context, account, request.headers, body)
