"""The circuit breaker of one backend as a frozen state machine (Nygard, Release It!, 2007; Fowler, 2014).

closed:    requests pass; `failures` failures in a row open it.
open:      nothing passes for `recovery` seconds.
half_open: one trial passes; its success closes the breaker, its failure opens it again.

What a failure is, the caller decides: an answer with a 4xx is none.
"""

from dataclasses import dataclass, replace
from typing import Literal

from app.config import BreakerSettings

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """Failures in a row, and the times (seconds) at which it opened and at which a trial began; None: neither."""

    failures: int = 0
    opened: float | None = None
    trial: float | None = None

    def state(self, now: float, settings: BreakerSettings) -> BreakerState:
        if self.opened is None:
            return "closed"
        return "open" if now < self.opened + settings.recovery else "half_open"

    def permits(self, now: float, settings: BreakerSettings) -> bool:
        """Whether a request may pass now; a trial that stays silent for `recovery` seconds no longer bars others."""
        if self.opened is None:
            return True
        if now < self.opened + settings.recovery:
            return False
        return self.trial is None or now >= self.trial + settings.recovery

    def started(self, now: float, settings: BreakerSettings) -> "Breaker":
        """A request that `permits` let pass has begun."""
        return replace(self, trial=now) if self.state(now, settings) == "half_open" else self

    def succeeded(self, now: float, settings: BreakerSettings) -> "Breaker":
        """An attempt was answered. While open, that is the late answer of an old attempt and changes nothing."""
        untouched = self.opened is None and self.failures == 0
        return self if untouched or self.state(now, settings) == "open" else Breaker()

    def failed(self, now: float, settings: BreakerSettings) -> "Breaker":
        """An attempt failed. While open, that is an old attempt, which does not prolong the pause."""
        state = self.state(now, settings)
        if state == "open":
            return self
        failures = self.failures + 1
        opens = state == "half_open" or failures >= settings.failures
        return Breaker(failures, opened=now) if opens else Breaker(failures)

    def abandoned(self) -> "Breaker":
        """An attempt ended and proved nothing (its caller went away): a trial is given back."""
        return replace(self, trial=None)

    def reset(self) -> "Breaker":
        """The backend has proved its health by other means (probes): closed."""
        return Breaker()
