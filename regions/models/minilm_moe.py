"""Serves the MiniLM encoder with its feed-forward layers split into experts, at a compute budget.

Shapes: T tokens, D width, E experts.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal, cast

import numpy.typing as npt
import torch
from torch import Tensor

from regions.models.base import Batch, Item, Outcome
from regions.models.convert import DenseLayer, SplitLayer, split
from regions.models.encoder import Packed
from regions.models.minilm import MiniLM, by_length, embed, text_metadata
from regions.moe.config import Fallback
from regions.moe.layer import MoEOutput
from regions.wire import wrong_datatype

EXPERTS = 16
SEED = 20_251
"""Chance, where the fallback `random` asks for it, starts here in each forward."""


class MiniLMMoE:
    """The encoder of `dense` at a share of its feed-forward FLOPs; at budget 1.0 it is the dense encoder itself.

    The split is learnt at construction from the calibration text of this package, which takes seconds and gives the
    same experts each time.
    """

    name = "minilm-moe"
    takes: Literal["text", "tensor"] = "text"

    def __init__(self, dense: MiniLM, default_budget: float, fallback: Fallback) -> None:
        self._dense = dense
        self._default = default_budget
        self.layers = tuple(
            split(DenseLayer(*block.up, *block.down, block.output_norm[0]), x_TD, EXPERTS, fallback)
            for block, x_TD in zip(dense.encoder.blocks, calibration_inputs(dense), strict=True)
        )

    def metadata(self) -> Mapping[str, Any]:
        """KServe v2 model metadata."""
        return text_metadata(self.name, self._dense.encoder.config.width)

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:
        """Tokenises one text; items of one budget, a number from 0.1 to 1.0, share a group."""
        ids, truncated = self._dense.tokens.encode(text, param=param, truncate=truncate)
        return Item(
            payload=ids, cost=len(ids), group=self._default if budget is None else float(budget), truncated=truncated
        )

    def prepare_tensor(self, values: npt.NDArray[Any], *, name: str, budget: float | None) -> Item:  # noqa: ARG002 - the protocol's
        """Raises InvalidInput: this model takes text."""
        raise wrong_datatype(name, values.dtype.name.upper(), "BYTES")

    def forward(self, items: Sequence[Item]) -> Batch:
        """Embeds the items' texts; `flops_share` of each is counted from what its own tokens executed."""
        budget = cast("float", items[0].group)
        tokens = [item.cost for item in items]
        dense_flops = [self._dense.dense_flops(count) for count in tokens]
        if budget >= 1.0:
            batch = self._dense.forward(items)
            everyone = (sum(tokens) * len(self.layers),) * EXPERTS
            outcomes = [Outcome(done.arrays, _details(budget, 1.0)) for done in batch.outcomes]
            return Batch(outcomes, batch.flops, batch.dense_flops, everyone)
        run = _Run(self.layers, budget)
        arrays = embed(self._dense.encoder, items, run)
        order = by_length(items)
        flops = _sums(run.outputs, [tokens[place] for place in order])
        share = {place: count / dense_flops[place] for place, count in zip(order, flops, strict=True)}
        return Batch(
            [Outcome({"embedding": row}, _details(budget, share[place])) for place, row in enumerate(arrays)],
            flops=sum(flops),
            dense_flops=sum(dense_flops),
            utilisation=tuple(torch.stack([output.utilisation_E for output in run.outputs]).sum(dim=0).tolist()),
        )


class _Run:
    """One forward's way through the split layers, and what each of them executed."""

    def __init__(self, layers: tuple[SplitLayer, ...], budget: float) -> None:
        self._layers = layers
        self._budget = budget
        self._generator = torch.Generator().manual_seed(SEED)
        self.outputs: list[MoEOutput] = []

    def __call__(self, layer: int, x_TD: Tensor) -> Tensor:
        part = self._layers[layer]
        output: MoEOutput = part.layer(
            x_TD, self._budget, skipped_ED=part.skipped(self._budget), generator=self._generator
        )
        self.outputs.append(output)
        return output.y_TD + part.bias_D


def _details(budget: float, share: float) -> dict[str, float]:
    return {"compute_budget": budget, "flops_share": share}


def _sums(outputs: list[MoEOutput], tokens: list[int]) -> list[int]:
    flops_T = torch.stack([output.flops_T for output in outputs]).sum(dim=0)
    return [int(part.sum()) for part in torch.split(flops_T, tokens)]


@torch.inference_mode()
def calibration_inputs(dense: MiniLM) -> list[Tensor]:
    """x_TD of each feed-forward layer on the package's calibration text, a text a line."""
    text = resources.files("regions.models").joinpath("calibration.txt").read_text(encoding="utf-8")
    encoded = [dense.tokens.encode(line, param="calibration", truncate=True)[0] for line in text.splitlines()]
    seen: list[Tensor] = []

    def watch(layer: int, x_TD: Tensor) -> Tensor:
        seen.append(x_TD)
        return dense.encoder.dense(layer, x_TD)

    dense.encoder(Packed.of(sorted(encoded, key=len)), watch)
    return seen
