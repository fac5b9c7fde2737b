"""Takes tokens to their experts and brings the results back: the choice sorted by expert, and a sum for each token.

Shapes: T tokens, E experts, D width, N (token, expert) pairs in the order of tokens, P rows that experts run on.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regions.moe.linear import filled


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Which token goes where: row p is token `tokens_P[p]`, and the first `counts[e]` rows are those of expert 0, etc.

    `rows_N` is the row of each pair, those of the first token first; `starts_T` is where each token's pairs begin.
    Rows that no pair names fill an expert up.
    """

    tokens_P: Tensor
    counts: list[int]
    rows_N: Tensor
    starts_T: Tensor

    @classmethod
    def by_expert(cls, chosen_TE: Tensor) -> Self:
        """From the mask of chosen experts. In numpy, whose calls cost less than torch's for so few numbers."""
        mask_TE = chosen_TE.numpy()
        tokens, experts = mask_TE.shape
        pairs_N = np.flatnonzero(mask_TE)
        tokens_N = (pairs_N // experts).astype(np.int32)
        ranks_TE = np.cumsum(mask_TE, axis=0, dtype=np.int32)
        counts = [filled(count) for count in ranks_TE[-1].tolist()] if tokens else [0] * experts
        before_E = np.cumsum([-1, *counts[:-1]], dtype=np.int32)
        rows_N = (ranks_TE + before_E).ravel()[pairs_N]
        tokens_P = np.zeros(sum(counts), dtype=np.int32)
        tokens_P[rows_N] = tokens_N
        starts_T = np.searchsorted(tokens_N, np.arange(tokens, dtype=np.int32)).astype(np.int32)
        return cls(torch.from_numpy(tokens_P), counts, torch.from_numpy(rows_N), torch.from_numpy(starts_T))

    def combine(self, y_PD: Tensor, weights_N: Tensor | None) -> Tensor:
        """y_TD: for each token the sum of its experts' results, in the order of the experts, weighed where told.

        As a bag of rows it is summed in float32 without a copy, in a tenth of the time of adding expert after expert.
        """
        if not len(self.rows_N):
            return y_PD.new_zeros(len(self.starts_T), y_PD.shape[1])
        weights_N = None if weights_N is None else weights_N.to(y_PD)
        return functional.embedding_bag(self.rows_N, y_PD, self.starts_T, mode="sum", per_sample_weights=weights_N)
