"""Scratch memory that forwards reuse: fresh pages cost a forward more than the arithmetic that fills them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from threading import local

import torch
from torch import Tensor

LIMIT = 1000
"""Buffers that a thread keeps, of all sizes and types together."""


class Buffers(local):
    """A pool of buffers by type and size, sizes rounded up to powers of two. Each thread has a pool of its own."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._free: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        self._kept = 0
        self._reused = 0
        self._allocated = 0

    def counted(self) -> tuple[int, int]:
        """(buffers lent that had been used before, buffers allocated) since the last call."""
        counts = self._reused, self._allocated
        self._reused = self._allocated = 0
        return counts

    @contextmanager
    def lend(self, shape: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
        """A tensor of any content, to be used within the context only."""
        size = prod(shape)
        key = (dtype, 1 << max(0, size - 1).bit_length())
        free = self._free.setdefault(key, [])
        if free:
            buffer = free.pop()
            self._kept -= 1
            self._reused += 1
        else:
            with torch.inference_mode(mode=False):  # what is made in inference mode can be used nowhere else
                buffer = torch.empty(key[1], dtype=dtype)
            self._allocated += 1
        try:
            yield buffer[:size].view(*shape)
        finally:
            if self._kept < self._limit:
                free.append(buffer)
                self._kept += 1
