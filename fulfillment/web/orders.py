"""`GET /v1/orders` and `/v1/wallets`: what the store and the operator read."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.responses import JSONResponse, Response

from fulfillment.errors import InvalidInput
from fulfillment.services import operations
from fulfillment.web.errors import documented
from fulfillment.web.requests import WebParts, require_token
from schemas.enums import OrderStatus
from schemas.orders import OrderView, ReadModel, WalletView

_CURSOR = r"^[0-9]{18}$"
_PARAMETERS = ("status", "account", "cursor", "limit")
router = APIRouter(prefix="/v1", tags=["orders"], dependencies=[Depends(require_token)])


class OrderPage(ReadModel):
    """Orders, newest first; `nextCursor` is null on the last page."""

    orders: list[OrderView]
    next_cursor: str | None


class Wallets(ReadModel):
    """The money of every account, in cents."""

    wallets: list[WalletView]


@router.get("/orders", response_model=OrderPage, responses=documented(401, 422, 429, 503))
def list_orders(
    request: Request,
    web: WebParts,
    status: OrderStatus | None = None,
    account: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")] = None,
    cursor: Annotated[
        str | None, Query(pattern=_CURSOR, description="`nextCursor` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """List orders, newest first, a page at a time."""
    for name in _PARAMETERS:
        if len(request.query_params.getlist(name)) > 1:  # the last alone would count
            raise InvalidInput(name, "expected once")
    before_id = None if cursor is None else int(cursor)
    found, last_id = operations.page(
        web.context, status=status, account=account, before_id=before_id, limit=limit
    )
    next_cursor = None if last_id is None else f"{last_id:018}"
    return JSONResponse(OrderPage(orders=found, next_cursor=next_cursor).as_json())


@router.get(
    "/orders/{external_id}", response_model=OrderView, responses=documented(401, 404, 429, 503)
)
def show_order(external_id: str, web: WebParts) -> Response:
    """Show one order with its timeline."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", external_id):  # may hold a NUL, and is no id
        raise HTTPException(404, "no order can have this externalId")
    return JSONResponse(operations.show(web.context, external_id).as_json())


@router.get("/wallets", response_model=Wallets, responses=documented(401, 429, 503))
def list_wallets(web: WebParts) -> Response:
    """Show every account's balance, what is held of it, and whether the account is paused."""
    return JSONResponse(Wallets(wallets=operations.wallets(web.context)).as_json())
