"""Training batches: token ids of texts of one length, so that no row is padding.

Shapes: B texts, L tokens of each.
"""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

TOKENS = 2048
"""Tokens of a batch, at most; one text may have an eighth of them."""
_LENGTHS = np.array(
    [*range(4, 17), 18, 20, 22, 24, 27, 30, 33, 36, 40, 45, 50, 56, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256]
)
"""Texts are cut to the next of these below their own length."""


class Batches:
    """Endless batches of encoded texts, in another order each epoch; the same seed gives the same ones."""

    def __init__(self, encoded: Sequence[Sequence[int]], seed: int) -> None:
        """`encoded` holds the ids of each text with both end marks; raises ValueError where too few fill a batch."""
        self._texts = [np.asarray(ids) for ids in encoded if len(ids) >= _LENGTHS[0]]
        self._bucket = np.searchsorted(_LENGTHS, [len(ids) for ids in self._texts], side="right") - 1
        self._seed = seed
        if not self._epoch(0):
            raise ValueError("too few texts to train on; name files with more by --text")

    def after(self, batches: int) -> Iterator[Tensor]:
        """ids_BL of each batch, from the one that follows `batches` earlier ones."""
        for epoch in count():
            plan = self._epoch(epoch)
            if batches >= len(plan):
                batches -= len(plan)
                continue
            for length, texts in plan[batches:]:
                yield self._cut(length, texts)
            batches = 0

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        draw = np.random.default_rng([self._seed, epoch])
        plan = []
        for bucket, length in enumerate(_LENGTHS):
            texts = draw.permutation(np.flatnonzero(self._bucket == bucket))
            size = TOKENS // length
            plan += [(int(length), texts[at : at + size]) for at in range(0, len(texts) - size + 1, size)]
        return [plan[place] for place in draw.permutation(len(plan))]

    def _cut(self, length: int, texts: np.ndarray) -> Tensor:
        rows = [self._texts[text] for text in texts]
        ids_BL = np.stack([row[:length] for row in rows])
        ids_BL[:, -1] = [row[-1] for row in rows]
        return torch.from_numpy(ids_BL).long()
