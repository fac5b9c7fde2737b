"""The KServe v2 endpoints (Open Inference Protocol, with the binary tensor extension): from body to `Call`."""

from urllib.parse import quote

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
STEMS = (("/models/{model}", ""), ("/models/{model}/versions/{version}", "_version"))
"""Where a model's endpoints lie below /v2, and what their operations' names end in."""


async def _read(asked: Asked) -> Call:
    length, depth = asked.exchange.head.headers.get(HEADER_LENGTH), depth_of(asked.serving.gateway.settings)
    return await read_call(to_call, asked.names["model"], asked.names.get("version"), asked.body, length, depth)


ENDPOINTS = tuple(
    Endpoint(f"/v2{stem}/infer", "Infer", f"infer{suffix}", "KServe v2", _INFER, _read) for stem, suffix in STEMS
)


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
