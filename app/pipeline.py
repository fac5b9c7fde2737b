"""Gateway: the whole story of an inference request, in plain awaits, top to bottom."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from cachetools import LRUCache

from app.access import KeyRing, Principal
from app.caller import Geo, locate
from app.config import Settings, Tenant
from app.delivery import Delivery
from app.errors import AuditUnavailable, CacheMiss, DeadlineExceeded, GatewayError, ModelNotFound, NoHealthyRegion
from app.exchange import CLIENT_CLOSED, Exchange
from app.facts import check_body_head, read, timeout
from app.fleet.registry import Registry
from app.forwarding import Forwarder
from app.limiting import Hold, Limiter
from app.policy.cache_control import CacheControl, parse
from app.policy.cache_key import cache_key
from app.policy.explain import resolve
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.routing import home_key, route
from app.recorder import Recorder, to_the_end
from app.refusals import refusal
from app.stores.base import CacheStore
from app.telemetry.metrics import Metrics
from app.types import CacheEntry, Call, Decision, PermittedRegion, Question, Reply

_MODEL_LENGTH = 256
"""Characters of a model's name that a record keeps; it is the caller's text."""

_DECISIONS = 4096
"""Decisions that are remembered: as many as there are tenants times kinds of evidence that came lately."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that answering a request needs, put together once by `main`."""

    settings: Settings
    ground: Ground
    keys: KeyRing
    geo: Geo
    registry: Registry
    forwarder: Forwarder
    limiter: Limiter
    recorder: Recorder
    delivery: Delivery
    cache: CacheStore
    metrics: Metrics
    decisions: LRUCache[Question, Decision] = field(default_factory=lambda: LRUCache(_DECISIONS), repr=False)

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
        exchange.timeout, exchange.bounds_stream = timeout(exchange.head.headers)
        check_body_head(exchange.head.headers, exchange.wire, self.settings.gateway.body_limit)
        self._decide(exchange, principal)
        with exchange.timed("limit"):
            self.limiter.admit(exchange, principal)

    def _decide(self, exchange: Exchange, principal: Principal) -> None:
        assert exchange.caller is not None  # noqa: S101 - authenticate has set it
        tenant = principal.tenant
        facts = read(exchange.head, self.settings, tenant, exchange.caller, exchange.received.date())
        exchange.question, exchange.prefer, exchange.subject_id = facts.question, facts.prefer, facts.subject_id
        decision = self._decided(facts.question, tenant)
        exchange.decision = decision
        explanation = resolve(
            decision,
            states=list(self.registry.states().values()),
            origin=exchange.caller.place,
            prefer=facts.prefer,
            gateway_region=self.settings.gateway.region,
            homes=self.registry.homes,
        )
        exchange.headers["X-Route-Reason"] = explanation.reason
        if explanation.code is not None:
            self.metrics.refused(explanation.reason)
            raise refusal(explanation, decision, facts.question, self.settings, exchange.head.path)

    def _decided(self, question: Question, tenant: Tenant) -> Decision:
        """What `decide` says; it is a function of the question alone while this configuration and its laws serve."""
        decision = self.decisions.get(question)
        if decision is None:
            decision = decide(question, tenant, self.settings.residency, self.ground)
            self.decisions[question] = decision
        return decision

    async def answer(self, exchange: Exchange, call: Call) -> Reply:
        """Serve an admitted request: limits, cache, durable decision, attempts, durable completion.

        Raises the `GatewayError` that the caller is to see.
        """
        decision = exchange.decision
        assert decision is not None  # noqa: S101 - admit has set it
        if exchange.left() <= 0:
            raise DeadlineExceeded(limit=timedelta(seconds=exchange.timeout))
        exchange.model = call.model[:_MODEL_LENGTH]
        able = self._able(decision.permitted, call)
        ranked = self._rank(exchange, able)
        hold = self.limiter.reserve(exchange, call)
        try:
            return await self._answer(exchange, call, ranked, able, hold)
        finally:
            if not hold.handed_on:
                hold.leave()

    async def _answer(
        self,
        exchange: Exchange,
        call: Call,
        ranked: Sequence[PermittedRegion],
        able: Sequence[PermittedRegion],
        hold: Hold,
    ) -> Reply:
        control = parse(exchange.head.headers.getlist("cache-control"))
        key = self._key(exchange, call) if call.cacheable and not control.bypasses else None
        with exchange.timed("cache"):
            entry = self._look_up(exchange, key, control)
        if entry is None and control.only_if_cached:
            raise CacheMiss
        if entry is not None:
            hold.settle(0)
            return await self.delivery.cached(exchange, entry)
        hold.enter()
        try:
            await self.recorder.permitted(exchange, ranked[0])
            forwarded = await self.forwarder.forward(exchange, call, ranked, able)
        except asyncio.CancelledError:
            hold.settle(call.tokens - call.answer_tokens if exchange.attempts else 0)
            await to_the_end(self.recorder.completed(exchange, "cancelled", CLIENT_CLOSED))
            raise
        return await self.delivery.forwarded(exchange, call, key, forwarded, hold)

    def _key(self, exchange: Exchange, call: Call) -> bytes:
        assert exchange.principal is not None and exchange.decision is not None  # noqa: S101, PT018 - admit has set them
        return cache_key(exchange.principal.tenant.id, exchange.decision.permitted, exchange.prefer, call)

    def _able(self, permitted: Sequence[PermittedRegion], call: Call) -> list[PermittedRegion]:
        """The permitted regions that are configured to serve the model; raises `ModelNotFound` where there is none."""
        serving = self.registry.regions_serving(call.model, call.wire)
        able = [region for region in permitted if region in serving]
        if not able:
            raise ModelNotFound(param="model", model=call.model)
        return able

    def _rank(self, exchange: Exchange, able: Sequence[PermittedRegion]) -> Sequence[PermittedRegion]:
        """Those of the regions that are up, best first; raises `NoHealthyRegion` where none is."""
        origin = exchange.caller.place if exchange.caller else None
        draw = random.random()  # noqa: S311 - spreads load
        states = self.registry.states(able)
        found = route(able, states, origin, exchange.prefer, homes=self.registry.homes, draw=draw)
        if found.home is None:
            raise NoHealthyRegion.among(able)
        self.registry.settled(home_key(origin, able), found.home)
        return found.order

    def _look_up(self, exchange: Exchange, key: bytes | None, control: CacheControl) -> CacheEntry | None:
        """The kept answer that the caller accepts; REFRESH says that there is one, but too old for this caller."""
        now = time.monotonic()
        entry = None if key is None else self.cache.get(key, now)
        status = "BYPASS" if key is None else "MISS" if entry is None else "HIT"
        if entry is not None and not control.accepts(now - entry.stored):
            entry, status = None, "REFRESH"
        exchange.headers["X-Cache-Status"] = status
        self.metrics.cache(status)
        if entry is not None:
            exchange.headers["Age"] = str(int(now - entry.stored))
        return entry

    async def abandoned(self, exchange: Exchange) -> None:
        """Record that the client of an admitted request left in the middle of its body."""
        if exchange.inference and exchange.principal is not None and exchange.record is None:
            await self.recorder.abandoned(exchange)

    async def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Record that an inference request ended in this error; raises `AuditUnavailable` where that cannot be done.

        Nothing is recorded of callers that are nobody: whoever has no key could otherwise fill the disk.
        """
        if isinstance(error, AuditUnavailable) or exchange.principal is None or not exchange.inference:
            return
        if exchange.record is None:
            await self.recorder.refused(exchange, error)
        else:
            await self.recorder.completed(exchange, "failed", error.status, error=error)
