"""Whether a failed attempt may be repeated, after how long, and how many repeats all requests together may cause.

Nothing is repeated once the first byte of an answer has reached the client; that the caller knows.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from app.config import RetrySettings

Outcome = Literal["refused", "connect_timeout", "timeout", "reset", "status", "redirect", "content"]
"""How an attempt failed: no connection, none in time, no answer in time, connection lost, a 5xx, sent elsewhere,
an answer that is not what the endpoint answers."""

RETRYABLE_STATUS: Final = frozenset({500, 502, 503, 504})
"""The backend did not do the work, and inference can be asked for twice. A request that fails everywhere (a query of
death) costs `attempts`, and the budget bounds them all. A 429 is the backend's answer to this caller and goes to it, so
that a flood does not roll on from region to region."""

WINDOW: Final = 10.0
"""Seconds over which requests and retries are remembered (time constant of the decay)."""
FLOOR_PER_SECOND: Final = 3.0
"""Retries that are always affordable, so that a lone request on an idle gateway may be repeated."""


def retryable(outcome: Outcome, status: int | None) -> bool:
    """Whether another attempt, here or in another permitted region, is worth making.

    No answer in time is not: the work may be going on, and the deadline is spent.
    """
    if outcome == "status":
        return status in RETRYABLE_STATUS
    return outcome != "timeout"


def delay(attempt: int, settings: RetrySettings, draw: float) -> float:
    """Seconds to wait after `attempt` (1 is the first) failed: exponential with full jitter (Brooker, AWS, 2015).

    `draw` is uniform in [0, 1).
    """
    return draw * min(settings.cap, math.ldexp(settings.base, min(attempt - 1, 64)))


@dataclass(frozen=True, slots=True)
class Budget:
    """Retries as a share of requests (Finagle's retry budget), both counted with exponential decay over `WINDOW`.

    Keeps a failing fleet from being flooded by its own retries: they add at most `budget` of the requests plus the
    floor. A `budget` of 0 permits none.
    """

    requests: float = 0.0
    retries: float = 0.0
    at: float = field(default=-math.inf)

    def requested(self, now: float) -> "Budget":
        """One more request has come in (its first attempt, not its retries)."""
        then = self._decayed(now)
        return Budget(then.requests + 1, then.retries, now)

    def retried(self, now: float, settings: RetrySettings) -> "Budget | None":
        """The budget after one more retry, or None where that is not affordable."""
        then = self._decayed(now)
        affordable = settings.budget * then.requests + FLOOR_PER_SECOND * WINDOW
        if not settings.budget or then.retries + 1 > affordable:
            return None
        return Budget(then.requests, then.retries + 1, now)

    def _decayed(self, now: float) -> "Budget":
        share = math.exp(-max(0.0, now - self.at) / WINDOW)
        return Budget(self.requests * share, self.retries * share, now)
