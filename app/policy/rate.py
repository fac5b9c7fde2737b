"""Rate limits by the generic cell rate algorithm (GCRA, ITU-T I.371 annex A): one number of state for each key.

The state is the theoretical arrival time (TAT): when a key that had spent nothing beyond its rate would be here. Each
unit moves it by the emission interval `seconds / amount`; what would move it more than `burst` intervals ahead of the
clock is refused. In any window of w seconds at most `burst + amount / seconds * w` units are admitted.
"""

import math
from typing import Final, NamedTuple

from app.config import Rate

FULL: Final = -math.inf
"""The TAT of a key that has not been seen: everything is left. A TAT in the past says the same."""
_ROUNDING: Final = 1e-6
"""Seconds that rounding may add up to without costing the last unit of a burst."""


class Allowance(NamedTuple):
    """The answer to one request at `now`: `tat` is the state to keep (unchanged by a refusal).

    `retry_after` is seconds until this cost fits: 0 where it was allowed, None where it never fits.
    """

    allowed: bool
    tat: float
    now: float
    rate: Rate
    retry_after: float | None

    @property
    def limit(self) -> int:
        """The burst that `remaining` counts down from, in units."""
        return self.rate.burst

    @property
    def remaining(self) -> int:
        """Whole units that would fit now."""
        rate = self.rate
        burst = rate.burst
        left = burst - (self.tat - self.now - _ROUNDING) * rate.amount / rate.seconds
        return burst if left >= burst else int(left) if left > 0 else 0

    @property
    def reset_after(self) -> float:
        """Seconds until all of the burst is back."""
        return max(self.tat - self.now, 0.0)

    @property
    def spent(self) -> float:
        """The share of the burst that is not there now; above 1 for a key in debt."""
        rate = self.rate
        return (self.tat - self.now) * rate.amount / (rate.seconds * rate.burst)


def check(tat: float, now: float, rate: Rate, cost: int) -> Allowance:
    """Whether `cost` units fit at `now` (seconds on any clock that never goes back)."""
    interval = rate.seconds / rate.amount
    start = max(tat, now)
    wait = start - now + (cost - rate.burst) * interval
    if wait > _ROUNDING:
        return Allowance(False, start, now, rate, None if cost > rate.burst else wait)
    return Allowance(True, start + cost * interval, now, rate, 0.0)


def settled(tat: float, now: float, rate: Rate, charged: Allowance, unused: int) -> float:
    """The TAT once it is known that `unused` of the units charged were not used; negative: so many more were used.

    Units wait in line to be worked off, and what was charged ends at `charged.tat`: what of it has been worked off by
    now is back already, and is not given back a second time. What was used beyond it is charged as of now.
    """
    if unused < 0:
        return max(tat, now) - unused * rate.seconds / rate.amount
    waiting = max(charged.tat - now, 0.0) * charged.rate.amount / charged.rate.seconds
    return tat - min(unused, waiting) * rate.seconds / rate.amount


def carried(tat: float, now: float, old: Rate, new: Rate) -> float:
    """The TAT under another rate: what was used and has not come back stays used, up to all of the new burst."""
    used = max(0.0, tat - now) * old.amount / old.seconds
    return now + min(used, new.burst) * new.seconds / new.amount
