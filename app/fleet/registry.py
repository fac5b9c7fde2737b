"""What is known of every backend now: health, breaker, load and latency; and which of them takes the next attempt.

All methods are synchronous and run on the event loop's thread, so each is one step that nothing interleaves with.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final, Literal

from app.config import Backend, HealthSettings, Region, Settings
from app.fleet.backend import BackendState, Condition, known_or_new
from app.policy.pace import Usual
from app.policy.routing import HomeKey, RegionState, warmth
from app.types import PermittedRegion

LATENCY_WINDOW: Final = 30.0
"""Seconds (time constant) over which probes' latency is averaged: a hiccup fades, a lasting slowness shows."""
START_LIMIT: Final = 60.0
"""Seconds after which the gateway counts as ready although a managed backend has not answered yet."""
HOMES_LIMIT: Final = 4096
"""Choices of region that are remembered; a place is a country's, so only a crowd of tenants and models has more."""
_WIRES: Final[tuple[Literal["openai", "kserve"], ...]] = ("openai", "kserve")
_BREAKER_ORDER: Final = ("closed", "half_open", "open")


@dataclass(slots=True, eq=False)
class Memory:
    """What registries that follow each other share beside their servers: when the first began, and choices made."""

    start: float
    homes: dict[HomeKey, PermittedRegion] = field(default_factory=dict)


