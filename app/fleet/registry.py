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
from app.policy.breaker import Breaker
from app.policy.pace import Pace, Usual
from app.policy.routing import HomeKey, RegionState, warmth
from app.types import PermittedRegion

Health = Literal["up", "down", "unknown"]

LATENCY_WINDOW: Final = 30.0
"""Seconds (time constant) over which probes' latency is averaged: a hiccup fades, a lasting slowness shows."""
START_LIMIT: Final = 60.0
"""Seconds after which the gateway counts as ready although a managed backend has not answered yet."""
HOMES_LIMIT: Final = 4096
"""Choices of region that are remembered; a place is a country's, so only a crowd of tenants and models has more."""
_SERVES: Final = {"openai": ("openai",), "kserve": ("kserve",), "tidegate": ("openai", "kserve")}
_BREAKER_ORDER: Final = ("closed", "half_open", "open")


@dataclass(slots=True, eq=False)
class BackendState:
    """One server of a region. Only the registry writes to it.

    `good` and `bad` count probes in a row. `latency_ms` averages probes, which ask the same small thing of every
    backend; the time of requests depends on what they ask and says nothing across regions. It is kept in `request_ms`
    to choose among the backends of one region, and compared with the `usual` time of each kind of request in `pace`,
    which knows of slowness that probes do not meet. `probed` is the time of the last probe in seconds.
    """

    region: str
    config: Backend
    url: str
    health: Health = "unknown"
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    latency_ms: float | None = None
    request_ms: float | None = None
    pace: Pace = field(default_factory=Pace)
    usual: dict[Hashable, Usual] = field(default_factory=dict)
    probed: float | None = None
    good: int = 0
    bad: int = 0
    answered: bool = False
    """Whether it has ever answered a probe well."""
    back: float | None = None
    """When (seconds) it last came back after it had been down or its breaker open; None: it has not been away."""

    @property
    def alive(self) -> bool:
        """Whether probes speak for it.

        Before the first probe, a server that stands on its own counts as alive: it ran before this gateway did, which
        need not turn requests away after each restart. A managed worker does not: it is being started just now.
        """
        return self.health == "up" or (self.health == "unknown" and not self.config.managed)

    def serves(self, model: str, wire: Literal["openai", "kserve"]) -> bool:
        return model in self.config.models and wire in _SERVES[self.config.protocol]


