"""The inference endpoints: one table of them, and the way of a request through it, ahead of FastAPI and its layers.

FastAPI keeps everything else. For a request of inference its routing, dependencies and responses cost more than all
that the gateway itself does.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from app.api.departure import Departure
from app.errors import GatewayError, MethodNotAllowed
from app.exchange import Exchange
from app.serving import Serving
from app.types import Call, Reply

_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose body has come: what its endpoint turns into a `Call`. `names` are those that its path holds."""

    exchange: Exchange
    serving: Serving
    names: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path, a template such as /v2/models/{model}/infer, that takes POST; `body` is its requestBody in OpenAPI."""

    path: str
    summary: str
    operation_id: str
    tag: str
    body: Mapping[str, Any]
    read: Callable[[Asked], Awaitable[Call]]
    """Raises `InvalidRequest` naming what is wrong with the body."""

    def described(self) -> dict[str, Any]:
        """Its operation in OpenAPI."""
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(self.path)
        ]
        return {
            "tags": [self.tag],
            "summary": self.summary,
            "operationId": self.operation_id,
            **({"parameters": parameters} if parameters else {}),
            "requestBody": dict(self.body),
            "responses": {"200": {"description": "Successful Response"}},
        }


class Dispatcher:
    """Takes the requests of a table of endpoints from the gate."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._fixed = {one.path: one for one in endpoints if "{" not in one.path}
        self._others = [(_pattern(one.path), one) for one in endpoints if "{" in one.path]

    def has(self, path: str) -> bool:
        """Whether the path is one of the table's."""
        return self._find(path) is not None

    def described(self) -> dict[str, Any]:
        """The table as the paths of an OpenAPI document."""
        return {one.path: {"post": one.described()} for one in self.endpoints}

    async def __call__(self, serving: Serving, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the gate has let in, or record that its client left; errors are answers, too."""
        try:
            await self._answer(serving, exchange, receive, send)
        except GatewayError as error:
            await (await serving.failures.answer(exchange, error))(scope, receive, send)

    async def _answer(self, serving: Serving, exchange: Exchange, receive: Receive, send: Send) -> None:
        found = self._find(exchange.head.path)
        if found is None or exchange.head.method != "POST":
            raise MethodNotAllowed(path=exchange.head.path, method=exchange.head.method, allowed="POST", headers=_ALLOW)
        endpoint, names = found
        body = await _body(receive)
        if body is None:
            await serving.gateway.abandoned(exchange)  # nobody is there to be told
            return
        call = await endpoint.read(Asked(exchange, serving, names, body))
        with Departure(receive):
            await _send(await serving.gateway.answer(exchange, call), send)

    def _find(self, path: str) -> tuple[Endpoint, Mapping[str, str]] | None:
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed, {}
        for pattern, endpoint in self._others:
            match = pattern.fullmatch(path)
            if match:
                return endpoint, match.groupdict()
        return None


_ALLOW: Mapping[str, str] = {"Allow": "POST"}


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path))


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client left in the middle of it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(reply: Reply, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    if isinstance(reply.body, bytes):
        headers.append((b"content-length", b"%d" % len(reply.body)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        return
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for chunk in reply.body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        # Whichever way the stream to the client ends, the one from the backend does.
        close = getattr(reply.body, "aclose", None)
        if close is not None:
            await close()
