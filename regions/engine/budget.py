"""The compute budget `auto`: lowered while inputs wait too long for their batch, raised afterwards. Pure."""

from regions.settings import AutoBudgetSettings

STEP = 0.05
"""One step of the budget: few levels, so that inputs still share batches."""
RISE_AFTER = 1.0
"""Seconds without too long a wait after which the budget rises a step."""


class AutoBudget:
    """Falls by two steps for a batch whose oldest input waited too long, rises by one for each second without.

    Falling faster than it rises, it comes to rest below what the load allows (Chiu & Jain 1989). `now` is in seconds
    on any clock that never goes back.
    """

    def __init__(self, settings: AutoBudgetSettings, now: float) -> None:
        self._settings = settings
        self._last = (settings.max, now)  # one pair, so that other threads read both of one moment

    def at(self, now: float) -> float:
        """The budget of an input that arrives now."""
        budget, since = self._last
        steps = int((now - since) / RISE_AFTER)
        return round(min(self._settings.max, budget + steps * STEP), 4)

    @property
    def highest(self) -> float:
        """The budget where nothing waits."""
        return self._settings.max

    def waited(self, seconds: float, now: float) -> None:
        """How long the oldest input of a batch had to wait for it."""
        if seconds > self._settings.latency:
            self._last = (max(self._settings.min, self.at(now) - 2 * STEP), now)
