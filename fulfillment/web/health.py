"""`/healthz`, `/readyz` and `/metrics`: open to all, so they tell no secret."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from fulfillment.services import operations
from fulfillment.services.operations import Check
from fulfillment.web.errors import DATABASE_ERRORS, reason_of
from fulfillment.web.requests import Web, WebParts

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is looked at."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "Something that is needed does not work"}})
async def readyz(web: WebParts) -> Response:
    """Say whether everything works that an order needs, and what does not."""
    return await web.health.run(_readyz, web)


def _readyz(web: Web) -> Response:
    try:
        checks = operations.check_readiness(web.context)
    except DATABASE_ERRORS as error:  # it went away between two of the questions
        checks = [Check("database", is_ok=False, detail=reason_of(error))]
    is_ready = all(check.is_ok for check in checks if check.is_needed)
    found = {check.name: {"ok": check.is_ok, "detail": check.detail} for check in checks}
    status = "ok" if is_ready else "unavailable"
    return JSONResponse({"status": status, "checks": found}, 200 if is_ready else 503)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response)
async def metrics(web: WebParts) -> Response:
    """Give the figures in Prometheus' text format; it answers without the database too."""
    page = await web.health.run(generate_latest, web.metrics.registry)
    return Response(page, media_type=CONTENT_TYPE_LATEST)
