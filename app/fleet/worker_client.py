"""The only code that sends a request's data to a region, and only to one that the residency decision permitted."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote

import httpx

from app.config import HealthSettings
from app.fleet.backend import BackendState, Condition
from app.policy.retry import Outcome, retryable
from app.types import Call, PermittedRegion
from regions.wire import HEADER_LENGTH, REQUEST_ID_HEADER, TIMEOUT_HEADER

POOLS: Final = 16
POOL_SIZE: Final = 64
"""Connections to one backend: so many pools of so many. Each backend has its own, so one that hangs takes none from the
others. Several small pools, because httpcore walks over every connection of a pool, for each of them, whenever a
request begins or ends: 200 at once cost up to 15 ms of CPU each in one pool, and 2 ms in 13."""
_PER_POOL: Final = 16
"""Requests in flight for which one more pool is used; a quiet backend's go through one and so reuse its connections."""
KEEP_ALIVE: Final = 3.0
"""Seconds that an idle connection is kept; less than the five after which uvicorn, so most backends, closes it."""
ANSWER_LIMIT: Final = 64 << 20
"""Bytes of an answer that is held in memory whole."""
_ON_HEADERS: Final = frozenset({REQUEST_ID_HEADER, "traceparent", "tracestate"})
_CONTENT_HEADERS: Final = frozenset({"content-type", "content-encoding", "accept", HEADER_LENGTH})
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        "alt-svc",
        "set-cookie",
    }
)
"""RFC 9110 section 7.6.1, and what belongs to the connection between gateway and client alone."""
_OWN: Final = frozenset(
    {
        REQUEST_ID_HEADER,
        "x-served-region",
        "x-route-reason",
        "x-audit-id",
        "x-cache-status",
        "age",
        "server-timing",
        "ratelimit",
        "ratelimit-policy",
    }
)
"""The gateway's words, which no backend can say for it; with the prefix, its limits."""
_OWN_PREFIX: Final = "x-ratelimit-"


class AttemptFailed(Exception):
    """A backend gave no usable answer. `status` and `body` are set where it answered at all.

    `retryable` says whether another attempt is worth making, as long as nothing has reached the client.
    """

    def __init__(
        self, outcome: Outcome, status: int | None = None, body: bytes | None = None, *, retryable: bool
    ) -> None:
        super().__init__(outcome if status is None else f"{outcome} {status}")
        self.outcome: Outcome = outcome
        self.status = status
        self.body = body
        self.retryable = retryable


