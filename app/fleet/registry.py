"""What is known of every backend now: health, breaker, load and latency; and which of them takes the next attempt.

All methods are synchronous and run on the event loop's thread, so each is one step that nothing interleaves with.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, Literal

from app.config import Backend, HealthSettings, Region, Settings
from app.policy.breaker import Breaker
from app.policy.routing import RegionState
from app.types import PermittedRegion

Health = Literal["up", "down", "unknown"]

LATENCY_WINDOW: Final = 30.0
"""Seconds (time constant) over which probes' latency is averaged: a hiccup fades, a lasting slowness shows."""
START_LIMIT: Final = 60.0
"""Seconds after which the gateway counts as ready although a managed backend has not answered yet."""
_SERVES: Final = {"openai": ("openai",), "kserve": ("kserve",), "tidegate": ("openai", "kserve")}
_BREAKER_ORDER: Final = ("closed", "half_open", "open")


@dataclass(slots=True, eq=False)
class BackendState:
    """One server of a region. Only the registry writes to it.

    `good` and `bad` count probes in a row. `latency_ms` averages probes, which ask the same small thing of every
    backend; the time of requests depends on what they ask and says nothing across regions. It is kept in `request_ms`
    to choose among the backends of one region. `probed` is the time of the last probe in seconds.
    """

    region: str
    config: Backend
    url: str
    health: Health = "unknown"
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    latency_ms: float | None = None
    request_ms: float | None = None
    probed: float | None = None
    good: int = 0
    bad: int = 0
    answered: bool = False
    """Whether it has ever answered a probe well."""

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
        self._regions: dict[str, Region] = {region.id: region for region in settings.regions}
        self._backends = {
            region.id: tuple(
                BackendState(region.id, backend, _url(region, backend, managed)) for backend in region.backends
            )
            for region in settings.regions
        }

    @property
    def backends(self) -> tuple[BackendState, ...]:
        return tuple(backend for backends in self._backends.values() for backend in backends)

    def states(self) -> dict[str, RegionState]:
        """What the ranking needs of each region. A region without backends counts as up."""
        now = self._clock()
        return {region.id: self._state(region, now) for region in self._regions.values()}

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
        first, rest = _draw(candidates, draw)
        others = [backend for backend in candidates if backend is not first]
        second, _ = _draw(others, rest)
        return min(first, second, key=_busy)

    def started(self, backend: BackendState) -> None:
        """An attempt begins; `finished` must follow, whatever happens."""
        backend.in_flight += 1
        backend.breaker = backend.breaker.started(self._clock(), self._resilience.breaker)

    def finished(self, backend: BackendState, failed: bool, seconds: float | None) -> None:
        """An attempt is over. `seconds` it took to answer, None where no answer was seen.

        Not failed and not answered means that the caller went away, which says nothing about the backend.
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
            backend.breaker = backend.breaker.succeeded(now, settings)
            backend.bad = 0
            backend.request_ms = _average(backend.request_ms, seconds * 1000, 0.1)

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
            self._probed_well(backend, health, at_once=promptly or not backend.answered)
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
        return [self._describe(region, now) for region in self._regions.values()]

    def _probed_well(self, backend: BackendState, health: HealthSettings, *, at_once: bool) -> None:
        backend.answered = True
        backend.bad = 0
        backend.good += 1
        if at_once or backend.good >= health.healthy:
            backend.health = "up"
            backend.breaker = backend.breaker.reset()

    def _available(self, backend: BackendState, now: float) -> bool:
        return backend.alive and backend.breaker.permits(now, self._resilience.breaker)

    def _state(self, region: Region, now: float) -> RegionState:
        backends = self._backends[region.id]
        available = [backend for backend in backends if self._available(backend, now)]
        counted = available or backends
        weight = sum(backend.config.weight for backend in counted)
        return RegionState(
            id=region.id,
            latitude=region.latitude,
            longitude=region.longitude,
            up=bool(available) or not backends,
            latency_ms=_mean_latency(counted),
            load=sum(backend.in_flight for backend in counted) / weight if weight else 0.0,
        )

    def _describe(self, region: Region, now: float) -> dict[str, Any]:
        backends = self._backends[region.id]
        breakers = [backend.breaker.state(now, self._resilience.breaker) for backend in backends]
        latency = self._state(region, now).latency_ms
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


def _draw(candidates: Sequence[BackendState], draw: float) -> tuple[BackendState, float]:
    """One candidate by weight, and what is left of the draw: uniform in [0, 1) again within the slot it fell into."""
    ends = list(accumulate(backend.config.weight for backend in candidates))
    point = draw * ends[-1]
    index = min(bisect_right(ends, point), len(candidates) - 1)
    weight = candidates[index].config.weight
    return candidates[index], min(max(0.0, (point - ends[index] + weight) / weight), math.nextafter(1.0, 0.0))


def _busy(backend: BackendState) -> tuple[float, float]:
    return backend.in_flight / backend.config.weight, backend.request_ms or 0.0


def _average(old: float | None, new: float, share: float) -> float:
    """Exponentially weighted moving average: `new` counts `share`."""
    return new if old is None else old + share * (new - old)


def _mean_latency(backends: Sequence[BackendState]) -> float | None:
    known = [backend.latency_ms for backend in backends if backend.latency_ms is not None]
    return sum(known) / len(known) if known else None
