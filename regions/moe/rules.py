"""How many experts a token gets, and which: the rules that turn scores into a choice. All are pure.

Each decides a token by itself or, `SequenceBudget`, by its own text, never by what else is in the batch.

Shapes: T tokens in texts that lie end to end, E experts, L tokens of one text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Complexity = Callable[[], Tensor]
"""Gives complexity_T, in [0, 1]: a rule that asks for it pays for it."""


class Rule(Protocol):
    """Decides from finite scores."""

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:
        """chosen_TE, a mask; `lengths` are those of the texts, T in sum."""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """The same number of experts for every token (Shazeer et al. 2017)."""

    count: int

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002 - the protocol's
        return places(scores_TE) < self.count


@dataclass(frozen=True, slots=True)
class TopP:
    """The fewest experts whose probabilities together reach `mass` (Huang et al. 2024), within bounds."""

    mass: float
    lowest: int
    highest: int

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002 - the protocol's
        falling_TE = scores_TE.softmax(dim=1).sort(dim=1, descending=True, stable=True).values
        before_TE = falling_TE.cumsum(dim=1) - falling_TE
        return _best(scores_TE, (before_TE < self.mass).sum(dim=1), self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class RelativeThreshold:
    """Experts that contribute at least `ratio` of what the largest does (Szatkowski et al. 2024), within bounds.

    Scores are logarithms: of contributions from a norm-regressing router, of probabilities from a linear one.
    """

    ratio: float
    lowest: int
    highest: int

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002 - the protocol's
        near_TE = scores_TE >= scores_TE.amax(dim=1, keepdim=True) + math.log(self.ratio)
        return _best(scores_TE, near_TE.sum(dim=1), self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class ComplexityK:
    """More experts the more complex the token: from `middle - reach` at complexity 0 to `middle + reach` at 1.

    Rounding a band whose width is whole is unbiased: where complexities are spread evenly, the mean is `middle`.
    """

    middle: float
    reach: float
    lowest: int
    highest: int

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002 - the protocol's
        count_T = (self.middle + self.reach * (2 * complexity() - 1)).round().long()
        return _best(scores_TE, count_T, self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class SequenceBudget:
    """The (token, expert) pairs that score highest in each text, as many as `share` of all pairs, rounded down.

    A text gets what it pays for to one pair, however its tokens share it; no token gets less than `lowest` or more than
    `highest`, which may move the sum where they bind. `spent` is what earlier layers had of the same text, their shares
    in sum: what is rounded off in one is given in the next, so that a model keeps to its budget in short texts too.
    """

    share: float
    lowest: int
    highest: int
    spent: float = 0.0

    def pairs(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of each text's pairs, at least one."""
        before, after = (self.spent * sizes).astype(np.int64), ((self.spent + self.share) * sizes).astype(np.int64)
        pairs: npt.NDArray[np.int64] = np.clip(after - before, 1, sizes)
        return pairs

    def choose(self, scores_TE: Tensor, complexity: Complexity, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002 - the protocol's
        mask_TE = torch.from_numpy(_highest(scores_TE.detach().float().numpy(), self, lengths))
        if self.lowest == 0 and self.highest >= scores_TE.shape[1]:
            return mask_TE
        return _best(scores_TE, mask_TE.sum(dim=1), self.lowest, self.highest)


def _highest(values_TE: npt.NDArray[np.float32], rule: SequenceBudget, lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Marks the highest of each text's values; of equal ones the first, wherever the text stands.

    Only the least value that is taken is looked for text by text, as most of the time goes into calls, not numbers.
    """
    values_P, experts = np.ascontiguousarray(values_TE).ravel(), values_TE.shape[1]
    sizes = np.array([length * experts for length in lengths if length], dtype=np.int64)
    if not len(sizes):
        return np.zeros(values_TE.shape, dtype=np.bool_)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    pairs = rule.pairs(sizes)
    least = [
        np.partition(values_P[start:end], end - start - taken)[end - start - taken]
        for start, end, taken in zip(starts.tolist(), ends.tolist(), pairs.tolist(), strict=True)
    ]
    least_P = np.repeat(np.array(least, dtype=np.float32), sizes)
    chosen_P, equal_P = values_P > least_P, values_P == least_P
    missing = pairs - np.add.reduceat(chosen_P, starts, dtype=np.int64)
    passed_P = np.cumsum(equal_P)
    before = passed_P[starts] - equal_P[starts]
    chosen_P |= equal_P & (passed_P <= np.repeat(before + missing, sizes))
    chosen_TE: npt.NDArray[np.bool_] = chosen_P.reshape(values_TE.shape)
    return chosen_TE


def places(scores_TE: Tensor) -> Tensor:
    """place_TE of each expert among those of its token, 0 for the highest score; equal ones in order of the experts."""
    return scores_TE.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _best(scores_TE: Tensor, count_T: Tensor, lowest: int, highest: int) -> Tensor:
    """Marks the highest scores of each token, `count_T` of them within the bounds."""
    return places(scores_TE) < count_T.clamp(lowest, highest)[:, None]
