"""The BERT encoder in torch, over texts of any lengths packed end to end: no text is padded.

Shapes: B texts, T tokens in all, D width (384), F width of the feed-forward layer (1536), H heads, C width of a head,
L length of one text, V vocabulary. Texts lie in the order of their lengths, so that equal ones form one block.
"""

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from regions.models.attention import attention
from regions.models.buffers import Buffers
from regions.models.source import WEIGHTS
from regions.moe.linear import Linear, filled, packed_linear

FeedForward = Callable[[int, Tensor], Tensor]
"""Maps (layer, x_TD) to y_TD: the place where a dense layer and a mixture of experts can stand for each other."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes in `config.json` of a BERT checkpoint."""

    width: int
    hidden: int
    layers: int
    heads: int
    positions: int
    epsilon: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a `config.json`; raises ValueError for a model that is not a BERT with GELU."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") != "bert" or raw.get("hidden_act") != "gelu":
            raise ValueError(f"{path}: model_type must be bert and hidden_act gelu, to be served as minilm")
        return cls(
            width=raw["hidden_size"],
            hidden=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            positions=raw["max_position_embeddings"],
            epsilon=raw["layer_norm_eps"],
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts end to end: `ids_T` and `positions_T`, and the length of each text, shortest first.

    After the last text follow rows that belong to none, so that few different T come up (`linear.filled`).
    """

    ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, texts: list[list[int]]) -> Self:
        """Packs texts that are sorted by length; none is empty."""
        lengths = tuple(len(text) for text in texts)
        tokens = sum(lengths)
        none = [0] * (filled(tokens) - tokens)
        ids = [token for text in texts for token in text]
        positions = [place for length in lengths for place in range(length)]
        return cls(ids_T=torch.tensor(ids + none), positions_T=torch.tensor(positions + none), lengths=lengths)

    @property
    def tokens(self) -> int:
        """Rows that belong to texts: the first ones."""
        return sum(self.lengths)

    def blocks(self) -> list[tuple[int, int, int]]:
        """(first token, number of texts, their length) of each run of texts of one length."""
        found, start = [], 0
        for length, run in groupby(self.lengths):
            count = len(list(run))
            found.append((start, count, length))
            start += count * length
        return found


Pair = tuple[Tensor, Tensor]
"""The weight and the bias of a linear map or a normalisation."""


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one layer, in float32; query, key and value are one matrix."""

    qkv: Pair
    attended: Pair
    attention_norm: Pair
    up: Pair
    down: Pair
    output_norm: Pair


class Layer:
    """One layer without its feed-forward part, made ready to run in a data type."""

    def __init__(self, block: Block, heads: int, dtype: torch.dtype) -> None:
        # Attention divides queries by the root of a head's width: done once, here.
        width = len(block.qkv[1]) // 3
        scale_O = torch.ones(3 * width)
        scale_O[:width] = (width // heads) ** -0.5
        self.qkv = packed_linear(*_cast((block.qkv[0] * scale_O[:, None], block.qkv[1] * scale_O), dtype))
        self.attended = packed_linear(*_cast(block.attended, dtype))
        self.attention_norm = _cast(block.attention_norm, dtype)
        self.output_norm = _cast(block.output_norm, dtype)


class Encoder:
    """BERT (Devlin et al. 2019) without pooler, for inference; a call gives the last hidden states."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Reads `config.json` and `model.safetensors`; raises ValueError or OSError where they do not fit."""
        self.config = EncoderConfig.read(directory / "config.json")
        self.dtype = dtype
        self.buffers = Buffers()
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            self._words_VD = file.get_tensor("embeddings.word_embeddings.weight").to(dtype)
            # Every text is of type 0, so that row joins the positions once and for all.
            kind_D = file.get_tensor("embeddings.token_type_embeddings.weight")[0].float()
            positions_LD = file.get_tensor("embeddings.position_embeddings.weight").float() + kind_D
            norm = [file.get_tensor(f"embeddings.LayerNorm.{name}").to(dtype) for name in ("weight", "bias")]
        self._positions_LD = positions_LD.to(dtype)
        self._norm = (norm[0], norm[1])
        blocks = read_blocks(directory)
        self._layers = tuple(Layer(block, self.config.heads, dtype) for block in blocks)
        self._dense = tuple(dense_linears(block.up, block.down, dtype) for block in blocks)

    def with_attention(self, blocks: Sequence[Block]) -> Self:
        """The encoder with attention and normalisations of other blocks; all else is shared, not copied."""
        other = copy(self)
        other._layers = tuple(Layer(block, self.config.heads, self.dtype) for block in blocks)  # noqa: SLF001 - its own class
        return other

    def __call__(self, packed: Packed, feed_forward: FeedForward | None = None) -> Tensor:
        """hidden_TD of the last layer; `feed_forward` stands for the dense feed-forward layers where given.

        It gets the rows of the texts alone, and what it gives is written over.
        """
        x_TD = self.embed(packed.ids_T, packed.positions_T)
        for number, layer in enumerate(self._layers):
            x_TD = self._normalise(self._attend(layer, x_TD, packed).add_(x_TD), layer.attention_norm)
            y_TD = self.dense(number, x_TD) if feed_forward is None else _on_texts(feed_forward, number, x_TD, packed)
            x_TD = self._normalise(y_TD.add_(x_TD), layer.output_norm)
        return x_TD[: packed.tokens]

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The tokens, of any shape, as they enter the first layer; one more dimension holds their features."""
        return self._normalise(self._words_VD[ids] + self._positions_LD[positions], self._norm)

    def dense(self, layer: int, x_TD: Tensor) -> Tensor:
        """The dense feed-forward layer: GELU between two matrices."""
        up, down = self._dense[layer]
        return down(up(x_TD))

    def _attend(self, layer: Layer, x_TD: Tensor, packed: Packed) -> Tensor:
        qkv_TD3 = layer.qkv(x_TD)
        with self.buffers.lend(x_TD.shape, x_TD.dtype) as out_TD:
            for texts in packed.blocks():
                attention(qkv_TD3, out_TD, texts, self.config.heads, self.buffers)
            out_TD[packed.tokens :].zero_()
            return layer.attended(out_TD)

    def _normalise(self, x_TD: Tensor, norm: Pair) -> Tensor:
        return functional.layer_norm(x_TD, (self.config.width,), *norm, self.config.epsilon)


def dense_linears(up: Pair, down: Pair, dtype: torch.dtype) -> tuple[Linear, Linear]:
    """The two maps of a dense feed-forward layer, the first with its GELU."""
    return packed_linear(*_cast(up, dtype), gelu=True), packed_linear(*_cast(down, dtype))


def _cast(pair: Pair, dtype: torch.dtype) -> Pair:
    return pair[0].to(dtype), pair[1].to(dtype)


def _on_texts(feed_forward: FeedForward, layer: int, x_TD: Tensor, packed: Packed) -> Tensor:
    y_TD = feed_forward(layer, x_TD[: packed.tokens])
    none = len(x_TD) - packed.tokens
    return functional.pad(y_TD, (0, 0, 0, none)) if none else y_TD


def mean_pool(hidden_TD: Tensor, packed: Packed) -> Tensor:
    """embeddings_BD: the mean over each text's tokens, scaled to length 1 (Reimers & Gurevych 2019)."""
    means_BD = torch.cat(
        [
            hidden_TD[start : start + count * length].view(count, length, -1).float().mean(dim=1)
            for start, count, length in packed.blocks()
        ]
    )
    return functional.normalize(means_BD, dim=-1)


def read_blocks(directory: Path) -> tuple[Block, ...]:
    """The blocks of a checkpoint; raises ValueError or OSError where they do not fit."""
    config = EncoderConfig.read(directory / "config.json")
    with safe_open(directory / WEIGHTS, framework="pt") as file:

        def pair(name: str) -> Pair:
            return file.get_tensor(f"{name}.weight").float(), file.get_tensor(f"{name}.bias").float()

        return tuple(_block(pair, f"encoder.layer.{layer}") for layer in range(config.layers))


def _block(pair: Callable[[str], Pair], prefix: str) -> Block:
    parts = [pair(f"{prefix}.attention.self.{name}") for name in ("query", "key", "value")]
    return Block(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        attended=pair(f"{prefix}.attention.output.dense"),
        attention_norm=pair(f"{prefix}.attention.output.LayerNorm"),
        up=pair(f"{prefix}.intermediate.dense"),
        down=pair(f"{prefix}.output.dense"),
        output_norm=pair(f"{prefix}.output.LayerNorm"),
    )
