"""The OpenAI endpoints: from JSON body to `Call`, and nothing else; bodies go on untouched."""

from typing import Any

import orjson

from app.api.bodies import depth_of, read_call, refusals
from app.api.inference import Asked, Endpoint
from app.errors import InvalidRequest
from app.types import Call
from regions.wire import read_object

_BYTES_PER_TOKEN = 4
"""English text in the tokenizers of today's models; an estimate, settled with the usage that the backend reports."""

_UNUSED_IN_ANSWER = ("user", "metadata", "store", "stream_options")
"""Fields that do not shape the answer, left out of the cache key."""


def _body_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_EMBEDDINGS = _body_schema(
    {
        "model": {"type": "string", "examples": ["minilm"]},
        "input": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "encoding_format": {"enum": ["float", "base64"]},
        "compute_budget": {"anyOf": [{"type": "number", "minimum": 0.1, "maximum": 1.0}, {"const": "auto"}]},
        "truncate": {"type": "boolean"},
    },
    ["model", "input"],
)
_CHAT = _body_schema(
    {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "temperature": {"type": "number"},
        "stream": {"type": "boolean"},
    },
    ["model", "messages"],
)
_COMPLETION = _body_schema(
    {"model": {"type": "string"}, "prompt": {"type": "string"}, "stream": {"type": "boolean"}}, ["model", "prompt"]
)


async def _read(asked: Asked) -> Call:
    settings = asked.serving.gateway.settings
    path, depth, sampled = asked.exchange.head.path, depth_of(settings), settings.cache.sampled
    return await read_call(to_call, path, asked.body, depth, sampled)


ENDPOINTS = tuple(
    Endpoint(path, summary, path[4:].replace("/", "_"), "OpenAI", body, _read)
    for path, summary, body in (
        ("/v1/embeddings", "Embed texts", _EMBEDDINGS),
        ("/v1/chat/completions", "Chat, passed through to a backend of protocol openai", _CHAT),
        ("/v1/completions", "Complete, passed through to a backend of protocol openai", _COMPLETION),
    )
)


def to_call(path: str, body: bytes, depth: int, sampled: bool) -> Call:
    """The call that a body asks for; raises `InvalidRequest` naming the field at fault.

    `depth` bounds the nesting of bodies, `sampled` lets answers of temperature > 0 be cached.
    """
    with refusals():
        fields = read_object(body, max_depth=depth)
    model = fields.get("model")
    if model is None:
        raise InvalidRequest("field_missing", param="model")
    if not isinstance(model, str):
        raise InvalidRequest("field_type", param="model", expected="string")
    if not model:
        raise InvalidRequest("field_value", param="model", expected="length>0")
    stream = fields.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidRequest("field_type", param="stream", expected="boolean")
    embedding = path.endswith("/embeddings")
    steady = embedding or sampled or fields.get("temperature") == 0
    kept = {name: value for name, value in fields.items() if name not in _UNUSED_IN_ANSWER}
    texts: tuple[str, ...] = ()
    given = b""
    if embedding:
        texts, given = _texts(kept.pop("input", None))
    base = orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
    answer = 0 if embedding else _answer_tokens(fields)
    return Call(
        wire="openai",
        path=path,
        model=model,
        body=body,
        headers=(("content-type", "application/json"),),
        canonical=base + given,
        cacheable=steady,
        stream=stream and not embedding,
        tokens=max(1, len(body) // _BYTES_PER_TOKEN) + answer,
        answer_tokens=answer,
        texts=texts,
        base=base,
    )


def _texts(given: Any) -> tuple[tuple[str, ...], bytes]:
    """The texts of an `input` that holds several, and the one spelling of any: a list of one is that one."""
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        return (), orjson.dumps(given)
    return (tuple(given), orjson.dumps(given)) if len(given) > 1 else ((), orjson.dumps(given[0]))


def _answer_tokens(fields: dict[str, Any]) -> int:
    """How many tokens the answer may have, where the caller says so; what is wrong with it is the backend's to say."""
    most = max(_count(fields.get(name)) for name in ("max_completion_tokens", "max_tokens"))
    return most * max(1, _count(fields.get("n")), _count(fields.get("best_of")))


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0
