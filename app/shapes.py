"""The contract's three shapes of an error body."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

from app.types import Wire


def openai_error(
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """OpenAI's error object; `extra` joins it."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code, **(extra or {})}})


def kserve_error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def problem(message: str, status: int, code: str, request_id: str, extra: Mapping[str, Any]) -> bytes:
    """RFC 9457; `extra` are its extension members."""
    return orjson.dumps(
        {
            "type": f"urn:tidegate:error:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": message,
            "instance": f"urn:tidegate:request:{request_id}",
            "code": code,
            **extra,
        }
    )


def in_shape(wire: Wire, body: bytes) -> bytes:
    """A backend's own refusal as it is where it has the endpoint's shape, else its text within that shape."""
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        error = None
    if isinstance(error, dict if wire == "openai" else str):
        return body
    text = body.decode(errors="replace")[:_MESSAGE_LENGTH]
    return kserve_error(text) if wire == "kserve" else openai_error(text, "invalid_request_error")


_MESSAGE_LENGTH = 1000
"""Characters of a backend's text that are passed on."""
