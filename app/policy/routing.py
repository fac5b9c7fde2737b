"""In which order permitted regions are tried: proximity, observed latency and load as one score in milliseconds.

    total = rtt + w^2 / (w + SLACK_MS),   w = latency + QUEUE_MS * load

`rtt` is what light in fibre needs from the caller to the region and back. `w` is how long a region seems to keep a
request waiting: `latency` is the average of its health checks and what its requests take beyond twice their usual time
(`app.policy.pace`); `load` is the number of requests in flight by the weight of the backends that are up.

Health checks and queues jitter by tens of milliseconds without meaning anything, and a move across an ocean (80 ms)
costs more than it gains then, so small waits count little and large ones nearly whole: a wait of 20 ms adds 2, 100 adds
33, 200 adds 100, and one second 833 to the total. A burst of 200 requests at a single worker adds 2 ms; it takes some
2,000 waiting, or a latency that stays above 200 ms, to send callers over an ocean.

Two corrections keep the order from jumping. Hysteresis: the region that was best last time stays so until another is
clearly better. Slow start: a region that has just come back takes a growing share of the requests it is best for.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from app.types import PermittedRegion, Place, Score

EARTH_RADIUS_KM: Final = 6371.0088
"""Mean radius R1 (IUGG, Moritz 2000)."""
FIBRE_KM_PER_MS: Final = 200.0
"""Light in glass: 5 us a kilometre (ITU-T G.114, annex A)."""
DETOUR: Final = 1.5
"""Cables are longer than great circles: 1.25 to 1.5 times (ITU-T Y.1541, route length); the more careful figure."""
STEP_MS: Final = 100.0
"""What each further region of the configuration counts where nobody knows from where the caller calls."""
QUEUE_MS: Final = 0.1
"""Waiting that one more request in flight, per unit of backend weight, stands for."""
SLACK_MS: Final = 200.0
"""A wait of this length counts half."""
MARGIN_MS: Final = 5.0
"""By how much another region must be better before callers leave the one that was best; and at least by ..."""
MARGIN_SHARE: Final = 0.1
"""... this share of the better one's total."""
WARM_UP_S: Final = 30.0
"""Seconds until a backend that has come back takes its whole share; as long as Envoy's examples of slow start."""
FIRST_SHARE: Final = 0.1
"""What it takes at once (Envoy's `min_weight_percent`): enough to warm up on."""

HomeKey = tuple[Place | None, tuple[str, ...]]
"""Whom a choice of region was made for: where they call from, and which regions may serve them."""


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region at one moment: degrees, whether a backend is available, latency in ms, requests in flight per weight.

    `position` is its place in the configuration, whose first region (0) is the primary. `share` in (0, 1] is the part
    of its requests that it takes: less than 1 while it warms up.
    """

    id: str
    latitude: float
    longitude: float
    up: bool
    latency_ms: float | None
    load: float
    position: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """The permitted regions to try, best first, and the score of every region that was looked at.

    `home` is the best one by score and hysteresis: what the next choice for the same callers is told was best. The
    order may begin with another, which the caller prefers or which stands in for a region that warms up.
    """

    order: tuple[PermittedRegion, ...]
    home: PermittedRegion | None
    scores: Mapping[str, Score]


def route(
    permitted: Sequence[PermittedRegion],
    states: Mapping[str, RegionState],
    origin: Place | None,
    prefer: Sequence[str] = (),
    *,
    homes: Mapping[HomeKey, str] | None = None,
    draw: float = 0.0,
) -> Route:
    """Where to send a request: preferred regions in their order, then the rest by score, hysteresis and slow start.

    Never holds a region that is not in `permitted`, nor one that is down. `states` covers the permitted regions at
    least; `homes` holds earlier choices by `home_key`; `draw` is uniform in [0, 1), and 0 gives the order that warming
    up does not disturb.
    """
    scores = score(states.values(), origin)
    alive = [region for region in dict.fromkeys(permitted) if region in states and states[region].up]
    settled = settle(rank(alive, states, scores), scores, (homes or {}).get(home_key(origin, permitted)))
    wish = {region: index for index, region in reversed(list(enumerate(prefer)))}
    order = sorted(ease(settled, states, draw), key=lambda region: wish.get(region, len(prefer)))
    return Route(tuple(order), settled[0] if settled else None, scores)


def home_key(origin: Place | None, permitted: Sequence[str]) -> HomeKey:
    return origin, tuple(permitted)


def score(states: Iterable[RegionState], origin: Place | None) -> dict[str, Score]:
    """Each region's score for callers from `origin`, None where nobody knows from where they call."""
    return {state.id: _score(state, origin) for state in states}


def rank(
    regions: Sequence[PermittedRegion], states: Mapping[str, RegionState], scores: Mapping[str, Score]
) -> list[PermittedRegion]:
    """The regions by score, those with the same one as in the configuration."""
    return sorted(regions, key=lambda region: (scores[region].total, states[region].position))


def settle(
    ranked: Sequence[PermittedRegion], scores: Mapping[str, Score], previous: str | None
) -> list[PermittedRegion]:
    """`ranked` with `previous`, the region that was best last time, in front unless the best is clearly better now."""
    kept = [region for region in ranked if region == previous]
    if kept and scores[kept[0]].total - scores[ranked[0]].total > margin(scores[ranked[0]].total):
        return list(ranked)
    return [*kept, *(region for region in ranked if region != previous)]


def margin(best: float) -> float:
    """How much worse than the best total (ms) a region may be that was best before."""
    return max(MARGIN_MS, MARGIN_SHARE * best)


def ease(ranked: Sequence[PermittedRegion], states: Mapping[str, RegionState], draw: float) -> list[PermittedRegion]:
    """`ranked` with the regions whose share this draw exceeds behind the others: there if nothing else is."""
    return sorted(ranked, key=lambda region: draw >= states[region].share)


def warmth(now: float, back: float | None) -> float:
    """The share that a backend takes at `now` which came back at `back` (seconds); None: it has not been away.

    Grows evenly over `WARM_UP_S` (Envoy's slow start with aggression 1), so that caches, pools and compilers warm up
    on some requests before they meet all of them.
    """
    if back is None:
        return 1.0
    return min(1.0, max(FIRST_SHARE, (now - back) / WARM_UP_S))


@lru_cache(maxsize=1 << 16)
def great_circle_km(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """Kilometres along the surface between two points in degrees (haversine, Sinnott 1984)."""
    start, end = math.radians(latitude), math.radians(to_latitude)
    across = math.sin(math.radians(to_longitude - longitude) / 2) ** 2
    chord = math.sin((end - start) / 2) ** 2 + math.cos(start) * math.cos(end) * across
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def _score(state: RegionState, origin: Place | None) -> Score:
    distance = None
    rtt = STEP_MS * state.position
    if origin is not None:
        distance = great_circle_km(origin.latitude, origin.longitude, state.latitude, state.longitude)
        rtt = 2 * distance * DETOUR / FIBRE_KM_PER_MS
    wait = (state.latency_ms or 0.0) + QUEUE_MS * state.load
    return Score(distance, rtt, state.latency_ms, state.load, rtt + wait * wait / (wait + SLACK_MS))
