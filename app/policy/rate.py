"""Rate limits by the generic cell rate algorithm (GCRA, ITU-T I.371 annex A): one number of state for each key.

The state is the theoretical arrival time (TAT): when a key that had spent nothing beyond its rate would be here. Each
unit moves it by the emission interval `seconds / amount`; what would move it more than `burst` intervals ahead of the
clock is refused. In any window of w seconds at most `burst + amount / seconds * w` units are admitted.
"""

import math
from dataclasses import dataclass
from typing import Final

from app.config import Rate

FULL: Final = -math.inf
"""The TAT of a key that has not been seen: everything is left."""
_ROUNDING: Final = 1e-6
"""Seconds that rounding may add up to without costing the last unit of a burst."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The answer to one request: `tat` is the state to keep (unchanged by a refusal).

    `limit` is the burst that `remaining` counts down from, in units. `reset_after` is seconds until all of it is back,
    `retry_after` seconds until this cost fits: 0 where it was allowed, None where it never fits.
    """

    allowed: bool
    tat: float
    limit: int
    remaining: int
    reset_after: float
    retry_after: float | None


def check(tat: float, now: float, rate: Rate, cost: int) -> Allowance:
    """Whether `cost` units fit at `now` (seconds on any clock that never goes back)."""
    interval = rate.seconds / rate.amount
    tolerance = rate.burst * interval
    start = max(tat, now)
    wait = start + cost * interval - tolerance - now
    if cost > rate.burst:
        return _allowance(False, start, now, rate, None)
    if wait > _ROUNDING:
        return _allowance(False, start, now, rate, wait)
    return _allowance(True, start + cost * interval, now, rate, 0.0)


def refund(tat: float, rate: Rate, cost: int) -> float:
    """The TAT after `cost` units, charged earlier, turned out not to be used.

    A negative cost charges what was used beyond that, as if it had been known then.
    """
    return tat - cost * rate.seconds / rate.amount


def carried(tat: float, now: float, old: Rate, new: Rate) -> float:
    """The TAT under another rate: what was used and has not come back stays used, up to all of the new burst."""
    used = max(0.0, tat - now) * old.amount / old.seconds
    return now + min(used, new.burst) * new.seconds / new.amount


def _allowance(allowed: bool, tat: float, now: float, rate: Rate, retry_after: float | None) -> Allowance:
    interval = rate.seconds / rate.amount
    left = math.floor(rate.burst - (tat - now - _ROUNDING) / interval)
    remaining = min(max(left, 0), rate.burst)
    return Allowance(allowed, tat, rate.burst, remaining, tat - now, retry_after)