class UpstreamStream(AsyncIterator[bytes]):
    """A streamed answer, chunk by chunk as it comes; `aclose` at any time closes the connection to the backend.

    Iterating raises `AttemptFailed` (never retryable) when the backend breaks off.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_raw()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except httpx.TransportError as error:
            raise AttemptFailed(_outcome(error), self._response.status_code, retryable=False) from error

    async def aclose(self) -> None:
        await self._response.aclose()


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A backend's answer, below 500; `body` is a stream exactly where one was asked for and the status is below 400.

    `headers` lack what belongs to a connection (Content-Length too) and what only the gateway says. A stream must be
    read to its end or closed.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | UpstreamStream


class Connections:
    """Pools of connections to every backend that is or has been asked; they outlive the configuration."""

    def __init__(self) -> None:
        self._trust = ssl.create_default_context()
        self._pools: dict[Condition, tuple[httpx.AsyncHTTPTransport, ...]] = {}
        self._turns = itertools.count()

    def pool(self, backend: BackendState) -> httpx.AsyncHTTPTransport:
        """The pool for the next request to a backend."""
        pools = self._pools.get(backend.condition)
        if pools is None:
            pools = self._pools[backend.condition] = tuple(_pool(self._trust) for _ in range(POOLS))
        used = min(POOLS, 1 + backend.condition.in_flight // _PER_POOL)
        return pools[next(self._turns) % used]

    async def keep(self, backends: Collection[BackendState]) -> None:
        """Close what is open to any other backend; nobody may send to those any more."""
        kept = {backend.condition for backend in backends}
        dropped = [self._pools.pop(condition) for condition in self._pools.keys() - kept]
        for pool in itertools.chain.from_iterable(dropped):
            await pool.aclose()

    async def aclose(self) -> None:
        await self.keep(())


class WorkerClient:
    """Asks backends over HTTP/1.1: no redirects, no cookies, no proxies from the environment."""

    def __init__(self, connections: Connections, health: HealthSettings) -> None:
        # As long as it takes bad probes to call a backend down: whoever is slower to accept is not there.
        self._connect = health.timeout * health.unhealthy
        self._connections = connections

    async def send(
        self,
        region: PermittedRegion,
        backend: BackendState,
        call: Call,
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109 - it also travels on to the backend, and bounds each read of a stream
    ) -> UpstreamReply:
        """One attempt, to be made between the registry's `started` and `finished`.

        `timeout` is what is left of the deadline in seconds: until the head of the answer has come and, where it is
        not streamed, its body; and from chunk to chunk of a stream. Of `headers` only the request's id and its trace
        context go on; the client's credentials never do.

        Raises `AttemptFailed` for a connection that is missing or lost, an answer that is late, a 3xx (never followed)
        and a 5xx.
        """
        if backend.region != region:
            raise AssertionError(f"a request permitted in {region} was about to leave for {backend.region}")
        request = httpx.Request(
            "POST",
            backend.url + quote(call.path, safe="/%:@!$&'()*+,;=~"),
            content=call.body,
            headers=_headers(backend, call, headers, timeout),
            extensions={"timeout": self._timeouts(timeout)},
        )
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(self._connections.pool(backend), request, call)
        except TimeoutError as error:
            raise AttemptFailed("timeout", retryable=False) from error
        except httpx.TransportError as error:
            outcome = _outcome(error)
            raise AttemptFailed(outcome, retryable=retryable(outcome, None)) from error
        except AttributeError as error:
            # A peer that closes in the moment it has accepted leaves uvloop's transport without a socket, and anyio,
            # which asks it for its address, with None; seen about once in 10,000 requests while regions were dying.
            raise AttemptFailed("reset", retryable=True) from error

    async def _exchange(self, pool: httpx.AsyncHTTPTransport, request: httpx.Request, call: Call) -> UpstreamReply:
        response = await pool.handle_async_request(request)
        streams = call.stream and response.status_code < httpx.codes.BAD_REQUEST
        done = False
        try:
            status = response.status_code
            if status < httpx.codes.OK or httpx.codes.is_redirect(status):
                raise AttemptFailed("redirect", status, retryable=retryable("redirect", status))
            body = UpstreamStream(response) if streams else await _read(response)
            if isinstance(body, bytes) and status >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise AttemptFailed("status", status, body, retryable=retryable("status", status))
            done = True
            return UpstreamReply(status, _filtered(response.headers), body)
        finally:
            if not (done and streams):
                await response.aclose()

    def _timeouts(self, timeout: float) -> dict[str, float]:
        connect = min(timeout, self._connect)
        return {"connect": connect, "pool": connect, "read": timeout, "write": timeout}


def _pool(trust: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=POOL_SIZE, max_keepalive_connections=POOL_SIZE, keepalive_expiry=KEEP_ALIVE)
    return httpx.AsyncHTTPTransport(verify=trust, trust_env=False, http1=True, http2=False, limits=limits)


def _headers(
    backend: BackendState, call: Call, headers: Mapping[str, str], timeout: float
) -> list[tuple[bytes, bytes]]:
    url = httpx.URL(backend.url)
    sent = [("host", url.netloc.decode("ascii")), ("user-agent", "tidegate"), ("accept-encoding", "identity")]
    sent += [(name, value) for name, value in call.headers if name.lower() in _CONTENT_HEADERS]
    sent += [(name, value) for name, value in headers.items() if name.lower() in _ON_HEADERS]
    sent += [(TIMEOUT_HEADER, str(max(1, int(timeout * 1000)))), ("content-length", str(len(call.body)))]
    if backend.config.api_key is not None:
        sent.append(("authorization", f"Bearer {backend.config.api_key.get_secret_value()}"))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent]


async def _read(response: httpx.Response) -> bytes:
    """The whole body as it came. Raises `AttemptFailed` where it is longer than `ANSWER_LIMIT`: it is cut off then."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > ANSWER_LIMIT:
            raise AttemptFailed("reset", response.status_code, retryable=False)
    return bytes(body)


def _filtered(headers: httpx.Headers) -> tuple[tuple[str, str], ...]:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.raw]
    named = ",".join(value for name, value in pairs if name.lower() == "connection").lower().split(",")
    dropped = _HOP_BY_HOP.union(_OWN, (name.strip() for name in named))
    return tuple(
        (name, value)
        for name, value in pairs
        if name.lower() not in dropped and not name.lower().startswith(_OWN_PREFIX)
    )


def _outcome(error: httpx.TransportError) -> Outcome:
    match error:
        case httpx.ConnectError():
            return "refused"
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return "connect_timeout"
        case httpx.TimeoutException():
            return "timeout"
        case _:
            return "reset"
