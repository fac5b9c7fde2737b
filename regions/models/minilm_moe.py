"""Serves a text encoder whose feed-forward layers were converted into experts, at a compute budget.

Shapes: T tokens, D width, H hidden features, E experts, F = H / E features of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy.typing as npt
import torch
from torch import Tensor

from regions.models.base import Batch, Item, Outcome
from regions.models.checkpoint import Checkpoint
from regions.models.depth import layer_shares
from regions.models.minilm import MiniLM, by_length, embed, text_metadata
from regions.moe.config import Fallback, MoEConfig
from regions.moe.guard import GuardedLayer
from regions.moe.layer import MoELayer, MoEOutput
from regions.moe.selection import pair_share
from regions.wire import wrong_datatype

SEED = 20_251
"""Chance, where the fallback `random` asks for it, starts here in each forward."""


class MiniLMMoE:
    """The encoder of `dense` at a share of its feed-forward FLOPs; at budget 1.0 it is the dense encoder itself."""

    name = "minilm-moe"
    takes: Literal["text", "tensor"] = "text"

    def __init__(
        self, dense: MiniLM, conversion: Checkpoint, default_budget: float = 0.5, fallback: Fallback = "dense"
    ) -> None:
        self._dense = dense
        self._default = default_budget
        self._emphases = conversion.emphases
        layers = range(dense.encoder.config.layers)
        self._encoder = dense.encoder.with_attention([conversion.block(layer) for layer in layers])
        self.layers = tuple(_experts(conversion, layer, fallback).to(dense.encoder.dtype) for layer in layers)
        # What skipped experts stand for: every token gets the sum, and a chosen expert takes its own part off again.
        self._bias = tuple(
            (conversion.pair(layer, "down")[1] + conversion.skipped(layer).sum(dim=0)).to(dense.encoder.dtype)
            for layer in layers
        )
        for layer in self.layers:
            layer.router.float()
            layer.experts.pack()
        self._guarded = tuple(GuardedLayer(layer) for layer in self.layers)

    @property
    def experts(self) -> int:
        """Experts of each layer."""
        return self.layers[0].config.experts

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
            everyone = (sum(tokens) * len(self.layers),) * self.experts
            outcomes = [Outcome(done.arrays, _details(budget, 1.0)) for done in batch.outcomes]
            return replace(batch, outcomes=outcomes, utilisation=everyone)
        order = by_length(items)
        run = _Run(self._guarded, self._bias, layer_shares(budget, self._emphases), [tokens[place] for place in order])
        arrays = embed(self._encoder, items, run)
        flops = run.flops()
        share = {place: count / dense_flops[place] for place, count in zip(order, flops, strict=True)}
        return Batch(
            [Outcome({"embedding": row}, _details(budget, share[place])) for place, row in enumerate(arrays)],
            flops=sum(flops),
            dense_flops=sum(dense_flops),
            utilisation=tuple(torch.stack([output.utilisation_E for output in run.outputs]).sum(dim=0).tolist()),
            buffers=self._encoder.buffers.counted(),
            unrouted=sum(int(output.routing.failed_T.sum()) for output in run.outputs),
        )


class _Run:
    """One forward's way through the layers, and what each of them executed."""

    def __init__(
        self, layers: Sequence[GuardedLayer], bias: Sequence[Tensor], shares: Sequence[float], lengths: Sequence[int]
    ) -> None:
        self._layers = layers
        self._bias = bias
        self._shares = shares
        self._lengths = lengths
        self._spent = 0.0
        self._generator = torch.Generator().manual_seed(SEED)
        self.outputs: list[MoEOutput] = []

    def __call__(self, layer: int, x_TD: Tensor) -> Tensor:
        guarded, budget = self._layers[layer], self._shares[layer]
        output = guarded(x_TD, budget, lengths=self._lengths, spent=self._spent, generator=self._generator)
        self._spent += pair_share(guarded.layer.config, budget)
        self.outputs.append(output)
        return output.y_TD.add_(self._bias[layer])

    def flops(self) -> list[int]:
        """Those of each text, in the order in which they lie."""
        flops_T = torch.stack([output.flops_T for output in self.outputs]).sum(dim=0)
        return [int(part.sum()) for part in torch.split(flops_T, list(self._lengths))]


def _details(budget: float, share: float) -> dict[str, float]:
    return {"compute_budget": budget, "flops_share": share}


def _experts(conversion: Checkpoint, layer: int, fallback: Fallback) -> MoELayer:
    """The converted layer, without the bias that all tokens get."""
    block = conversion.block(layer)
    (up_HD, up_bias_H), (down_DH, _) = block.up, block.down
    router_ED, router_bias_E = conversion.pair(layer, "router")
    hidden, width = up_HD.shape
    experts = len(router_ED)
    config = MoEConfig(
        width=width,
        hidden=hidden // experts,
        experts=experts,
        min_experts=0,
        max_experts=experts,
        scorer="norm",
        rule="sequence_budget",
        gate="unit",
        fallback=fallback,
    )
    moe = MoELayer(config).requires_grad_(requires_grad=False).eval()
    moe.router.weight_ED.copy_(router_ED)
    moe.router.bias_E.copy_(router_bias_E)
    moe.experts.up_EFD.copy_(up_HD.view(experts, -1, width))
    moe.experts.up_bias_EF.copy_(up_bias_H.view(experts, -1))
    moe.experts.down_EDF.copy_(down_DH.view(width, experts, -1).transpose(0, 1))
    moe.experts.down_bias_ED.copy_(-conversion.skipped(layer))
    return moe
