"""The outermost layer, pure ASGI: request id, language, deadline of the body, and everything that headers decide."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.activity import Activity
from app.errors import DeadlineExceeded, GatewayError, InternalError, PayloadTooLarge, RequestTimeout
from app.exchange import CLIENT_CLOSED, Exchange
from app.facts import check_body_head, request_id, traceparent
from app.fields import Fields
from app.i18n import Translator
from app.serving import Current, Serving
from app.telemetry.logging import bind_request
from app.telemetry.metrics import Metrics
from app.types import Head, Wire

_OPENAI = re.compile(r"^/v1/(embeddings|chat/|completions|models)")
_ENDPOINT = re.compile(
    r"^/v1/(embeddings|chat/completions|completions|models|regions|route/explain"
    r"|audit/(?:logs|export|records|checkpoint|verify|erasures|access|holds))"
)
_GUARDED = re.compile(r"^/v1/(?!audit/checkpoint$)|^/v2/models/")
"""Paths that need a key. A log's checkpoints do not: its root is what it publishes, and other gateways read it."""

BODY_IDLE = 10.0
"""Seconds without a byte of an announced body after which the client is told 408."""
BODY_RATE = 16 << 10
"""Bytes a second that a body has to come at, once `BODY_IDLE` seconds have passed."""


def endpoint_of(path: str) -> str:
    """A path's name in the metrics, of bounded number."""
    found = _ENDPOINT.match(path)
    if found:
        return found[1]
    return "infer" if path.startswith("/v2/models/") and path.endswith("/infer") else "other"


def wire_of(path: str) -> Wire:
    """Which error shape a path answers in (contract, section 5)."""
    if _OPENAI.match(path):
        return "openai"
    return "kserve" if path == "/v2" or path.startswith("/v2/") else "problem"


