"""Takes tokens to their experts and brings the results back: sort by expert, then a weighted sum for each token.

Shapes: T tokens, E experts, D width, N (token, expert) pairs sorted by expert and then by token.
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

    def gather(self, x_TD: Tensor) -> Tensor:
        """x_ND: each token once for each of its experts."""
        return x_TD[self.tokens_N]

    def combine(self, y_ND: Tensor, weights_TE: Tensor) -> Tensor:
        """y_TD: for each token the sum of its experts' results, each times its weight."""
        weights_N = weights_TE[self.tokens_N, self.experts_N]
        empty_TD = y_ND.new_zeros(weights_TE.shape[0], y_ND.shape[1])
        return empty_TD.index_add(0, self.tokens_N, y_ND * weights_N[:, None])
