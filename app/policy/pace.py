"""How much longer than usual a backend takes for its requests lately: slowness that health checks do not see. Pure.

The time of a request depends on what it asks, so it is compared only with the usual time of its own kind, and only the
ratio is averaged. Both averages are medians, followed by small multiplicative steps (frugal streaming: Ma,
Muthukrishnan and Sandler, 2013), so that a single long request moves them no further than any other does.
"""

import math
from dataclasses import dataclass
from typing import Final

TOLERANCE: Final = 2.0
"""Up to so many times the usual is no slowness: batches, prompts and neighbours differ that much by themselves."""
STEP: Final = 0.05
"""Of the recent ratio at each request: a backend that has become ten times as slow shows after some 15 of them."""
USUAL_S: Final = 600.0
"""Seconds in which the usual time may change by a factor of e: a slow hour becomes it, a slow minute does not."""
FADE_S: Final = 30.0
"""Seconds (time constant) in which slowness is forgotten when no request comes back to tell of it."""
LEARNT: Final = 30
"""Requests from which the usual time is learnt quickly, since the first of them may be no usual one."""
_LEARNING: Final = 0.5
"""Largest step of the usual time, at its second request."""


@dataclass(frozen=True, slots=True)
class Usual:
    """Median time (ms) of one kind of request at one backend; `at` (seconds) is when the last one was seen."""

    ms: float
    at: float
    count: int = 1

    def seen(self, ms: float, now: float) -> "Usual":
        count = self.count + 1
        learning = 1 / count if count <= LEARNT else 0.0
        step = min(_LEARNING, max(learning, (now - self.at) / USUAL_S))
        return Usual(_step(self.ms, ms, step), now, count)


@dataclass(frozen=True, slots=True)
class Pace:
    """Recent ratio of the times of requests to the usual ones, and the usual time (ms) of what was asked lately."""

    ratio: float = 1.0
    typical_ms: float = 0.0
    at: float = 0.0

    def seen(self, ms: float, usual_ms: float, now: float) -> "Pace":
        """A request took `ms` whose kind usually takes `usual_ms`."""
        ratio = _step(self.ratio * self._kept(now) + 1 - self._kept(now), ms / max(usual_ms, 1e-3), STEP)
        return Pace(ratio, self.typical_ms + STEP * (usual_ms - self.typical_ms) if self.typical_ms else usual_ms, now)

    def delay_ms(self, now: float) -> float:
        """What a request waits here beyond what is usual."""
        if self.ratio <= TOLERANCE:
            return 0.0
        return (self.ratio - TOLERANCE) * self.typical_ms * self._kept(now)

    def _kept(self, now: float) -> float:
        return math.exp(-max(0.0, now - self.at) / FADE_S)


def _step(old: float, new: float, step: float) -> float:
    return old * (1 + step) if new > old else old / (1 + step) if new < old else old
