"""In which order permitted regions are tried: proximity, observed latency and load as one score in milliseconds.

    total = rtt + w^2 / (w + SLACK_MS),   w = latency + QUEUE_MS * load

`rtt` is what light in fibre needs from the caller to the region and back. `w` is how long a region seems to keep a
request waiting. Health checks and queues jitter by tens of milliseconds without meaning anything, and a move across an
ocean (80 ms) costs more than it gains then, so small waits count little and large ones nearly whole: a wait of 20 ms
adds 2, 100 adds 33, 200 adds 100, and one second 833 to the total. A burst of 200 requests at a single worker adds
2 ms; it takes some 2,000 waiting, or a latency that stays above 200 ms, to send callers over an ocean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region at one moment: degrees, whether a backend is available, latency in ms, requests in flight per weight."""

    id: str
    latitude: float
    longitude: float
    up: bool
    latency_ms: float | None
    load: float


def score(states: Sequence[RegionState], origin: Place | None) -> dict[str, Score]:
    """Every region's score; `states` stand in the order of the configuration, whose first region is the primary."""
    return {state.id: _score(position, state, origin) for position, state in enumerate(states)}


def rank(
    permitted: Sequence[PermittedRegion],
    states: Mapping[str, RegionState],
    scores: Mapping[str, Score],
    prefer: Sequence[str],
) -> list[PermittedRegion]:
    """The permitted regions that are up: preferred ones first in their order, then by score, then by configuration.

    Never returns a region that is not in `permitted`.
    """
    position = {region: index for index, region in enumerate(states)}
    wish = {region: index for index, region in reversed(list(enumerate(prefer)))}
    alive = [region for region in dict.fromkeys(permitted) if region in states and states[region].up]
    return sorted(alive, key=lambda region: (wish.get(region, len(prefer)), scores[region].total, position[region]))


def great_circle_km(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """Kilometres along the surface between two points in degrees (haversine, Sinnott 1984)."""
    start, end = math.radians(latitude), math.radians(to_latitude)
    across = math.sin(math.radians(to_longitude - longitude) / 2) ** 2
    chord = math.sin((end - start) / 2) ** 2 + math.cos(start) * math.cos(end) * across
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def _score(position: int, state: RegionState, origin: Place | None) -> Score:
    distance = None
    rtt = STEP_MS * position
    if origin is not None:
        distance = great_circle_km(origin.latitude, origin.longitude, state.latitude, state.longitude)
        rtt = 2 * distance * DETOUR / FIBRE_KM_PER_MS
    wait = (state.latency_ms or 0.0) + QUEUE_MS * state.load
    return Score(distance, rtt, state.latency_ms, state.load, rtt + wait * wait / (wait + SLACK_MS))
