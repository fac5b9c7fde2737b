"""The BERT encoder in torch, over texts of any lengths packed end to end: no row is computed that is not a token.

Shapes: B texts, T tokens in all, D width (384), F width of the feed-forward layer (1536), H heads, C width of a head,
L length of one text, V vocabulary. Texts lie in the order of their lengths, so that equal ones form one block.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from regions.moe.experts import steady_linear

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
    """Texts end to end: `ids_T` and `positions_T`, and the length of each text, shortest first."""

    ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, texts: list[list[int]]) -> Self:
        """Packs texts that are sorted by length; none is empty."""
        lengths = tuple(len(text) for text in texts)
        return cls(
            ids_T=torch.tensor([token for text in texts for token in text]),
            positions_T=torch.cat([torch.arange(length) for length in lengths]),
            lengths=lengths,
        )

    def blocks(self) -> list[tuple[int, int, int]]:
        """(first token, number of texts, their length) of each run of texts of one length."""
        found, start = [], 0
        for length, run in groupby(self.lengths):
            count = len(list(run))
            found.append((start, count, length))
            start += count * length
        return found


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one layer; query, key and value are one matrix."""

    qkv: tuple[Tensor, Tensor]
    attended: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    output_norm: tuple[Tensor, Tensor]


class Encoder:
    """BERT (Devlin et al. 2019) without pooler, in fp32, for inference; a call gives the last hidden states."""

    def __init__(self, directory: Path) -> None:
        """Reads `config.json` and `model.safetensors`; raises ValueError or OSError where they do not fit."""
        self.config = EncoderConfig.read(directory / "config.json")
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
        self._words_VD = weights["embeddings.word_embeddings.weight"]
        # Every text is of type 0, so that row joins the positions once and for all.
        kind_D = weights["embeddings.token_type_embeddings.weight"][0]
        self._positions_LD = weights["embeddings.position_embeddings.weight"] + kind_D
        self._norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        self.blocks = tuple(_block(weights, layer) for layer in range(self.config.layers))

    def __call__(self, packed: Packed, feed_forward: FeedForward | None = None) -> Tensor:
        """hidden_TD of the last layer; `feed_forward` stands for the dense feed-forward layers where given."""
        feed_forward = feed_forward or self.dense
        x_TD = self._words_VD[packed.ids_T] + self._positions_LD[packed.positions_T]
        x_TD = self._normalise(x_TD, self._norm)
        for layer, block in enumerate(self.blocks):
            x_TD = self._normalise(x_TD + self._attend(block, x_TD, packed), block.attention_norm)
            x_TD = self._normalise(x_TD + feed_forward(layer, x_TD), block.output_norm)
        return x_TD

    def dense(self, layer: int, x_TD: Tensor) -> Tensor:
        """The dense feed-forward layer: GELU between two matrices."""
        block = self.blocks[layer]
        return steady_linear(functional.gelu(steady_linear(x_TD, *block.up)), *block.down)

    def _attend(self, block: Block, x_TD: Tensor, packed: Packed) -> Tensor:
        heads, width = self.config.heads, self.config.width
        qkv_T3HC = steady_linear(x_TD, *block.qkv).view(-1, 3, heads, width // heads)
        out_TD = torch.empty_like(x_TD)
        for start, count, length in packed.blocks():
            rows = slice(start, start + count * length)
            qkv_3BHLC = qkv_T3HC[rows].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            out_BHLC = functional.scaled_dot_product_attention(*qkv_3BHLC)
            out_TD[rows] = out_BHLC.transpose(1, 2).reshape(-1, width)
        return steady_linear(out_TD, *block.attended)

    def _normalise(self, x_TD: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(x_TD, (self.config.width,), *norm, self.config.epsilon)


def mean_pool(hidden_TD: Tensor, packed: Packed) -> Tensor:
    """embeddings_BD: the mean over each text's tokens, scaled to length 1 (Reimers & Gurevych 2019)."""
    means_BD = torch.cat(
        [
            hidden_TD[start : start + count * length].view(count, length, -1).mean(dim=1)
            for start, count, length in packed.blocks()
        ]
    )
    return functional.normalize(means_BD, dim=-1)


def _block(weights: dict[str, Tensor], layer: int) -> Block:
    prefix = f"encoder.layer.{layer}."

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
    return Block(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        attended=pair("attention.output.dense"),
        attention_norm=pair("attention.output.LayerNorm"),
        up=pair("intermediate.dense"),
        down=pair("output.dense"),
        output_norm=pair("output.LayerNorm"),
    )
