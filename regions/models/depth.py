"""How a compute budget is spread over the layers of an encoder: they differ in what they lose by it.

Pure, and one function for training and serving, so that a checkpoint runs as it was trained.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

Budget = TypeVar("Budget", float, Tensor)
"""One budget, or one of each text."""

LEAD = 0.25
"""What the layer that loses most gets above the budget where it is a half; the others pay for it in equal parts."""


def emphasis(losses: Sequence[float]) -> list[float]:
    """The emphasis of each layer, 0 in sum, from what pruning it alone costs."""
    neediest = max(range(len(losses)), key=losses.__getitem__)
    if len(losses) == 1:
        return [0.0]
    return [LEAD if layer == neediest else -LEAD / (len(losses) - 1) for layer in range(len(losses))]


def layer_shares(budget: Budget, emphases: Sequence[float]) -> list[Budget]:
    """The share of each layer, from 0 to 1, at a budget from 0 to 1; their mean is the budget.

    A layer departs from the budget by four times its emphasis times b (1 - b): by all of it at a half, not at all where
    nothing or everything runs.
    """
    return [budget + 4 * budget * (1 - budget) * emphasis for emphasis in emphases]
