"""The OpenAI endpoints that tell of models; those that run them are a table in `openai`."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.api.access import require, serving_of
from app.errors import ModelNotFound


def routes() -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    may_infer = [Depends(require("infer"))]

    @router.get("/v1/models", dependencies=may_infer, summary="Models, with the regions that serve them")
    async def models(request: Request) -> dict[str, Any]:
        found = serving_of(request).views.models()
        return {"object": "list", "data": [_model(name, regions) for name, regions in found.items()]}

    @router.get("/v1/models/{model:path}", dependencies=may_infer, summary="One model")
    async def model(request: Request, model: str) -> dict[str, Any]:
        found = serving_of(request).views.models().get(model)
        if found is None:
            raise ModelNotFound(param="model", model=model)
        return _model(model, found)

    return router


def _model(name: str, regions: tuple[str, ...]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidegate", "regions": regions}
