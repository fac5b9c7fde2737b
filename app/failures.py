"""The one place where a failure becomes an answer: recorded, translated, and put in the wire shape of its endpoint."""

import asyncio
import math
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import AuditUnavailable, GatewayError
from app.exchange import Exchange
from app.fields import Fields
from app.i18n import Translator
from app.pipeline import Gateway
from app.shapes import kserve_error, openai_error, problem

_SMALL_BODY = 64 << 10
_DRAIN_BYTES = 32 << 20
_DRAIN_SECONDS = 2.0
_RETRY_HELPS = frozenset({408, 429, 500, 502, 503, 504})


class Refusal(Response):
    """An answer that may leave before the request's body has arrived.

    Closing at once would reset the connection, and the client, still sending, could lose the answer (RFC 9112, section
    9.6); so a large body is read and dropped for a moment first. A client that sent `Expect: 100-continue` waits for
    our word before it sends anything: it is spared that.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["state"]["exchange"]
        headers = exchange.head.headers
        expects = "expect" in headers
        if exchange.body_read or not (expects or _large(headers)):
            await super().__call__(scope, receive, send)
            return
        self.headers["Connection"] = "close"
        exchange.body_read = True  # from here on the body counts for nothing, so its bounds need no watching
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if not expects:
            await _drain(receive)
        await send({"type": "http.response.body", "body": b""})


def _large(headers: Fields) -> bool:
    length = headers.get("content-length", "0")
    return "transfer-encoding" in headers or (length.isdigit() and int(length) > _SMALL_BODY)


async def _drain(receive: Receive) -> None:
    taken = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while taken < _DRAIN_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


class Failures:
    """Turns a `GatewayError` into a response, after the audit has it."""

    def __init__(self, gateway: Gateway, translator: Translator) -> None:
        self._gateway = gateway
        self._translator = translator

    async def answer(self, exchange: Exchange, error: GatewayError) -> Refusal:
        """Record the refusal of an inference request, then render it; a record that cannot be made is the new error."""
        try:
            await self._gateway.refuse(exchange, error)
        except AuditUnavailable as unavailable:
            error = unavailable
        return render(exchange, error, self._translator)


def render(exchange: Exchange, error: GatewayError, translator: Translator) -> Refusal:
    """The answer for an error, in the exchange's wire shape and language."""
    values = {**error.values, "param": error.param, "reason": error.reason}
    message = translator.message(error.message_id, exchange.language, values)
    headers = {
        "Content-Language": exchange.language,
        "Cache-Control": "no-store",
        **_retry_headers(error),
        **error.headers,
    }
    if error.reason:
        headers["X-Route-Reason"] = error.reason
    media = "application/problem+json" if exchange.wire == "problem" else "application/json"
    return Refusal(_body(exchange, error, message), error.status, headers, media)


def _body(exchange: Exchange, error: GatewayError, message: str) -> bytes:
    if exchange.wire == "kserve":
        return kserve_error(message)
    if exchange.wire == "openai":
        return openai_error(message, error.openai_type, param=error.param, code=error.code, extra=error.extra)
    return problem(message, error.status, error.code, exchange.request_id, error.extra)


def _retry_headers(error: GatewayError) -> dict[str, str]:
    wait = error.values.get("retry_after")
    if isinstance(wait, timedelta):
        seconds = wait.total_seconds()
        whole = {"Retry-After": seconds, "retry-after-ms": seconds * 1000}
        return {name: str(max(1, math.ceil(value))) for name, value in whole.items()}
    if error.status not in _RETRY_HELPS or error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return {"x-should-retry": "false"}
    return {}
