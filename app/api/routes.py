"""Dry runs of the routing decision, and the state of the regions."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from app.access import Principal
from app.api.access import exchange_of, require, serving_of
from app.dry_run import ExplainRequest

router = APIRouter(prefix="/v1", tags=["routing"])


@router.post("/route/explain", summary="What would happen to such a request, and why; sends nothing")
async def explain(
    request: Request, options: ExplainRequest, principal: Annotated[Principal, Depends(require("infer"))]
) -> dict[str, Any]:
    return serving_of(request).views.explain(exchange_of(request), principal, options).as_json()


@router.get(
    "/regions",
    dependencies=[Depends(require("infer"))],
    summary="The regions with health, breaker state, latency and models",
)
async def regions(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": serving_of(request).views.regions()}
