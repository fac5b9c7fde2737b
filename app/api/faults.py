"""Every failure of every route, in whatever form it was raised, as the one error that its caller is told."""

import contextlib
from http import HTTPStatus
from types import MappingProxyType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.api.access import exchange_of, serving_of
from app.errors import AuditUnavailable, GatewayError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from app.exchange import CLIENT_CLOSED

_KINDS = MappingProxyType(
    {
        "string": "string",
        "int": "integer",
        "float": "number",
        "bool": "boolean",
        "date": "YYYY-MM-DD",
        "tuple": "array",
        "too_long": "<= 64",
    }
)
"""What a field of a dry run may be, by the beginning of pydantic's name for the problem."""


def handle_errors(app: FastAPI) -> None:
    """Every failure of every route ends in `Failures`, in whatever form it was raised."""

    async def ours(request: Request, error: GatewayError) -> Response:
        return await serving_of(request).failures.answer(exchange_of(request), error)

    async def http(request: Request, error: HTTPException) -> Response:
        return await serving_of(request).failures.answer(exchange_of(request), _of_router(request, error))

    async def validation(request: Request, error: RequestValidationError) -> Response:
        return await serving_of(request).failures.answer(exchange_of(request), _invalid(error))

    async def left(request: Request, _: Exception) -> Response:
        # In the middle of its body: nothing has been forwarded, and nobody is there to be told.
        with contextlib.suppress(AuditUnavailable):
            await serving_of(request).gateway.abandoned(exchange_of(request))
        return Response(status_code=CLIENT_CLOSED)

    async def unforeseen(request: Request, _: Exception) -> Response:
        exchange = exchange_of(request)
        return await serving_of(request).failures.answer(exchange, InternalError(request_id=exchange.request_id))

    app.add_exception_handler(GatewayError, ours)  # type: ignore[arg-type] # starlette types handlers by Exception
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type] # as above
    app.add_exception_handler(RequestValidationError, validation)  # type: ignore[arg-type] # as above
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, unforeseen)


def _of_router(request: Request, error: HTTPException) -> GatewayError:
    """FastAPI itself raises three: no such path, no such method on it, and a body that is not text."""
    path = request.url.path
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFound(path=path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            return MethodNotAllowed(path=path, method=request.method, allowed=allowed, headers={"Allow": allowed})
    return InvalidRequest("json", position=0)


def _invalid(error: RequestValidationError) -> InvalidRequest:
    """The first complaint of pydantic, in the words of our catalogue."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    if first["type"] == "json_invalid":
        return InvalidRequest("json", position=first["loc"][-1])
    if first["type"] == "missing" and place:
        return InvalidRequest("field_missing", param=place)
    if first["type"] == "extra_forbidden":
        return InvalidRequest("field_unknown", param=place)
    kind = next((name for start, name in _KINDS.items() if first["type"].startswith(start)), first["type"])
    if not place:
        return InvalidRequest("not_object")
    return InvalidRequest("field_type", param=place, expected=kind)