class Registry:
    """Every backend of every region, in the order of the configuration.

    `managed` maps a region's id to the URL of its managed worker; raises `ValueError` where one is missing. `clock` is
    monotonic, in seconds. What `previous`, of the configuration before, knows of the servers that remain is kept, and
    shared with it: requests that began under it may still be under way.
    """

    def __init__(
        self,
        settings: Settings,
        managed: Mapping[str, str],
        clock: Callable[[], float],
        previous: "Registry | None" = None,
    ) -> None:
        self._resilience = settings.resilience
        self._clock = clock
        self.memory: Memory = previous.memory if previous else Memory(clock())
        self._regions = {region.id: (position, region) for position, region in enumerate(settings.regions)}
        known = list(previous.backends) if previous else []
        self._backends = {
            region.id: tuple(
                known_or_new(region.id, backend, _url(region, backend, managed), known) for backend in region.backends
            )
            for region in settings.regions
        }
        self._serving = _serving(self.backends)

    @property
    def homes(self) -> Mapping[HomeKey, PermittedRegion]:
        """Which region was best last time, by whom the choice was made for."""
        return MappingProxyType(self.memory.homes)

    def settled(self, key: HomeKey, home: PermittedRegion) -> None:
        """Remember a choice; the one that was changed longest ago is forgotten where they are too many."""
        homes = self.memory.homes
        if homes.get(key) == home:
            return
        homes.pop(key, None)
        homes[key] = home
        if len(homes) > HOMES_LIMIT:
            del homes[next(iter(homes))]

    @property
    def backends(self) -> tuple[BackendState, ...]:
        return tuple(backend for backends in self._backends.values() for backend in backends)

    def states(self, regions: Iterable[str] | None = None) -> dict[str, RegionState]:
        """What the ranking needs of these regions, else of each. A region without backends counts as up."""
        now = self._clock()
        return {region: self._state(region, now) for region in (self._regions if regions is None else regions)}

    def up(self, region: str) -> bool:
        """Whether a backend of the region is available, or it has none."""
        now, backends = self._clock(), self._backends[region]
        for backend in backends:
            if self._available(backend, now):
                return True
        return not backends

    def regions_serving(self, model: str, wire: Literal["openai", "kserve"]) -> frozenset[str]:
        """Regions that are configured to serve this model over this protocol, whether or not they are up."""
        return self._serving.get((model, wire), frozenset())

    def models(self) -> dict[str, tuple[str, ...]]:
        """Each configured model with the regions that serve it, both in the order of the configuration."""
        found: dict[str, list[str]] = {}
        for backend in self.backends:
            for model in backend.config.models:
                regions = found.setdefault(model, [])
                if backend.region not in regions:
                    regions.append(backend.region)
        return {model: tuple(regions) for model, regions in found.items()}

    def pick(
        self,
        region: PermittedRegion,
        model: str,
        wire: Literal["openai", "kserve"],
        draw: float,
        exclude: Collection[BackendState] = (),
    ) -> BackendState | None:
        """A backend for one attempt, or None: the less busy of two drawn by weight (Mitzenmacher, 2001).

        `draw` is uniform in [0, 1). Call `started` before the next await, so that a half-open breaker lets only one by.
        """
        now = self._clock()
        candidates = [
            backend
            for backend in self._backends[region]
            if backend.serves(model, wire) and self._available(backend, now) and backend not in exclude
        ]
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        shares = {backend: backend.config.weight * warmth(now, backend.condition.back) for backend in candidates}
        first, rest = _draw(shares, draw)
        second, _ = _draw({backend: share for backend, share in shares.items() if backend is not first}, rest)
        return min(first, second, key=lambda backend: _busy(backend, shares[backend]))

    def started(self, backend: BackendState) -> None:
        """An attempt begins; `finished` must follow, whatever happens."""
        state = backend.condition
        state.in_flight += 1
        state.breaker = state.breaker.started(self._clock(), self._resilience.breaker)

    def finished(self, backend: BackendState, failed: bool, seconds: float | None, kind: Hashable = None) -> None:
        """An attempt is over. `seconds` it took to answer, None where no answer was seen.

        Not failed and not answered means that the caller went away, which says nothing about the backend. `kind` is
        shared by requests whose times may be compared; None: by none.
        """
        now, settings, state = self._clock(), self._resilience.breaker, backend.condition
        state.in_flight -= 1
        if failed:
            was_open = state.breaker.opened
            state.breaker = state.breaker.failed(now, settings)
            if state.breaker.opened != was_open:
                state.good = 0
        elif seconds is None:
            state.breaker = state.breaker.abandoned()
        else:
            was_open = state.breaker.opened is not None
            state.breaker = state.breaker.succeeded(now, settings)
            if was_open and state.breaker.opened is None:
                state.back = now
            state.bad = 0
            state.request_ms = _average(state.request_ms, seconds * 1000, 0.1)
            if kind is not None:
                _paced(state, kind, seconds * 1000, now)

    def refused(self, backend: BackendState) -> None:
        """Nobody listens there: down at once, until probes say otherwise. `finished` is still due."""
        backend.condition.health = "down"
        backend.condition.good = 0

    def probed(self, backend: BackendState, ok: bool, seconds: float, promptly: bool = False) -> None:
        """A probe was answered well or not, after `seconds`.

        The first good one of all, and a good one asked for `promptly` by the supervisor of a worker that says it is
        ready, bring the backend up and close its breaker at once; else it takes `healthy` good ones in a row, and
        `unhealthy` bad ones to take it down. A request that was answered meanwhile stands against bad probes.
        """
        now, health, state = self._clock(), self._resilience.health, backend.condition
        if ok:
            self._probed_well(state, health, now, at_once=promptly or not state.answered)
            elapsed = math.inf if state.probed is None else now - state.probed
            share = 1 - math.exp(-max(0.0, elapsed) / LATENCY_WINDOW)
            state.latency_ms = _average(state.latency_ms, seconds * 1000, share)
        else:
            state.good = 0
            state.bad += 1
            if state.health == "unknown" or state.bad >= health.unhealthy:
                state.health = "down"
        state.probed = now

    def ready(self) -> bool:
        """Whether every managed backend has answered a probe since the start, or has had its time to."""
        waiting = any(backend.config.managed and not backend.condition.answered for backend in self.backends)
        return not waiting or self._clock() >= self.memory.start + START_LIMIT

    def describe(self) -> list[dict[str, Any]]:
        """Each region as JSON for operators; `latency_ms` is null before the first probe."""
        now = self._clock()
        return [self._describe(region, now) for _, region in self._regions.values()]

    def _probed_well(self, state: Condition, health: HealthSettings, now: float, *, at_once: bool) -> None:
        first, state.answered = not state.answered, True
        state.bad = 0
        state.good += 1
        if at_once or state.good >= health.healthy:
            if not first and (state.health == "down" or state.breaker.opened is not None):
                state.back = now  # the first time it is up, all of its region's others have just started too
            state.health = "up"
            state.breaker = state.breaker.reset()

    def _available(self, backend: BackendState, now: float) -> bool:
        return backend.alive and backend.condition.breaker.permits(now, self._resilience.breaker)

    def _state(self, region_id: str, now: float) -> RegionState:
        position, region = self._regions[region_id]
        backends = self._backends[region_id]
        available = [backend for backend in backends if self._available(backend, now)]
        counted = available or backends
        weight = sum([backend.config.weight for backend in counted])
        return RegionState(
            id=region_id,
            latitude=region.latitude,
            longitude=region.longitude,
            up=bool(available) or not backends,
            latency_ms=_mean_latency(counted, now),
            load=sum([backend.condition.in_flight for backend in counted]) / weight if weight else 0.0,
            position=position,
            share=max([warmth(now, backend.condition.back) for backend in available], default=1.0),
        )

    def _describe(self, region: Region, now: float) -> dict[str, Any]:
        backends = self._backends[region.id]
        breakers = [backend.condition.breaker.state(now, self._resilience.breaker) for backend in backends]
        latency = self._state(region.id, now).latency_ms
        return {
            "id": region.id,
            "country": region.country,
            "health": "up" if any(backend.alive for backend in backends) or not backends else "down",
            "breaker": min(breakers, key=_BREAKER_ORDER.index, default="closed"),
            "latency_ms": None if latency is None else round(latency, 3),
            "in_flight": sum(backend.condition.in_flight for backend in backends),
            "models": list(dict.fromkeys(model for backend in backends for model in backend.config.models)),
        }


