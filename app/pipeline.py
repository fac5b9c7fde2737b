"""Gateway: the whole story of an inference request, in plain awaits, top to bottom."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

from app.access import KeyRing, Principal
from app.audit.record import CompletionOutcome
from app.caller import Geo, locate
from app.config import Settings
from app.errors import (
    AuditUnavailable,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    PayloadTooLarge,
)
from app.exchange import Exchange
from app.facts import check_body_head, read, timeout
from app.fleet.registry import BackendState, Registry
from app.fleet.worker_client import AttemptFailed, UpstreamStream
from app.forwarding import Forwarded, Forwarder
from app.limiting import Limiter
from app.policy.cache_key import cache_key
from app.policy.explain import resolve, route_reason
from app.policy.residency import decide
from app.policy.routing import rank, score
from app.policy.rules import LawBook
from app.recorder import Recorder
from app.refusals import nobody_up, refusal
from app.stores.base import CacheStore
from app.telemetry.metrics import Metrics
from app.types import CacheEntry, Call, PermittedRegion, Reply
from regions.wire import HEADER_LENGTH, Fault

CLIENT_CLOSED = 499
"""The status recorded where the client left before its answer (nginx's convention)."""
_KEPT_HEADERS = frozenset({"content-type", "content-encoding", HEADER_LENGTH})
_MODEL_LENGTH = 256
"""Characters of a model's name that a record keeps; it is the caller's text."""
_STREAM_END = b"data: [DONE]"
_USED = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that answering a request needs, put together once by `main`."""

    settings: Settings
    book: LawBook
    keys: KeyRing
    geo: Geo
    registry: Registry
    forwarder: Forwarder
    limiter: Limiter
    recorder: Recorder
    cache: CacheStore
    metrics: Metrics

    def authenticate(self, exchange: Exchange) -> Principal:
        """Note whose key this is; raises `Unauthenticated`."""
        exchange.principal = self.keys.authenticate(exchange.head.headers)
        exchange.caller = locate(exchange.head, self.settings, self.geo)
        return exchange.principal

    async def admit(self, exchange: Exchange) -> None:
        """Everything that headers decide: who asks, for whose data, which regions may see it, and within what limits.

        Raises the `GatewayError` that the caller is to see; the body has not been touched then.
        """
        exchange.inference = True
        principal = self.authenticate(exchange)
        principal.require("infer")
        exchange.timeout = timeout(exchange.head.headers)
        check_body_head(exchange.head.headers, exchange.wire, self.settings.gateway.body_limit)
        self._decide(exchange, principal)
        with exchange.timed("limit"):
            self.limiter.request(exchange, principal.tenant)

    def _decide(self, exchange: Exchange, principal: Principal) -> None:
        assert exchange.caller is not None  # noqa: S101 - authenticate has set it
        tenant = principal.tenant
        facts = read(exchange.head, self.settings, tenant, exchange.caller, exchange.received.date())
        exchange.question, exchange.prefer, exchange.subject_id = facts.question, facts.prefer, facts.subject_id
        decision = decide(facts.question, tenant, self.settings.regions, self.settings.residency, self.book)
        exchange.decision = decision
        explanation = resolve(
            decision,
            states=list(self.registry.states().values()),
            origin=exchange.caller.place,
            prefer=facts.prefer,
            gateway_region=self.settings.gateway.region,
        )
        exchange.headers["X-Route-Reason"] = explanation.reason
        if explanation.code is not None:
            self.metrics.refused(explanation.reason)
            raise refusal(explanation, decision, facts.question, self.settings, exchange.head.path)

    async def answer(self, exchange: Exchange, call: Call) -> Reply:
        """Serve an admitted request: limits, cache, durable decision, attempts, durable completion.

        Raises the `GatewayError` that the caller is to see.
        """
        principal, decision = exchange.principal, exchange.decision
        assert principal is not None and decision is not None  # noqa: S101, PT018 - admit has set them
        if exchange.left() <= 0:
            raise DeadlineExceeded(limit=timedelta(seconds=exchange.timeout))
        exchange.model = call.model[:_MODEL_LENGTH]
        ranked = self._rank(exchange, decision.permitted, call)
        self.limiter.tokens(exchange, principal.tenant, call.tokens)
        key = cache_key(principal.tenant.id, decision.permitted, call) if call.cacheable else None
        with exchange.timed("cache"):
            entry = self._look_up(exchange, key)
        if entry is not None:
            self.limiter.settle(principal.tenant, call.tokens, 0)
            return await self._replay(exchange, entry)
        with ExitStack() as held:
            held.enter_context(self.limiter.running(principal.tenant))
            await self.recorder.permitted(exchange, ranked[0])
            try:
                forwarded = await self.forwarder.forward(exchange, call, ranked)
            except asyncio.CancelledError:
                await asyncio.shield(self.recorder.completed(exchange, "cancelled", CLIENT_CLOSED, region=None))
                raise
            return await self._deliver(exchange, call, key, forwarded, held)

    def _rank(self, exchange: Exchange, permitted: Sequence[PermittedRegion], call: Call) -> list[PermittedRegion]:
        """The permitted regions that serve the model and are up, best first; never empty."""
        serving = self.registry.regions_serving(call.model, call.wire)
        able = [region for region in permitted if region in serving]
        if not able:
            raise ModelNotFound(param="model", model=call.model)
        states = self.registry.states()
        origin = exchange.caller.place if exchange.caller else None
        ranked = rank(able, states, score(list(states.values()), origin), exchange.prefer)
        if not ranked:
            raise nobody_up(able)
        return ranked

    def _look_up(self, exchange: Exchange, key: bytes | None) -> CacheEntry | None:
        now = time.monotonic()
        entry = None if key is None else self.cache.get(key, now)
        status = "BYPASS" if key is None else "MISS" if entry is None else "HIT"
        exchange.headers["X-Cache-Status"] = status
        self.metrics.cache(status)
        if entry is not None:
            exchange.headers["Age"] = str(int(now - entry.stored))
        return entry

    async def _replay(self, exchange: Exchange, entry: CacheEntry) -> Reply:
        await self.recorder.hit(exchange, entry.region, entry.status, len(entry.body))
        self._served_by(exchange, entry.region)
        return Reply(entry.status, entry.headers, entry.body)

    def _served_by(self, exchange: Exchange, region: str) -> None:
        exchange.headers["X-Served-Region"] = region
        if exchange.decision is not None:
            exchange.headers["X-Route-Reason"] = route_reason(exchange.decision, region)

    async def _deliver(
        self, exchange: Exchange, call: Call, key: bytes | None, forwarded: Forwarded, held: ExitStack
    ) -> Reply:
        """From the backend's answer to the caller's; a stream takes what is `held` along to its end."""
        reply = forwarded.reply
        self._served_by(exchange, forwarded.region)
        headers = tuple((name, value) for name, value in reply.headers if name.lower() in _KEPT_HEADERS)
        if isinstance(reply.body, UpstreamStream):
            return Reply(reply.status, headers, self._stream(exchange, forwarded, reply.body, held.pop_all()))
        if reply.status >= 400:  # noqa: PLR2004 - HTTP's client errors
            _raise_fault(forwarded.backend, call, reply.body)
        else:
            self._settle(exchange, call, reply.body)
        size = len(reply.body)
        outcome: CompletionOutcome = "served" if reply.status < 400 else "failed"  # noqa: PLR2004 - as above
        await asyncio.shield(
            self.recorder.completed(exchange, outcome, reply.status, region=forwarded.region, size=size)
        )
        if key is not None and reply.status == HTTPStatus.OK:
            now = time.monotonic()
            self.cache.put(key, CacheEntry(forwarded.region, reply.status, headers, reply.body, now), now)
        return Reply(reply.status, headers, reply.body)

    async def _stream(
        self, exchange: Exchange, forwarded: Forwarded, body: UpstreamStream, held: ExitStack
    ) -> AsyncIterator[bytes]:
        """The chunks as they come, but for the last event, which waits until the completion is durable."""
        outcome: CompletionOutcome = "cancelled"
        size = 0
        last = b""
        try:
            async for chunk in body:
                size += len(chunk)
                if last or _STREAM_END in chunk:
                    last += chunk
                else:
                    yield chunk
            outcome = "served"
            await self._complete_stream(exchange, forwarded, outcome, size)
            if last:
                yield last
        except AttemptFailed:
            outcome = "failed"
            raise
        finally:
            held.close()
            self.forwarder.ended(forwarded, failed=outcome == "failed")
            await asyncio.shield(self._end_stream(exchange, forwarded, body, outcome, size))

    async def _complete_stream(
        self, exchange: Exchange, forwarded: Forwarded, outcome: CompletionOutcome, size: int
    ) -> None:
        await self.recorder.completed(exchange, outcome, forwarded.reply.status, region=forwarded.region, size=size)

    async def _end_stream(
        self, exchange: Exchange, forwarded: Forwarded, body: UpstreamStream, outcome: CompletionOutcome, size: int
    ) -> None:
        await body.aclose()
        await self._complete_stream(exchange, forwarded, outcome, size)

    def _settle(self, exchange: Exchange, call: Call, body: bytes) -> None:
        """Charge what the backend says was used, where it says so, in place of the estimate."""
        used = _USED.search(body)
        if exchange.principal and used:
            self.limiter.settle(exchange.principal.tenant, call.tokens, int(used[1]))

    async def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Record that an inference request ended in this error; raises `AuditUnavailable` where that cannot be done.

        Nothing is recorded of callers that are nobody: whoever has no key could otherwise fill the disk.
        """
        if isinstance(error, AuditUnavailable) or exchange.principal is None or not exchange.inference:
            return
        if exchange.record is None:
            await self.recorder.refused(exchange, error)
        else:
            await self.recorder.completed(exchange, "failed", error.status, region=None)


def _raise_fault(backend: BackendState, call: Call, body: bytes) -> None:
    """A refusal by a worker of ours becomes our own error, told in the caller's language and the endpoint's shape."""
    fault = Fault.decode(body) if backend.config.protocol == "tidegate" else None
    match fault:
        case Fault(code=InvalidRequest.code):
            raise InvalidRequest(fault.detail, param=fault.param, **fault.values)
        case Fault(code=ModelNotFound.code | NotFound.code):
            # It has no such version; or no such endpoint, which is to say that the model cannot be asked for that.
            raise ModelNotFound(param="model", model=fault.values.get("model", call.model))
        case Fault(code=PayloadTooLarge.code):
            raise PayloadTooLarge(limit=fault.values.get("limit"))
