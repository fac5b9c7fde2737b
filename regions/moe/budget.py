"""Holds a layer to a share of FLOPs where its rule has no budget of its own, but a level that says how many experts."""

import math
from typing import Protocol

PROPORTIONAL = 1.0
INTEGRAL = 2.0
"""How far the log-odds of the level move for a share that is off by one: with its last change, and with its size.

Real routers answer a step of one in log-odds with a change of the share of 0.1 to 0.4: the sum of both gains times that
stays under 2, beyond which the level would swing.
"""

FARTHEST = 12.0
"""Log-odds between which a level stays: where no level gives the share, it must not take for ever to come back."""


class Steered(Protocol):
    """What a controller steers. `falling` tells that a higher level means fewer experts."""

    falling: bool

    def steer(self, level: float) -> None:
        """Takes the level, between 0 and 1, for what it decides from now on."""
        ...

    def steered(self) -> float:
        """The level in force."""
        ...


class BudgetController:
    """A PI controller of the level (DTop-p, Jin et al. 2025): `observe` the share after each forward.

    It moves the log-odds, so that a level near 1, where small steps decide, is reached as surely as one in the middle.
    It belongs to training and calibration: the level that it found stays with the router, and serves from there.
    """

    def __init__(
        self, target: Steered, share: float, *, proportional: float = PROPORTIONAL, integral: float = INTEGRAL
    ) -> None:
        """Raises ValueError unless `share` is over 0 and up to 1."""
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; a share over 0 and up to 1 is needed")
        self.share = share
        self._target = target
        self._proportional = proportional
        self._integral = integral
        self._before = 0.0

    def observe(self, executed: float) -> float:
        """Moves the level by what share of the FLOPs of all experts was executed, router included; gives the level."""
        error = executed - self.share if self._target.falling else self.share - executed
        level = self._target.steered()
        odds = math.log(level / (1 - level)) + self._integral * error + self._proportional * (error - self._before)
        self._before = error
        level = 1 / (1 + math.exp(-min(max(odds, -FARTHEST), FARTHEST)))
        self._target.steer(level)
        return level
