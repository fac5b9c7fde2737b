"""Gateway: the whole story of an inference request, in plain awaits, top to bottom."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from typing import TypeVar

import structlog

from app.access import KeyRing, Principal
from app.batch import Wanted
from app.caching import COALESCED, Caching
from app.caller import PLACE_HEADERS, Geo, locate
from app.config import Settings, Tenant
from app.delivery import Delivery
from app.errors import AuditUnavailable, CacheMiss, DeadlineExceeded, GatewayError, ModelNotFound, NoHealthyRegion
from app.exchange import CLIENT_CLOSED, Exchange
from app.facts import check_body_head, read, timeout
from app.fleet.registry import Registry
from app.forwarding import Forwarder
from app.limiting import Hold, Limiter
from app.policy.cache_control import CacheControl, parse
from app.policy.cache_key import cache_key, item_keys
from app.policy.explain import conclude
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.routing import home_key, route
from app.recorder import Recorder
from app.refusals import refusal
from app.telemetry.metrics import Metrics
from app.types import CacheEntry, Call, Caller, Decision, Head, PermittedRegion, Question, Reply

log = structlog.get_logger("tidegate.pipeline")

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
    caching: Caching
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
            self.limiter.admit(exchange, principal)
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
        if outcome.code == "no_healthy_region" and self.settings.cache.stale_if_error:
            return  # an answer of earlier may do, which only the body tells
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
        decision = exchange.decision
        assert decision is not None  # noqa: S101 - admit has set it
        if exchange.left() <= 0:
            raise DeadlineExceeded(limit=timedelta(seconds=exchange.timeout))
        exchange.model = call.model[:_MODEL_LENGTH]
        able = self._able(decision.permitted, call)
        ranked = self._ranked(exchange, decision.permitted, able)
        hold = self.limiter.reserve(exchange, call)
        try:
            return await self._answer(exchange, Wanted(call, None, ranked, able), hold)
        finally:
            if not hold.handed_on:
                hold.leave()

    async def _answer(self, exchange: Exchange, wanted: Wanted, hold: Hold) -> Reply:
        call = wanted.call
        asked = exchange.head.headers.getlist("cache-control")
        control = parse(asked) if asked else _NOTHING_ASKED
        began = time.monotonic()
        if call.cacheable and not control.bypasses:
            wanted = self._known(exchange, wanted, control)
        entry = await self._cached(exchange, wanted, control)
        exchange.spent("cache", began)
        if entry is None and not wanted.ranked:
            entry = self._rescued(exchange, wanted, control, NoHealthyRegion.among(wanted.able))
        if entry is not None:
            if began >= entry.fresh and wanted.ranked and wanted.key:
                self.caching.flights.renew(wanted.key, lambda: self._renew(exchange.again(), wanted))
            hold.settle(0)
            return await self.delivery.cached(exchange, entry)
        with self.caching.flights.leading(None if call.stream else wanted.key):
            hold.enter()
            try:
                return await self._fetch(exchange, wanted, hold)
            except GatewayError as error:
                if error.status < HTTPStatus.INTERNAL_SERVER_ERROR or exchange.record is None:
                    raise
                return await self.delivery.rescued(exchange, self._rescued(exchange, wanted, control, error))

    def _known(self, exchange: Exchange, wanted: Wanted, control: CacheControl) -> Wanted:
        """The same under its key in the cache; of several texts, only those remain to fetch that are not known."""
        assert exchange.principal is not None and exchange.decision is not None  # noqa: S101, PT018 - admit has set them
        asking = exchange.principal.tenant.id, exchange.decision.permitted, exchange.prefer
        call, batch = wanted.call, None
        if call.texts:
            batch = self.caching.batch(call, item_keys(*asking, call), control)
            call = batch.rest() if batch.partly_known else call
        return replace(wanted, call=call, key=cache_key(*asking, call), batch=batch)

    def _rescued(self, exchange: Exchange, wanted: Wanted, control: CacheControl, error: GatewayError) -> CacheEntry:
        """The answer of earlier that stands in where no region gives one; raises the error where there is none."""
        entry = self.caching.rescue(wanted, control)
        if entry is None:
            raise error
        self.caching.tell(exchange, "HIT", entry)
        return entry

    async def _fetch(self, exchange: Exchange, wanted: Wanted, hold: Hold) -> Reply:
        """A region's answer, its decision durable before anything is sent."""
        call = wanted.call
        try:
            await self.recorder.permitted(exchange, wanted.ranked[0])
            forwarded = await self.forwarder.forward(exchange, wanted.call, wanted.ranked, wanted.able)
            if not wanted.fits(forwarded.reply.status, forwarded.reply.body):
                wanted = wanted.anew()
                forwarded = await self.forwarder.forward(exchange, wanted.call, wanted.ranked, wanted.able)
        except asyncio.CancelledError:
            hold.settle(call.tokens - call.answer_tokens if exchange.attempts else 0)
            await self.recorder.completed(exchange, "cancelled", CLIENT_CLOSED)
            raise
        return await self.delivery.forwarded(exchange, wanted, forwarded, hold)

    async def _renew(self, exchange: Exchange, wanted: Wanted) -> None:
        """Fetch an answer again that is being given out stale; recorded as any other request, charged to nobody."""
        exchange.headers["X-Cache-Status"] = "REFRESH"
        try:
            with self.caching.flights.leading(wanted.key):
                await self._fetch(exchange, wanted, self.limiter.unbounded())
        except GatewayError as error:
            log.warning("an answer could not be renewed", code=error.code, request_id=exchange.request_id)
            await self.refuse(exchange, error)

    async def _cached(self, exchange: Exchange, wanted: Wanted, control: CacheControl) -> CacheEntry | None:
        """A kept answer, or one that another request has just fetched; raises `CacheMiss` where no other will do."""
        entry, status = self.caching.find(wanted, control)
        if entry is None and control.only_if_cached:
            self.caching.tell(exchange, status)
            raise CacheMiss
        if entry is None and wanted.key and not control.no_cache and not wanted.call.stream:
            try:
                entry = wanted.whole(await self.caching.flights.follow(wanted.key, exchange.left))
            except TimeoutError:
                raise DeadlineExceeded(limit=timedelta(seconds=exchange.timeout)) from None
            except asyncio.CancelledError:
                await self.recorder.abandoned(exchange)
                raise
            status = COALESCED if entry else status
        self.caching.tell(exchange, status, entry)
        return entry

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
        """Those of the regions that are up, best first; where none is, `NoHealthyRegion` unless old answers will do.

        What admission has found holds for as long as it takes a short body to come.
        """
        if len(able) == len(permitted) and time.monotonic() - exchange.ranked_at < _RANKING_HOLDS:
            return exchange.ranked
        ranked = self._rank(exchange, able)
        if not ranked and not self.settings.cache.stale_if_error:
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
        if found.home is not None:
            self.registry.settled(home_key(origin, regions), found.home)
        return found.order

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
