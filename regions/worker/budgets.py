"""The compute budget of a request: what the caller asks for, what is configured, or what the load allows."""

import time
from dataclasses import dataclass
from typing import Any

from regions.engine.budget import AutoBudget
from regions.models.base import ServedModel
from regions.settings import WorkerSettings
from regions.wire import wrong_type, wrong_value

AUTO = "auto"
_BOUNDS = (0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """The share of FLOPs that a request pays for, None for the model's own; `auto` where the worker chose it.

    `lowered` where it chose less than it does without load: such an answer is for this moment only.
    """

    value: float | None = None
    auto: bool = False
    lowered: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What an answer says to caches."""
        return {"cache-control": "no-store"} if self.lowered else {}

    @property
    def details(self) -> dict[str, bool]:
        """What an answer says beside its figures."""
        return {"auto": True} if self.auto else {}


class Budgets:
    """Reads the budgets of requests; told of the waits of batches, it lowers and raises what `auto` means."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._auto = AutoBudget(settings.auto_budget, time.monotonic())
        self._usual = settings.compute_budget

    def read(self, value: Any, param: str, model: ServedModel) -> Budget:
        """The budget of a request to `model`. Raises InvalidInput."""
        if value == AUTO or (value is None and self._usual == AUTO and model.takes == "text"):
            budget = self._auto.at(time.monotonic())
            return Budget(budget, auto=True, lowered=budget < self._auto.highest)
        if value is None:
            return Budget()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(param, "number")
        low, high = _BOUNDS
        if not low <= value <= high:
            raise wrong_value(param, f"{low}..{high}")
        return Budget(float(value))

    def waited(self, seconds: float) -> None:
        """How long the oldest input of a batch waited for it."""
        self._auto.waited(seconds, time.monotonic())
