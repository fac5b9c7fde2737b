"""The KServe v2 endpoints (Open Inference Protocol, with the binary tensor extension): from body to `Call`."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.access import require, serving_of
from app.api.bodies import depth_of, read_call, refusals
from app.api.inference import Asked, Endpoint
from app.types import Call
from regions.wire import HEADER_LENGTH, InferRequest, read_count, read_infer

_BYTES_PER_TOKEN = 4
_TEXT = "BYTES"
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_INFER = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "items": _TENSOR}, "parameters": {"type": "object"}},
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_STEMS = (("/models/{model}", ""), ("/models/{model}/versions/{version}", "_version"))


async def _read(asked: Asked) -> Call:
    length, depth = asked.exchange.head.headers.get(HEADER_LENGTH), depth_of(asked.serving.gateway.settings)
    return await read_call(to_call, asked.names["model"], asked.names.get("version"), asked.body, length, depth)


ENDPOINTS = tuple(
    Endpoint(f"/v2{stem}/infer", "Infer", f"infer{suffix}", "KServe v2", _INFER, _read) for stem, suffix in _STEMS
)


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
    for stem, suffix in _STEMS:
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


def _suffix(version: str | None) -> str:
    return "" if version is None else f"/versions/{quote(version, safe='')}"


def to_call(model: str, version: str | None, body: bytes, header_length: str | None, depth: int) -> Call:
    """The call that a body asks for; raises `InvalidRequest` naming the tensor or field at fault."""
    with refusals():
        length = None if header_length is None else read_count(header_length, header=HEADER_LENGTH)
        request = read_infer(body, length, max_depth=depth)
    headers = [("content-type", "application/json" if length is None else "application/octet-stream")]
    if length is not None:
        headers.append((HEADER_LENGTH, str(length)))
    return Call(
        wire="kserve",
        path=f"/v2/models/{quote(model, safe='')}{_suffix(version)}/infer",
        model=model,
        body=body,
        headers=tuple(headers),
        # As it stands: tensors are large, and a client spells the same request in the same way.
        canonical=b"%d:%b" % (length or 0, body),
        cacheable=True,
        stream=False,
        tokens=_tokens(request, len(body)),
    )


def _tokens(request: InferRequest, size: int) -> int:
    """An estimate: by bytes where texts travel, by rows where numbers do."""
    if any(tensor.datatype == _TEXT for tensor in request.inputs):
        return max(1, size // _BYTES_PER_TOKEN)
    return max(1, sum(tensor.shape[0] if tensor.shape else 1 for tensor in request.inputs))