def _serving(backends: Iterable[BackendState]) -> dict[tuple[str, str], frozenset[str]]:
    """The regions of each model and protocol."""
    found: dict[tuple[str, str], set[str]] = {}
    for backend in backends:
        for model in backend.config.models:
            for wire in _WIRES:
                if backend.serves(model, wire):
                    found.setdefault((model, wire), set()).add(backend.region)
    return {key: frozenset(regions) for key, regions in found.items()}


def _url(region: Region, backend: Backend, managed: Mapping[str, str]) -> str:
    url = backend.url or managed.get(region.id)
    if url is None:
        raise ValueError(f"region {region.id} has a managed backend, but nothing here has started its worker")
    return url


def _draw(shares: Mapping[BackendState, float], draw: float) -> tuple[BackendState, float]:
    """One backend by share, and what is left of the draw: uniform in [0, 1) again within the slot it fell into."""
    candidates = list(shares)
    ends = list(accumulate(shares.values()))
    point = draw * ends[-1]
    index = min(bisect_right(ends, point), len(candidates) - 1)
    share = shares[candidates[index]]
    return candidates[index], min(max(0.0, (point - ends[index] + share) / share), math.nextafter(1.0, 0.0))


def _busy(backend: BackendState, share: float) -> tuple[float, float]:
    """Requests in flight per share once this one is there too, so that an idle backend's share counts as well."""
    return (backend.condition.in_flight + 1) / share, backend.condition.request_ms or 0.0


def _paced(state: Condition, kind: Hashable, ms: float, now: float) -> None:
    known = state.usual.get(kind)
    state.usual[kind] = usual = Usual(ms, now) if known is None else known.seen(ms, now)
    state.pace = state.pace.seen(ms, usual.ms, now)


def _average(old: float | None, new: float, share: float) -> float:
    """Exponentially weighted moving average: `new` counts `share`."""
    return new if old is None else old + share * (new - old)


def _mean_latency(backends: Sequence[BackendState], now: float) -> float | None:
    states = [backend.condition for backend in backends]
    known = [state.latency_ms + state.pace.delay_ms(now) for state in states if state.latency_ms is not None]
    return sum(known) / len(known) if known else None
