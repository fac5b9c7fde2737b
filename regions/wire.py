"""The messages that cross between gateway and worker: header names, KServe v2 requests and answers, and refusals.

Sources: KServe Open Inference Protocol v2 (REST), and its extension for binary data: a JSON head of
`Inference-Header-Content-Length` bytes, then the raw tensors in the order of the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from regions.refusals import (
    Fault,
    InvalidInput,
    missing,
    refusal,
    wrong_binary_size,
    wrong_datatype,
    wrong_shape,
    wrong_type,
    wrong_value,
)
from regions.tensors import Tensor, parameters_of, read_tensor, read_texts, string, write_bytes_values, write_tensor

__all__ = [
    "HEADER_LENGTH",
    "MAX_DEPTH",
    "OWNER_HEADER",
    "REQUEST_ID_HEADER",
    "TIMEOUT_HEADER",
    "Fault",
    "InferRequest",
    "InvalidInput",
    "RequestedOutput",
    "Tensor",
    "missing",
    "read_count",
    "read_infer",
    "read_object",
    "read_texts",
    "refusal",
    "write_bytes_values",
    "write_infer",
    "wrong_datatype",
    "wrong_shape",
    "wrong_type",
    "wrong_value",
]

TIMEOUT_HEADER = "x-request-timeout-ms"
REQUEST_ID_HEADER = "x-request-id"
OWNER_HEADER = "x-tidegate-owner"
"""Whose request it is, a digest of the tenant's id: what a worker keeps of one tenant answers no other."""
HEADER_LENGTH = "inference-header-content-length"

MAX_DEPTH = 64
"""Levels of arrays and objects that a body may nest; no request of either API needs ten."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A KServe v2 inference request whose form is sound; whether the model takes it is the model's to say."""

    id: str | None
    parameters: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...]


def read_count(value: str, *, header: str, largest: int = 1 << 53) -> int:
    """The whole number that a header's value spells. Raises InvalidInput (`header`)."""
    if value.isascii() and value.isdigit() and len(value) <= len(str(largest)) and int(value) <= largest:
        return int(value)
    raise InvalidInput(
        f"The header {header} has a value that cannot be read: {value}", detail="header", param=header, value=value
    )


def read_object(body: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object in `body`. Raises InvalidInput (`json`, `depth`, `not_object`)."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg:
            raise _too_deep(max_depth) from error
        position = len(error.doc[: error.pos].encode(errors="replace"))
        raise InvalidInput(f"The body is not valid JSON: {error.msg}", detail="json", position=position) from error
    _check_depth(body, value, max_depth)
    if not isinstance(value, dict):
        raise InvalidInput("The body must be a JSON object", detail="not_object")
    return value


def read_infer(body: bytes, header_length: int | None = None, *, max_depth: int = MAX_DEPTH) -> InferRequest:
    """The request in `body`; `header_length` is the value of `Inference-Header-Content-Length` where it was sent.

    Tensors keep views into `body`. Raises InvalidInput, whose `param` is a path such as `inputs[0].shape`.
    """
    if header_length is not None and header_length > len(body):
        raise wrong_binary_size(header_length, len(body))
    rest = memoryview(body)[len(body) if header_length is None else header_length :]
    raw = read_object(body[:header_length], max_depth=max_depth)
    request_id = raw.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise wrong_type("id", "string")
    entries = _objects(raw, "inputs")
    _check_announced(entries, len(rest))
    inputs: list[Tensor] = []
    offset = 0
    for index, entry in enumerate(entries):
        tensor = read_tensor(entry, f"inputs[{index}]", rest[offset:])
        offset += len(tensor.raw) if tensor.raw is not None else 0
        inputs.append(tensor)
    _check_unique("inputs", [tensor.name for tensor in inputs])
    outputs = tuple(
        RequestedOutput(string(entry, "name", path), parameters_of(entry, path))
        for path, entry in ((f"outputs[{i}]", entry) for i, entry in enumerate(_objects(raw, "outputs", needed=False)))
    )
    _check_unique("outputs", [output.name for output in outputs])
    return InferRequest(request_id or None, parameters_of(raw, ""), tuple(inputs), outputs)


def write_infer(
    *,
    model_name: str,
    model_version: str,
    outputs: Sequence[Tensor],
    request_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON head where a tensor travels in binary."""
    head: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    head |= {"id": request_id} if request_id is not None else {}
    head |= {"parameters": dict(parameters)} if parameters else {}
    head["outputs"] = [write_tensor(tensor) for tensor in outputs]
    encoded = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    raws = [tensor.raw for tensor in outputs if tensor.raw is not None]
    return (b"".join((encoded, *raws)), len(encoded)) if raws else (encoded, None)


def _too_deep(limit: int) -> InvalidInput:
    return InvalidInput(f"The body is nested deeper than {limit} levels", detail="depth", limit=limit)


def _check_depth(body: bytes, value: Any, limit: int) -> None:
    # Nothing nests deeper than it has opening brackets: two counts in C spare almost every body the walk.
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep(limit)


def _objects(raw: Mapping[str, Any], key: str, *, needed: bool = True) -> list[dict[str, Any]]:
    """The array of objects under `key`; at least one object where it is needed."""
    entries = raw.get(key)
    if entries is None:
        if needed:
            raise missing(key)
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise wrong_type(key, "object[]")
    if needed and not entries:
        raise wrong_value(key, "object[]")
    return entries


def _check_unique(path: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise wrong_value(f"{path}[{index}].name", f"!= {name}")
        seen.add(name)


def _check_announced(entries: Sequence[Mapping[str, Any]], arrived: int) -> None:
    """The binary sizes that the head announces add up to what follows it."""
    sizes = [parameters_of(entry, f"inputs[{i}]").get("binary_data_size") for i, entry in enumerate(entries)]
    for index, size in enumerate(sizes):
        if size is not None and (type(size) is not int or size < 0):
            raise wrong_type(f"inputs[{index}].parameters.binary_data_size", "integer >= 0")
    announced = sum(size for size in sizes if size is not None)
    if announced != arrived:
        raise wrong_binary_size(announced, arrived)
