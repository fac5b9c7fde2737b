"""Gateway: the whole story of an inference request, in plain awaits, top to bottom."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from app.access import KeyRing, Principal
from app.caller import PLACE_HEADERS, Geo, locate
from app.config import Settings, Tenant
from app.delivery import Delivery
from app.errors import AuditUnavailable, CacheMiss, DeadlineExceeded, GatewayError, ModelNotFound, NoHealthyRegion
from app.exchange import CLIENT_CLOSED, Exchange
from app.facts import check_body_head, read, timeout
from app.fleet.registry import Registry
from app.forwarding import Forwarder
from app.limiting import Limiter
from app.policy.cache_control import CacheControl, parse
from app.policy.cache_key import cache_key
from app.policy.explain import conclude
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.routing import home_key, route
from app.recorder import Recorder
from app.refusals import refusal
from app.stores.base import CacheStore
from app.telemetry.metrics import Metrics
from app.types import CacheEntry, Call, Caller, Decision, Head, PermittedRegion, Question, Reply

_MODEL_LENGTH = 256
"""Characters of a model's name that a record keeps; it is the caller's text."""

_NOTHING_ASKED = CacheControl()
_RANKING_HOLDS = 0.1
"""Seconds."""
_REMEMBERED = 4096
"""Decisions, as many as there are tenants times kinds of evidence, and callers' addresses, that are remembered."""


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


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
    callers: dict[str, Caller] = field(default_factory=dict, repr=False)
    decisions: dict[Question, Decision] = field(default_factory=dict, repr=False)

    def authenticate(self, exchange: Exchange) -> Principal:
        """Note whose key this is; raises `Unauthenticated`."""
        exchange.principal = self.keys.authenticate(exchange.head.headers)
        exchange.caller = self._located(exchange.head)
        return exchange.principal

    def _located(self, head: Head) -> Caller:
        """What `locate` says; of a peer that says nothing of others' places it is a function of the address alone."""
        peer, headers = head.peer, head.headers
        if peer is None or headers.has_any(PLACE_HEADERS):
            return locate(head, self.settings, self.geo)
        caller = self.callers.get(peer)
        if caller is None:
            caller = _kept(self.callers, peer, locate(head, self.settings, self.geo))
        return caller

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
        began = time.monotonic()
        try:
            self.limiter.request(exchange, principal.tenant)
        finally:
            exchange.spent("limit", began)

    def _decide(self, exchange: Exchange, principal: Principal) -> None:
        assert exchange.caller is not None  # noqa: S101 - authenticate has set it
        tenant = principal.tenant
        facts = read(exchange.head, self.settings, tenant, exchange.caller, exchange.received.date())
        exchange.question, exchange.prefer, exchange.subject_id = facts.question, facts.prefer, facts.subject_id
        decision = self._decided(facts.question, tenant)
        exchange.decision = decision
        ranked = self._rank(exchange, decision.permitted)
        outcome = conclude(decision, ranked, self.registry.up, self.settings.gateway.region)
        exchange.headers["X-Route-Reason"] = str(outcome.reason)
        if outcome.code is not None:
            self.metrics.refused(outcome.reason)
            raise refusal(outcome, decision, facts.question, self.settings, exchange.head.path)
        exchange.ranked, exchange.ranked_at = ranked, time.monotonic()

    def _decided(self, question: Question, tenant: Tenant) -> Decision:
        """What `decide` says; it is a function of the question alone while this configuration and its laws serve."""
        decision = self.decisions.get(question)
        if decision is None:
            decision = _kept(self.decisions, question, decide(question, tenant, self.settings.residency, self.ground))
        return decision

    async def answer(self, exchange: Exchange, call: Call) -> Reply:
        """Serve an admitted request: limits, cache, durable decision, attempts, durable completion.

        Raises the `GatewayError` that the caller is to see.
        """
        principal, decision = exchange.principal, exchange.decision
        assert principal is not None and decision is not None  # noqa: S101, PT018 - admit has set them
        if exchange.left() <= 0:
            raise DeadlineExceeded(limit=timedelta(seconds=exchange.timeout))
        exchange.model = call.model[:_MODEL_LENGTH]
        able = self._able(decision.permitted, call)
        ranked = self._ranked(exchange, decision.permitted, able)
        self.limiter.tokens(exchange, principal.tenant, call.tokens)
        asked = exchange.head.headers.getlist("cache-control")
        control = parse(asked) if asked else _NOTHING_ASKED
        key = None
        if call.cacheable and not control.bypasses:
            key = cache_key(principal.tenant.id, decision.permitted, exchange.prefer, call)
        began = time.monotonic()
        entry = self._look_up(exchange, key, control)
        exchange.spent("cache", began)
        if entry is None and control.only_if_cached:
            raise CacheMiss
        if entry is not None:
            self.limiter.settle(principal.tenant, call.tokens, 0)
            return await self.delivery.cached(exchange, entry)
        with ExitStack() as held:
            held.enter_context(self.limiter.running(principal.tenant))
            try:
                await self.recorder.permitted(exchange, ranked[0])
                forwarded = await self.forwarder.forward(exchange, call, ranked, able)
            except asyncio.CancelledError:
                await self.recorder.completed(exchange, "cancelled", CLIENT_CLOSED)
                raise
            return await self.delivery.forwarded(exchange, call, key, forwarded, held)

    def _able(self, permitted: Sequence[PermittedRegion], call: Call) -> list[PermittedRegion]:
        """The permitted regions that are configured to serve the model; raises `ModelNotFound` where there is none."""
        serving = self.registry.regions_serving(call.model, call.wire)
        able = [region for region in permitted if region in serving]
        if not able:
            raise ModelNotFound(param="model", model=call.model)
        return able

    def _ranked(
        self, exchange: Exchange, permitted: Sequence[PermittedRegion], able: Sequence[PermittedRegion]
    ) -> Sequence[PermittedRegion]:
        """Those of the regions that are up, best first; raises `NoHealthyRegion` where none is.

        What admission has found holds for as long as it takes a short body to come.
        """
        if len(able) == len(permitted) and time.monotonic() - exchange.ranked_at < _RANKING_HOLDS:
            return exchange.ranked
        ranked = self._rank(exchange, able)
        if not ranked:
            raise NoHealthyRegion.among(able)
        return ranked

    def _rank(self, exchange: Exchange, regions: Sequence[PermittedRegion]) -> Sequence[PermittedRegion]:
        """Those of the regions that are up, best first."""
        if len(regions) == 1:  # as under most laws that keep data at home
            return regions if self.registry.up(regions[0]) else ()
        origin = exchange.caller.place if exchange.caller else None
        draw = random.random()  # noqa: S311 - spreads load
        states = self.registry.states(regions)
        found = route(regions, states, origin, exchange.prefer, homes=self.registry.homes, draw=draw)
        if found.home is not None and len(regions) > 1:
            self.registry.settled(home_key(origin, regions), found.home)
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


def _kept(memo: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    """The value, remembered; a full memo starts anew, which costs less than to know at each look-up what is oldest."""
    if len(memo) >= _REMEMBERED:
        memo.clear()
    memo[key] = value
    return value
