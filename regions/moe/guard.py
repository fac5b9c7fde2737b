"""A breaker around a layer's router: after some failures in a row nobody asks it for a while.

Where the router is not asked, or fails, the layer's fallback serves the tokens.
"""

import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regions.moe.layer import MoELayer, MoEOutput

FAILURES = 5
RECOVERY = 60.0
"""Seconds for which a router is not asked after FAILURES batches in a row with a token that it failed on."""


class Breaker:
    """Closed, it lets everything through; open, nothing; after `recovery` seconds one attempt decides.

    Threads may share it. `clock` gives seconds that never go back.
    """

    def __init__(
        self, failures: int = FAILURES, recovery: float = RECOVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures = failures
        self._recovery = recovery
        self._clock = clock
        self._in_a_row = 0
        self._opened = 0.0
        self._telling = threading.Lock()

    def allows(self) -> bool:
        """Whether to try."""
        return self._in_a_row < self._failures or self._clock() - self._opened >= self._recovery

    def tell(self, *, failed: bool) -> None:
        """What became of an attempt."""
        with self._telling:
            self._in_a_row = self._in_a_row + 1 if failed else 0
            if self._in_a_row >= self._failures:
                self._opened = self._clock()


class GuardedLayer:
    """A layer in serving: the breaker is its only state."""

    def __init__(self, layer: MoELayer, breaker: Breaker | None = None) -> None:
        self.layer = layer
        self.breaker = breaker or Breaker()

    def __call__(
        self,
        x_TD: Tensor,
        budget: float | None = None,
        *,
        lengths: Sequence[int] | None = None,
        spent: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> MoEOutput:
        """As the layer's own forward."""
        asked = self.breaker.allows()
        output: MoEOutput = self.layer(x_TD, budget, lengths=lengths, spent=spent, generator=generator, routed=asked)
        if asked:
            self.breaker.tell(failed=bool(output.routing.failed_T.any()))
        return output
