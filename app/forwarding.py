"""Attempts: the ranked regions in turn, within deadline, breaker and retry budget, and never outside what is ranked."""

import asyncio
import hashlib
import random
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from types import MappingProxyType

import structlog

from app.audit.record import Attempt
from app.config import RetrySettings
from app.errors import DeadlineExceeded, GatewayError, NoHealthyRegion, Overloaded, UpstreamFailed
from app.exchange import Exchange
from app.fleet.backend import BackendState
from app.fleet.registry import Registry
from app.fleet.worker_client import AttemptFailed, UpstreamReply, WorkerClient
from app.policy.retry import Budget, delay
from app.telemetry.metrics import Metrics
from app.types import Call, PermittedRegion
from regions.wire import OWNER_HEADER, REQUEST_ID_HEADER

log = structlog.get_logger("tidegate.forwarding")

_SERVICE_UNAVAILABLE = 503
_KINDS = MappingProxyType(
    {
        "openai": frozenset({"application/json", "text/event-stream"}),
        "kserve": frozenset({"application/json", "application/octet-stream"}),
    }
)
_TRACESTATE_LIMIT = 512
"""Characters that every participant should pass on (W3C Trace Context, section 3.3.1.5)."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An answer below 500 and the backend that gives it; where it streams, `Forwarder.ended` is due at its end."""

    region: PermittedRegion
    backend: BackendState
    reply: UpstreamReply
    seconds: float
    """Until the head of the answer had come."""
    kind: Hashable
    """Of request, for the backend's pace."""


@dataclass(slots=True)
class Retries:
    """What all requests together have spent of the retry budget, under whichever configuration."""

    budget: Budget = field(default_factory=Budget)


class Forwarder:
    """Sends a call to the first ranked region that answers."""

    def __init__(
        self, registry: Registry, client: WorkerClient, settings: RetrySettings, retries: Retries, metrics: Metrics
    ) -> None:
        self._registry = registry
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._retries = retries

    async def forward(
        self, exchange: Exchange, call: Call, ranked: Sequence[PermittedRegion], lawful: Sequence[PermittedRegion]
    ) -> Forwarded:
        """The first usable answer; `lawful` are the permitted regions that serve the model, up or not.

        Raises `NoHealthyRegion` where none of the ranked regions is up any more, `DeadlineExceeded`, `Overloaded` where
        every attempt was shed, and `UpstreamFailed`.
        """
        self._retries.budget = self._retries.budget.requested(time.monotonic())
        tried: set[BackendState] = set()
        failure: AttemptFailed | None = None
        for number in range(1, self._settings.attempts + 1):
            if failure is not None and not await self._may_retry(exchange, failure, number):
                break
            found = self._next(call, ranked, tried)
            if found is None:
                if failure is not None and failure.outcome == "status":
                    break
                raise NoHealthyRegion.among(lawful)
            tried.add(found[1])
            try:
                return await self._attempt(exchange, call, *found)
            except AttemptFailed as error:
                failure = error
        if failure is not None and failure.outcome != "status" and self._next(call, ranked, set()) is None:
            raise NoHealthyRegion.among(lawful)
        raise self._give_up(exchange, failure)

    def ended(self, forwarded: Forwarded, *, failed: bool) -> None:
        """A streamed answer is over: whole, broken off by its backend (`failed`), or left by the client."""
        self._registry.finished(forwarded.backend, failed, None if failed else forwarded.seconds, forwarded.kind)

    def _next(
        self, call: Call, ranked: Sequence[PermittedRegion], tried: set[BackendState]
    ) -> tuple[PermittedRegion, BackendState] | None:
        """An untried backend in the best region that has one, else the best region's again."""
        for exclude in (tried, frozenset[BackendState]()):
            for region in ranked:
                backend = self._registry.pick(region, call.model, call.wire, random.random(), exclude)  # noqa: S311 - spreads load
                if backend is not None:
                    return region, backend
        return None

    async def _may_retry(self, exchange: Exchange, failure: AttemptFailed, number: int) -> bool:
        if not failure.retryable or exchange.left() <= 0:
            return False
        budget = self._retries.budget.retried(time.monotonic(), self._settings)
        if budget is None:
            log.warning("retry budget spent", after=failure.outcome)
            return False
        self._retries.budget = budget
        pause = delay(number - 1, self._settings, random.random())  # noqa: S311 - jitter
        await asyncio.sleep(min(pause, max(exchange.left(), 0.0)))
        return True

    async def _attempt(
        self, exchange: Exchange, call: Call, region: PermittedRegion, backend: BackendState
    ) -> Forwarded:
        left = exchange.left()
        if left <= 0:
            raise AttemptFailed("timeout", retryable=False)
        started = time.monotonic()
        self._registry.started(backend)
        outcome, status, failed, seconds, kind, streams = "cancelled", None, False, None, None, False
        try:
            reply = await self._client.send(region, backend, call, _passed_on(exchange, backend), left)
            await _check_kind(call, reply)
            outcome, status = "answered", reply.status
            seconds = time.monotonic() - started
            streams = not isinstance(reply.body, bytes)
            kind = _kind(call, reply)
            return Forwarded(region, backend, reply, seconds, kind)
        except AttemptFailed as error:
            outcome, status = error.outcome, error.status
            failed = not _shed(error)
            if outcome == "refused":
                self._registry.refused(backend)
            log.warning("attempt failed", region=region, outcome=outcome, status=status, backend=backend.url)
            raise
        finally:
            if not streams:
                self._registry.finished(backend, failed, seconds, kind)
            exchange.spent("upstream", started)
            exchange.attempts.append(Attempt(region, outcome, status))
            self._metrics.attempt(region, outcome, time.monotonic() - started)

    def _give_up(self, exchange: Exchange, failure: AttemptFailed | None) -> GatewayError:
        late = failure is None or failure.outcome == "timeout"
        if late or exchange.left() <= 0:
            return DeadlineExceeded(limit=timedelta(seconds=exchange.timeout))
        if failure is not None and _shed(failure):
            return Overloaded(retry_after=timedelta(seconds=1))
        return UpstreamFailed(n=len(exchange.attempts))


