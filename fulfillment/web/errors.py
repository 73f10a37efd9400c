"""Every refusal as `{"error": {"code", "message", "field"}}`, without traces and secrets."""

from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from fulfillment.errors import (
    CheckoutConflict,
    FulfillmentError,
    InvalidBody,
    InvalidInput,
    KeyMissing,
    OrderNotFound,
    SchemaOutdated,
    ServerUnreachable,
    WebhookRejected,
    WebhookUnreadable,
)
from fulfillment.log import get_logger
from schemas.orders import ReadModel

log = get_logger(__name__)

#: The database is away, not migrated, read-only or overloaded. All of it passes, so all is 503.
DATABASE_ERRORS = (ServerUnreachable, SchemaOutdated, psycopg.Error)
UNEXPECTED = "something went wrong here; our log says what"
#: The request itself is wrong, whatever its body is.
BAD_REQUEST = "bad_request"
_SAFE = "sending the same again later is safe"
#: Which key, the log says: that is nothing for a store.
_KEY_MISSING = f"our configuration lacks a key that this order was stored with; {_SAFE}"
#: A person has to put the key back first.
_KEY_BACK_S = "60"
_STATUS = {
    InvalidBody: 400,  # before InvalidInput, whose kind it is
    InvalidInput: 422,
    CheckoutConflict: 409,
    OrderNotFound: 404,
    KeyMissing: 503,
    WebhookUnreadable: 400,  # before WebhookRejected, whose kind it is
    WebhookRejected: 401,
}
_CODES = {
    400: InvalidBody.code,
    408: "body_too_slow",
    413: "body_too_large",
    414: "head_too_large",
    422: InvalidInput.code,
    431: "head_too_large",
    500: "internal",
    503: "unavailable",
}


class ErrorDetail(ReadModel):
    """What is wrong: for a program, for a person, and where."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(ReadModel):
    """The body of every answer that refuses."""

    error: ErrorDetail


def detail(
    status: int, message: str, field: str | None = None, code: str | None = None
) -> ErrorDetail:
    code = code or _CODES.get(status) or HTTPStatus(status).name.lower()
    return ErrorDetail(code=code, message=message, field=field)


def describe(error: FulfillmentError) -> tuple[int, ErrorDetail]:
    """Give the status that an error of ours is answered with, and what is said of it."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    if isinstance(error, InvalidInput):
        return status, detail(status, error.message, error.field)
    if isinstance(error, KeyMissing):
        return status, ErrorDetail(code="key_missing", message=_KEY_MISSING)
    if status == 500:
        log.error("web.unexpected_refusal", kind=type(error).__name__, reason=str(error))
        return status, detail(status, UNEXPECTED)
    field = "externalId" if isinstance(error, CheckoutConflict) else None
    return status, detail(status, str(error), field)


def refusal(
    status: int,
    message: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
    *,
    code: str | None = None,
) -> Response:
    return _refused(status, detail(status, message, field, code), headers)


def _refused(status: int, error: ErrorDetail, headers: dict[str, str] | None) -> Response:
    return JSONResponse(ErrorAnswer(error=error).as_json(), status, headers)


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return refusal(422, first["msg"], str(first["loc"][-1]))
    if isinstance(error, HTTPException):
        return refusal(error.status_code, error.detail, headers=dict(error.headers or {}))
    if isinstance(error, FulfillmentError) and not isinstance(error, DATABASE_ERRORS):
        is_later = isinstance(error, KeyMissing)
        return _refused(*describe(error), {"Retry-After": _KEY_BACK_S} if is_later else None)
    is_odd = isinstance(error, psycopg.Error)
    reason = reason_of(error)
    log.error("web.database_error", path=request.url.path, reason=reason, exc_info=is_odd)
    text = f"the database is not available now; {_SAFE}"
    return refusal(503, text, headers={"Retry-After": "5"})


def reason_of(error: BaseException) -> str:
    """Name a database error by its cause, without the address or values in its text."""
    if isinstance(error, FulfillmentError):
        return str(error)
    return type(getattr(error, "orig", None) or error).__name__


def install(app: FastAPI) -> None:
    """Answer every error in the one form; what is unforeseen, `metrics.Observed` catches."""
    for kind in (FulfillmentError, HTTPException, RequestValidationError, *DATABASE_ERRORS):
        app.add_exception_handler(kind, _answer)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe refusals for the OpenAPI document."""
    fields = {409: "externalId", 422: "expectedPrice"}
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        text = HTTPStatus(status).phrase
        error = detail(status, "what was expected, and what was found", fields.get(status))
        content = {"application/json": {"example": ErrorAnswer(error=error).as_json()}}
        answers[status] = {"model": ErrorAnswer, "description": text, "content": content}
    return answers
