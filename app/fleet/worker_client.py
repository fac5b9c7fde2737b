"""The only code that sends a request's data to a region, and only to one that the residency decision permitted."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import quote

from app.config import HealthSettings
from app.fleet.answer import AnswerReader, Broken, Field, TooLong
from app.fleet.backend import BackendState, Condition
from app.fleet.http1 import Connection, Exchange, Late
from app.fleet.pool import Pool
from app.fleet.trust import Trust
from app.policy.retry import Outcome, retryable
from app.types import Call, PermittedRegion
from regions.wire import HEADER_LENGTH, OWNER_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER

ANSWER_LIMIT: Final = 64 << 20
"""Bytes of an answer that is held in memory whole."""
_ON_HEADERS: Final = frozenset({REQUEST_ID_HEADER, OWNER_HEADER, "traceparent", "tracestate"})
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
_DROPPED: Final = _HOP_BY_HOP | _OWN
_SAME: Final = "user-agent: tidegate\r\naccept-encoding: identity\r\n\r\n"
"""The end of every head."""
_AS_IT_IS: Final = re.compile(r"[a-zA-Z0-9/._-]*")
_UNSENDABLE: Final = re.compile("[\x00\r\n]|[^\x00-\xff]")


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
    """A streamed answer as it comes; `aclose` at any time closes the connection to the backend, but after the end.

    Iterating raises `AttemptFailed` (never retryable) when the backend breaks off, or is silent for `patience` seconds.
    Cancelling whoever waits for the next part closes it.
    """

    def __init__(self, exchange: Exchange, patience: float) -> None:
        self._exchange = exchange
        self._patience = patience

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._exchange.read(self._patience)
        except Late as error:
            raise AttemptFailed("timeout", self._exchange.status, retryable=False) from error
        except Broken as error:
            raise AttemptFailed("reset", self._exchange.status, retryable=False) from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._exchange.close()


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A backend's answer, below 500; `body` is a stream exactly where one was asked for and the status is below 400.

    `headers`, by names in lower case, lack what belongs to a connection (Content-Length too) and what only the gateway
    says. A stream must be read to its end or closed.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | UpstreamStream


class Connections:
    """Pools of connections to every backend that is or has been asked; they outlive the configuration."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._pools: dict[Condition, Pool] = {}

    def pool(self, backend: BackendState) -> Pool:
        """The backend's own: one that hangs takes no connection from the others."""
        pool = self._pools.get(backend.condition)
        if pool is None:
            pool = self._pools[backend.condition] = Pool(backend.url, self._trust.context(backend.url))
        return pool

    def keep(self, backends: Collection[BackendState]) -> None:
        """Close what is open to any other backend; nobody may send to those any more."""
        kept = {backend.condition for backend in backends}
        for condition in self._pools.keys() - kept:
            self._pools.pop(condition).close()

    def close(self) -> None:
        """Close what is idle, and the rest as it comes to its end."""
        self.keep(())


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
        deadline = asyncio.get_running_loop().time() + timeout
        pool = self._connections.pool(backend)
        head = _head(pool, backend, call, headers, timeout)
        connection = await self._connection(pool, timeout)
        reader = AnswerReader(ANSWER_LIMIT, _below_400 if call.stream else _redirects)
        exchange = connection.exchange(head, call.body, deadline, reader)
        try:
            body = await exchange.answer()
        except Late as error:
            raise AttemptFailed("timeout", retryable=False) from error
        except Broken as error:
            raise AttemptFailed("reset", retryable=retryable("reset", None)) from error
        except TooLong as error:
            raise AttemptFailed("reset", error.status, retryable=False) from error
        return _reply(exchange, body, timeout)

    async def _connection(self, pool: Pool, left: float) -> Connection:
        try:
            return await pool.connection(min(left, self._connect))
        except TimeoutError as error:
            outcome: Outcome = "connect_timeout" if self._connect < left else "timeout"
            raise AttemptFailed(outcome, retryable=retryable(outcome, None)) from error
        except OSError as error:
            raise AttemptFailed("refused", retryable=retryable("refused", None)) from error


def _below_400(status: int) -> bool:
    return status < HTTPStatus.BAD_REQUEST


def _redirects(status: int) -> bool:
    return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST


def _reply(exchange: Exchange, body: bytes, patience: float) -> UpstreamReply:
    """Raises `AttemptFailed` for a redirect, whose body nobody waits for, and for a fault of the backend."""
    status = exchange.status
    if _redirects(status):
        exchange.close()
        raise AttemptFailed("redirect", status, retryable=retryable("redirect", status))
    if exchange.streamed:
        return UpstreamReply(status, _filtered(exchange.fields), UpstreamStream(exchange, patience))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise AttemptFailed("status", status, body, retryable=retryable("status", status))
    return UpstreamReply(status, _filtered(exchange.fields), body)


def _head(pool: Pool, backend: BackendState, call: Call, headers: Mapping[str, str], timeout: float) -> bytes:
    """The request's head; raises AssertionError rather than send what would end a line of it, or is not latin-1."""
    path = call.path if _AS_IT_IS.fullmatch(call.path) else quote(call.path, safe="/%:@!$&'()*+,;=~")
    lines = [f"POST {pool.path}{path} HTTP/1.1", f"host: {pool.netloc}"]
    lines += [f"{name}: {value}" for name, value in call.headers if name.lower() in _CONTENT_HEADERS]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() in _ON_HEADERS]
    lines += [f"{TIMEOUT_HEADER}: {max(1, int(timeout * 1000))}", f"content-length: {len(call.body)}"]
    if backend.config.api_key is not None:
        lines.append(f"authorization: Bearer {backend.config.api_key.get_secret_value()}")
    if _UNSENDABLE.search("\t".join(lines)):
        raise AssertionError("a header for a backend holds what no header may hold")
    return "\r\n".join([*lines, _SAME]).encode("latin-1")


def _filtered(fields: Sequence[Field]) -> tuple[tuple[str, str], ...]:
    named = [(_lowered(name), value.decode("latin-1")) for name, value in fields]
    about = [value for name, value in named if name == "connection"]
    dropped = _DROPPED.union(name.strip() for name in ",".join(about).lower().split(",")) if about else _DROPPED
    return tuple([field for field in named if field[0] not in dropped and not field[0].startswith(_OWN_PREFIX)])


@lru_cache(maxsize=64)
def _lowered(name: bytes) -> str:
    return name.decode("latin-1").lower()