async def _check_kind(call: Call, reply: UpstreamReply) -> None:
    """Raise `AttemptFailed` for a media type that the endpoint does not answer: a web page is no answer, whoever's."""
    kinds = {value.partition(";")[0].strip().lower() for name, value in reply.headers if name == "content-type"}
    if reply.status >= HTTPStatus.BAD_REQUEST or kinds <= _KINDS[call.wire]:
        return
    if not isinstance(reply.body, bytes):
        await reply.body.aclose()
    raise AttemptFailed("content", reply.status, retryable=True)


def _kind(call: Call, reply: UpstreamReply) -> Hashable:
    """What other requests take about as long; None for a refusal, whose time says nothing."""
    return (call.model, call.stream) if reply.status < HTTPStatus.BAD_REQUEST else None


def _shed(failure: AttemptFailed) -> bool:
    """A backend that says it is full is well; counting that as a fault would take it away when it is needed most."""
    return failure.status == _SERVICE_UNAVAILABLE and b"overloaded" in (failure.body or b"")


def _passed_on(exchange: Exchange, backend: BackendState) -> dict[str, str]:
    headers = {REQUEST_ID_HEADER: exchange.request_id}
    if exchange.principal is not None and backend.config.protocol == "tidegate":
        tenant = exchange.principal.tenant.id.encode()
        headers[OWNER_HEADER] = hashlib.blake2b(tenant, digest_size=16).hexdigest()
    if exchange.traceparent:
        headers["traceparent"] = exchange.traceparent
        state = exchange.head.headers.get("tracestate", "")
        if 0 < len(state) <= _TRACESTATE_LIMIT and state.isascii() and state.isprintable():
            headers["tracestate"] = state
    return headers
