"""`POST /v1/checkouts` and its batch: the store's paid orders come in."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from fulfillment.errors import CheckoutConflict, KeyMissing
from fulfillment.services import intake, operations
from fulfillment.services.batches import parse_batch
from fulfillment.services.intake import Received
from fulfillment.web.errors import ErrorDetail, describe, documented
from fulfillment.web.requests import DirectRoute, Web, WebParts, require_token
from schemas.checkout import CheckoutEvent
from schemas.enums import OrderStatus
from schemas.messages import DISPATCH
from schemas.orders import CheckoutResult, OrderView, ReadModel

MAX_BATCH_BYTES = 4 * 1024 * 1024

router = APIRouter(
    prefix="/v1/checkouts",
    tags=["checkouts"],
    dependencies=[Depends(require_token)],
    route_class=DirectRoute,
)


class BatchEntry(ReadModel):
    """What became of one checkout of a batch: either `status` or `error` is there."""

    external_id: str | None
    status: OrderStatus | None = None
    error: ErrorDetail | None = None


class BatchAnswer(ReadModel):
    """One result an entry, in the order of the entries."""

    results: list[BatchEntry]


def _body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """Document a body that the endpoint reads itself, with the strict parser of all intakes."""
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_EVENT = CheckoutEvent.model_json_schema()
_EXAMPLE = _EVENT["examples"][0]
_LIST = {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": intake.MAX_BATCH}
_OBJECT = {"type": "object", "properties": {"checkouts": _LIST}, "required": ["checkouts"]}
_REFUSALS = documented(400, 401, 408, 413, 422, 429, 503)


@router.post(
    "",
    status_code=202,
    response_model=CheckoutResult,
    response_description="Stored; it will be bought",
    responses={
        200: {"model": OrderView, "description": "Known already with the same content"},
        **_REFUSALS,
        **documented(409),
    },
    openapi_extra=_body(_EVENT, _EXAMPLE),
)
async def receive_checkout(request: Request, web: WebParts) -> Response:
    """Take one checkout in. Sending the same again is safe and answers with the order."""
    result = await web.checkouts.run_together(request, intake.MAX_EVENT_BYTES, web.intake)
    _note(web, [result])
    if result.error:
        raise result.error
    if not result.is_new and result.external_id:
        view = await web.checkouts.run(operations.show, web.context, result.external_id)
        return JSONResponse(view.as_json())
    return JSONResponse(_entry(result), 202)


@router.post(
    "/batch",
    response_model=BatchAnswer,
    response_description="Each entry's result; a bad entry does not fail the others",
    responses=_REFUSALS,
    openapi_extra=_body({"anyOf": [_OBJECT, _LIST]}, {"checkouts": [_EXAMPLE]}),
)
async def receive_batch(request: Request, web: WebParts) -> Response:
    """Take up to 1,000 checkouts in, as a list or as `{"checkouts": [...]}`."""
    act = partial(_receive_many, web)
    return await web.checkouts.run_on_body(request, MAX_BATCH_BYTES, act)


def _receive_many(web: Web, body: bytes) -> Response:
    results = intake.receive_raw(web.context, parse_batch(body))
    _note(web, results)
    return JSONResponse({"results": [_entry(result) for result in results]})


def _note(web: Web, results: Sequence[Received]) -> None:
    for account in intake.new_accounts(results):
        web.hints(DISPATCH, account)
    for word, count in Counter(map(_word, results)).items():
        web.metrics.checkouts.labels(word).inc(count)


def _word(result: Received) -> str:
    if isinstance(result.error, KeyMissing):
        return "key_missing"
    if result.error:
        return "conflict" if isinstance(result.error, CheckoutConflict) else "invalid"
    return "new" if result.is_new else "repeated"


def _entry(result: Received) -> dict[str, Any]:
    # A refused id is echoed as it came; half a surrogate pair would be no UTF-8.
    shown = result.external_id and result.external_id.encode(errors="replace").decode()
    if result.error:
        return {"externalId": shown, "error": describe(result.error)[1].as_json()}
    return {"externalId": shown, "status": result.status}
