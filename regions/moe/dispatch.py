"""Which tokens go to which expert: the choice sorted by expert.

Shapes: T tokens, E experts, N (token, expert) pairs sorted by expert and then by token.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Which token goes where: pair n takes token `tokens_N[n]` to `experts_N[n]`; `counts[e]` pairs go to expert e."""

    tokens_N: Tensor
    experts_N: Tensor
    counts: list[int]

    @classmethod
    def by_expert(cls, chosen_TE: Tensor) -> Self:
        """From the mask of chosen experts. `nonzero` goes row by row, so of the transposed mask it is the sort."""
        experts_N, tokens_N = chosen_TE.T.nonzero(as_tuple=True)
        return cls(tokens_N=tokens_N, experts_N=experts_N, counts=chosen_TE.sum(dim=0).tolist())
