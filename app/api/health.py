"""Liveness, readiness and metrics; none of them asks for a key or calls a model."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from app.telemetry.metrics import Metrics
from app.views import Views


def routes(views: Views, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    async def ready() -> Response:
        report: dict[str, Any] = views.readiness()
        return JSONResponse(report, status_code=200 if report["status"] == "ready" else 503)

    for path in ("/livez", "/health/liveliness"):
        router.add_api_route(
            path, alive, summary="Is the process alive?", operation_id=f"alive{path.replace('/', '_')}"
        )
    for path in ("/readyz", "/health", "/health/readiness"):
        router.add_api_route(
            path, ready, summary="May traffic come?", operation_id=f"ready{path.replace('/', '_')}", response_model=None
        )

    @router.get("/metrics", summary="Prometheus metrics")
    async def prometheus() -> Response:
        body, media = metrics.render()
        return Response(body, headers={"Content-Type": media})

    return router
