"""Liveness, readiness and metrics; none of them asks for a key or calls a model."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api.access import serving_of
from app.telemetry.metrics import Metrics


def routes(metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    async def ready(request: Request) -> Response:
        return _told(serving_of(request).views.readiness())

    async def health(request: Request) -> Response:
        views = serving_of(request).views
        return _told({**views.readiness(), "configuration": views.in_force()})

    for path in ("/livez", "/health/liveliness"):
        router.add_api_route(
            path, alive, summary="Is the process alive?", operation_id=f"alive{path.replace('/', '_')}"
        )
    for path, answer in (("/readyz", ready), ("/health", health), ("/health/readiness", ready)):
        router.add_api_route(
            path,
            answer,
            summary="May traffic come?",
            operation_id=f"ready{path.replace('/', '_')}",
            response_model=None,
        )

    @router.get("/metrics", summary="Prometheus metrics")
    async def prometheus() -> Response:
        body, media = metrics.render()
        return Response(body, headers={"Content-Type": media})

    return router


def _told(report: dict[str, Any]) -> Response:
    return JSONResponse(report, status_code=200 if report["status"] == "ready" else 503)