class Inference(Protocol):
    """Answers requests of inference; the application has all other paths."""

    def has(self, path: str) -> bool:
        """Whether a path is one of inference."""
        ...

    async def __call__(self, serving: Serving, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was admitted, or one of another method than POST."""
        ...


class Gate:
    """Wraps the application. What it refuses, it refuses before `receive` is called once."""

    def __init__(
        self,
        app: ASGIApp,
        inference: Inference,
        *,
        current: Current,
        translator: Translator,
        metrics: Metrics,
        activity: Activity,
    ) -> None:
        self._app = app
        self._inference = inference
        self._current = current
        self._translator = translator
        self._metrics = metrics
        self._activity = activity
        self._log = structlog.get_logger("tidegate.gate").bind()  # bound once: binding costs more than a line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        term = self._current.begin()
        try:
            await self._answer(term.serving, scope, receive, send)
        finally:
            self._current.end(term)

    async def _answer(self, serving: Serving, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._open(scope)
        bind_request(exchange.request_id)
        scope.setdefault("state", {}).update(exchange=exchange, serving=serving)
        outgoing = _Outgoing(exchange, send)
        self._activity.running += 1
        try:
            await self._serve(serving, exchange, scope, receive, outgoing)
        except Exception as error:
            if exchange.cut:
                return  # told and recorded already; an answer that is never completed makes the server close
            # The edge of the process: whatever was not foreseen is a bug, and the caller still gets a whole answer.
            self._log.exception("unforeseen failure", error=type(error).__name__)
            if outgoing.status is None:
                failure = await serving.failures.answer(exchange, InternalError(request_id=exchange.request_id))
                await failure(scope, receive, outgoing)
            elif not outgoing.finished:
                raise  # too late for an answer: the server cuts the connection, which is what the client must see
        finally:
            self._activity.running -= 1
            self._account(exchange, outgoing)

    def _open(self, scope: Scope) -> Exchange:
        headers = Fields(scope["headers"])
        client = scope.get("client")
        return Exchange(
            head=Head(scope["method"], scope["path"], headers, client[0] if client else None),
            request_id=request_id(headers) or f"{random.getrandbits(128):032x}",
            traceparent=traceparent(headers),
            wire=wire_of(scope["path"]),
            language=self._translator.negotiate(", ".join(headers.getlist("accept-language")) or None),
            received=datetime.now(UTC),
        )

    async def _serve(self, serving: Serving, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, path = serving.gateway, exchange.head.path
        limit, posted = gateway.settings.gateway.body_limit, exchange.head.method == "POST"
        inference = self._inference.has(path)
        try:
            if inference and posted:
                await gateway.admit(exchange)
            elif inference or _GUARDED.match(path):
                gateway.authenticate(exchange)
                if posted:
                    check_body_head(exchange.head.headers, exchange.wire, limit)
            exchange.spent("gate", exchange.started)
        except GatewayError as error:
            exchange.spent("gate", exchange.started)
            refusal = await serving.failures.answer(exchange, error)
            await refusal(scope, receive, send)
            return
        incoming = _Incoming(receive, exchange, limit)
        if inference:
            await self._inference(serving, exchange, scope, incoming, send)
        else:
            await self._app(scope, incoming, send)

    def _account(self, exchange: Exchange, outgoing: "_Outgoing") -> None:
        status = outgoing.status or CLIENT_CLOSED
        region = exchange.headers.get("X-Served-Region")
        self._metrics.request(endpoint_of(exchange.head.path), status, region, exchange.elapsed())
        self._log.info(
            "request",
            method=exchange.head.method,
            path=exchange.head.path[:256],
            status=status,
            tenant=exchange.principal.tenant.id if exchange.principal else None,
            region=region,
            reason=exchange.headers.get("X-Route-Reason"),
            cache=exchange.headers.get("X-Cache-Status"),
            audit_id=exchange.audit_id,
            ms=round(exchange.elapsed() * 1000, 2),
        )


class _Outgoing:
    """Adds to the answer's head what every answer carries, and remembers the status that left."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self.status: int | None = None
        self.finished = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = self._completed(message["headers"])
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body", False)
        await self._send(message)

    def _completed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The answer's own head, then what it does not say itself; the request's id and the timing are ours alone."""
        exchange = self._exchange
        completed = [field for field in headers if field[0] not in _OURS]
        said = {name for name, _ in completed}
        own = exchange.headers if exchange.bill is None else exchange.headers | exchange.bill.headers()
        for name, value in own.items():
            lower = _lower(name)
            if lower not in said:
                completed.append((lower, value.encode("latin-1")))
        completed.append((b"x-request-id", exchange.request_id.encode("latin-1")))
        completed.append((b"server-timing", exchange.server_timing().encode("latin-1")))
        if exchange.traceparent:
            completed.append((b"traceparent", exchange.traceparent.encode("latin-1")))
        return completed


_OURS = frozenset({b"x-request-id", b"server-timing", b"traceparent"})


@lru_cache(maxsize=256)
def _lower(name: str) -> bytes:
    return name.lower().encode("latin-1")


class _Incoming:
    """Reads the body within its bounds of size and time; raises the error that the client is then told."""

    def __init__(self, receive: Receive, exchange: Exchange, limit: int) -> None:
        self._receive = receive
        self._exchange = exchange
        self._limit = limit
        self._begun = time.monotonic()

    async def __call__(self) -> Message:
        if self._exchange.body_read:
            return await self._receive()
        message = _at_once(self._receive()) or await self._awaited()
        if message["type"] == "http.request":
            self._exchange.bytes_in += len(message.get("body", b""))
            self._exchange.body_read = not message.get("more_body", False)
            if self._exchange.bytes_in > self._limit:
                raise PayloadTooLarge(limit=self._limit)
        return message

    async def _awaited(self) -> Message:
        left, patience = self._exchange.left(), self._patience()
        try:
            async with asyncio.timeout(min(left, patience)):
                return await self._receive()
        except TimeoutError:
            if left <= patience:  # the caller's own bound, which says nothing of its sending
                raise DeadlineExceeded(limit=timedelta(seconds=self._exchange.timeout)) from None
            raise RequestTimeout(limit=timedelta(seconds=time.monotonic() - self._begun)) from None

    def _patience(self) -> float:
        """Seconds for the next part: no part may be long in coming, nor all of them together."""
        due = self._begun + BODY_IDLE + self._exchange.bytes_in / BODY_RATE
        return min(BODY_IDLE, due - time.monotonic())


def _at_once(receiving: Awaitable[Message]) -> Message | None:
    """What has come already, as the bodies of most requests have with their heads; None where one would have to wait.

    A timer for it would cost more than reading it.
    """
    if not isinstance(receiving, Coroutine):
        return None
    try:
        receiving.send(None)
    except StopIteration as done:
        message: Message = done.value
        return message
    receiving.close()
    return None