class Registry:
    """Every backend of every region, in the order of the configuration.

    `managed` maps a region's id to the URL of its managed worker; raises `ValueError` where one is missing. `clock` is
    monotonic, in seconds.
    """

    def __init__(self, settings: Settings, managed: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._resilience = settings.resilience
        self._clock = clock
        self._start = clock()
        self._regions = {region.id: (position, region) for position, region in enumerate(settings.regions)}
        self._backends = {
            region.id: tuple(
                BackendState(region.id, backend, _url(region, backend, managed)) for backend in region.backends
            )
            for region in settings.regions
        }
        self._homes: dict[HomeKey, PermittedRegion] = {}

    @property
    def homes(self) -> Mapping[HomeKey, PermittedRegion]:
        """Which region was best last time, by whom the choice was made for."""
        return MappingProxyType(self._homes)

    def settled(self, key: HomeKey, home: PermittedRegion) -> None:
        """Remember a choice; the one that was changed longest ago is forgotten where they are too many."""
        if self._homes.get(key) == home:
            return
        self._homes.pop(key, None)
        self._homes[key] = home
        if len(self._homes) > HOMES_LIMIT:
            del self._homes[next(iter(self._homes))]

    @property
    def backends(self) -> tuple[BackendState, ...]:
        return tuple(backend for backends in self._backends.values() for backend in backends)

    def states(self, regions: Iterable[str] | None = None) -> dict[str, RegionState]:
        """What the ranking needs of these regions, else of each. A region without backends counts as up."""
        now = self._clock()
        return {region: self._state(region, now) for region in (self._regions if regions is None else regions)}

    def regions_serving(self, model: str, wire: Literal["openai", "kserve"]) -> frozenset[str]:
        """Regions that are configured to serve this model over this protocol, whether or not they are up."""
        return frozenset(backend.region for backend in self.backends if backend.serves(model, wire))

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
        shares = {backend: backend.config.weight * warmth(now, backend.back) for backend in candidates}
        first, rest = _draw(shares, draw)
        second, _ = _draw({backend: share for backend, share in shares.items() if backend is not first}, rest)
        return min(first, second, key=lambda backend: _busy(backend, shares[backend]))

    def started(self, backend: BackendState) -> None:
        """An attempt begins; `finished` must follow, whatever happens."""
        backend.in_flight += 1
        backend.breaker = backend.breaker.started(self._clock(), self._resilience.breaker)

    def finished(self, backend: BackendState, failed: bool, seconds: float | None, kind: Hashable = None) -> None:
        """An attempt is over. `seconds` it took to answer, None where no answer was seen.

        Not failed and not answered means that the caller went away, which says nothing about the backend. `kind` is
        shared by requests whose times may be compared; None: by none.
        """
        now, settings = self._clock(), self._resilience.breaker
        backend.in_flight -= 1
        if failed:
            was_open = backend.breaker.opened
            backend.breaker = backend.breaker.failed(now, settings)
            if backend.breaker.opened != was_open:
                backend.good = 0
        elif seconds is None:
            backend.breaker = backend.breaker.abandoned()
        else:
            was_open = backend.breaker.opened is not None
            backend.breaker = backend.breaker.succeeded(now, settings)
            if was_open and backend.breaker.opened is None:
                backend.back = now
            backend.bad = 0
            backend.request_ms = _average(backend.request_ms, seconds * 1000, 0.1)
            if kind is not None:
                _paced(backend, kind, seconds * 1000, now)

    def refused(self, backend: BackendState) -> None:
        """Nobody listens there: down at once, until probes say otherwise. `finished` is still due."""
        backend.health = "down"
        backend.good = 0

    def probed(self, backend: BackendState, ok: bool, seconds: float, promptly: bool = False) -> None:
        """A probe was answered well or not, after `seconds`.

        The first good one of all, and a good one asked for `promptly` by the supervisor of a worker that says it is
        ready, bring the backend up and close its breaker at once; else it takes `healthy` good ones in a row, and
        `unhealthy` bad ones to take it down. A request that was answered meanwhile stands against bad probes.
        """
        now, health = self._clock(), self._resilience.health
        if ok:
            self._probed_well(backend, health, now, at_once=promptly or not backend.answered)
            elapsed = math.inf if backend.probed is None else now - backend.probed
            share = 1 - math.exp(-max(0.0, elapsed) / LATENCY_WINDOW)
            backend.latency_ms = _average(backend.latency_ms, seconds * 1000, share)
        else:
            backend.good = 0
            backend.bad += 1
            if backend.health == "unknown" or backend.bad >= health.unhealthy:
                backend.health = "down"
        backend.probed = now

    def ready(self) -> bool:
        """Whether every managed backend has answered a probe since the start, or has had its time to."""
        waiting = any(backend.config.managed and not backend.answered for backend in self.backends)
        return not waiting or self._clock() >= self._start + START_LIMIT

    def describe(self) -> list[dict[str, Any]]:
        """Each region as JSON for operators; `latency_ms` is null before the first probe."""
        now = self._clock()
        return [self._describe(region, now) for _, region in self._regions.values()]

    def _probed_well(self, backend: BackendState, health: HealthSettings, now: float, *, at_once: bool) -> None:
        first, backend.answered = not backend.answered, True
        backend.bad = 0
        backend.good += 1
        if at_once or backend.good >= health.healthy:
            if not first and (backend.health == "down" or backend.breaker.opened is not None):
                backend.back = now  # the first time it is up, all of its region's others have just started too
            backend.health = "up"
            backend.breaker = backend.breaker.reset()

    def _available(self, backend: BackendState, now: float) -> bool:
        return backend.alive and backend.breaker.permits(now, self._resilience.breaker)

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
            load=sum([backend.in_flight for backend in counted]) / weight if weight else 0.0,
            position=position,
            share=max([warmth(now, backend.back) for backend in available], default=1.0),
        )

    def _describe(self, region: Region, now: float) -> dict[str, Any]:
        backends = self._backends[region.id]
        breakers = [backend.breaker.state(now, self._resilience.breaker) for backend in backends]
        latency = self._state(region.id, now).latency_ms
        return {
            "id": region.id,
            "country": region.country,
            "health": "up" if any(backend.alive for backend in backends) or not backends else "down",
            "breaker": min(breakers, key=_BREAKER_ORDER.index, default="closed"),
            "latency_ms": None if latency is None else round(latency, 3),
            "in_flight": sum(backend.in_flight for backend in backends),
            "models": list(dict.fromkeys(model for backend in backends for model in backend.config.models)),
        }


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
    return (backend.in_flight + 1) / share, backend.request_ms or 0.0


def _paced(backend: BackendState, kind: Hashable, ms: float, now: float) -> None:
    known = backend.usual.get(kind)
    backend.usual[kind] = usual = Usual(ms, now) if known is None else known.seen(ms, now)
    backend.pace = backend.pace.seen(ms, usual.ms, now)


def _average(old: float | None, new: float, share: float) -> float:
    """Exponentially weighted moving average: `new` counts `share`."""
    return new if old is None else old + share * (new - old)


def _mean_latency(backends: Sequence[BackendState], now: float) -> float | None:
    known = [backend.latency_ms + backend.pace.delay_ms(now) for backend in backends if backend.latency_ms is not None]
    return sum(known) / len(known) if known else None
