"""Serves all-MiniLM-L6-v2: text in, a mean-pooled embedding of length 1 out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch

from regions.models.base import Batch, Item, Outcome
from regions.models.encoder import Encoder, FeedForward, Packed, mean_pool
from regions.models.tokens import TextTokens
from regions.moe.flops import feed_forward_flops
from regions.wire import wrong_datatype

PLATFORM = "tidegate_torch"
"""What runs the models, in their KServe metadata."""


class MiniLM:
    """The dense encoder. Its embeddings do not depend on what else is in the batch."""

    name = "minilm"
    takes: Literal["text", "tensor"] = "text"

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Reads weights and tokenizer; raises ValueError or OSError where they are not those of a BERT encoder."""
        self.encoder = Encoder(directory, dtype)
        self.tokens = TextTokens(directory)

    def metadata(self) -> Mapping[str, Any]:
        """KServe v2 model metadata."""
        return text_metadata(self.name, self.encoder.config.width)

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:  # noqa: ARG002 - a dense model spends what it must
        """Tokenises one text; all items of this model share a group."""
        ids, truncated = self.tokens.encode(text, param=param, truncate=truncate)
        return Item(payload=ids, cost=len(ids), group=self.name, truncated=truncated)

    def prepare_tensor(self, values: npt.NDArray[Any], *, name: str, budget: float | None) -> Item:  # noqa: ARG002 - the protocol's
        """Raises InvalidInput: this model takes text."""
        raise wrong_datatype(name, values.dtype.name.upper(), "BYTES")

    def forward(self, items: Sequence[Item]) -> Batch:
        """Embeds the items' texts."""
        arrays = embed(self.encoder, items)
        flops = self.dense_flops(sum(item.cost for item in items))
        return Batch(
            [Outcome({"embedding": array}, {}) for array in arrays],
            flops=flops,
            dense_flops=flops,
            buffers=self.encoder.buffers.counted(),
        )

    def dense_flops(self, tokens: int) -> int:
        """FLOPs of all feed-forward layers for so many tokens."""
        config = self.encoder.config
        return config.layers * feed_forward_flops(tokens, config.width, config.hidden)


def by_length(items: Sequence[Item]) -> list[int]:
    """The places of the items, shortest text first: the order in which `embed` packs them."""
    return sorted(range(len(items)), key=lambda place: items[place].cost)


@torch.inference_mode()
def embed(encoder: Encoder, items: Sequence[Item], feed_forward: FeedForward | None = None) -> list[npt.NDArray[Any]]:
    """One embedding [width] in FP32 for each item, in the order of the items."""
    order = by_length(items)
    packed = Packed.of([items[place].payload for place in order])
    rows_BD = mean_pool(encoder(packed, feed_forward), packed)
    back = sorted(range(len(order)), key=order.__getitem__)
    return list(rows_BD[back].numpy())


def text_metadata(name: str, width: int) -> Mapping[str, Any]:
    """KServe v2 metadata of a text encoder."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": PLATFORM,
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, width]}],
    }
