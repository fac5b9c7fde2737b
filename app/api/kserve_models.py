"""The KServe v2 endpoints that tell of the server and its models; those that run them are a table in `kserve`."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.access import require, serving_of
from app.api.kserve import STEMS


def routes(version: str) -> APIRouter:
    """The router; `version` is the gateway's."""
    router = APIRouter(prefix="/v2", tags=["KServe v2"])

    @router.get("", summary="Server metadata")
    async def server() -> dict[str, Any]:
        return {"name": "tidegate", "version": version, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Is the server alive?")
    async def live() -> Response:
        return Response()

    @router.get("/health/ready", summary="Can the server infer?")
    async def ready(request: Request) -> Response:
        return Response(status_code=200 if serving_of(request).views.readiness()["status"] == "ready" else 503)

    async def metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
        return await serving_of(request).views.describe_model(model, version)

    async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
        views = serving_of(request).views
        if version is not None:
            await views.describe_model(model, version)  # only a backend knows which versions it has
        return Response(status_code=200 if views.serving_now(model) else 503)

    may_infer = [Depends(require("infer"))]
    for stem, suffix in STEMS:
        router.add_api_route(
            f"{stem}/ready",
            model_ready,
            dependencies=may_infer,
            summary="Is a model ready?",
            operation_id=f"model_ready{suffix}",
        )
        router.add_api_route(
            stem, metadata, dependencies=may_infer, summary="Model metadata", operation_id=f"model_metadata{suffix}"
        )
    return router
