"""Serves one mixture-of-experts layer: FP32 tokens in, hidden states out, with the routing that was executed.

Shapes: N tokens of one item, W width, K experts of a token at most.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from cachetools import LRUCache

from regions.models.base import Batch, Item, Outcome
from regions.models.minilm import PLATFORM
from regions.moe.config import Fallback, MoEConfig
from regions.moe.guard import GuardedLayer
from regions.moe.layer import MoELayer
from regions.wire import refusal, wrong_datatype, wrong_shape

SEED = 20_251
"""The weights are drawn from this seed, so that every worker of every region serves the same function."""

CACHE_BYTES = 256 * 2**20
"""What answers that are kept may take together. Each counts as at least its share, so that their number is bounded."""


class DynamicMoE:
    """A layer of the profile's size with seeded weights.

    Answers are kept for tensors that come again from the same owner, unless the fallback gave them:
    `config.cache_entries` of them at most.
    """

    name = "dynamic-moe"
    takes: Literal["text", "tensor"] = "tensor"

    def __init__(self, config: MoEConfig) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(SEED)
        self.layer = MoELayer(config, generator).eval().requires_grad_(requires_grad=False)
        self._guarded = GuardedLayer(self.layer)
        self._least = CACHE_BYTES // max(config.cache_entries, 1)
        self._answers: LRUCache[bytes, Outcome] = LRUCache(CACHE_BYTES if config.cache_entries else 0, self._weight)
        self._lock = threading.Lock()  # forwards of several batches run at once, and the cache is theirs together

    def _weight(self, outcome: Outcome) -> int:
        return max(self._least, sum(array.nbytes for array in outcome.arrays.values()))

    def metadata(self) -> Mapping[str, Any]:
        """KServe v2 model metadata."""
        width = self.config.width
        return {
            "name": self.name,
            "versions": ["1"],
            "platform": PLATFORM,
            "inputs": [{"name": "hidden_states", "datatype": "FP32", "shape": [-1, width]}],
            "outputs": [
                {"name": "hidden_states", "datatype": "FP32", "shape": [-1, width]},
                {"name": "experts", "datatype": "INT64", "shape": [-1, -1]},
                {"name": "weights", "datatype": "FP32", "shape": [-1, -1]},
                {"name": "complexity", "datatype": "FP32", "shape": [-1]},
                {"name": "flops", "datatype": "INT64", "shape": [-1]},
            ],
        }

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:  # noqa: ARG002 - the protocol's
        """Raises InvalidInput: this model takes a tensor."""
        raise wrong_datatype(param, "BYTES", "FP32")

    def prepare_tensor(self, values: npt.NDArray[Any], *, name: str, budget: float | None) -> Item:
        """Checks float32 [n, width], n at least 1, finite; items of one budget share a group."""
        width = self.config.width
        if values.dtype != np.float32:
            raise wrong_datatype(name, _datatype(values), "FP32")
        if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] != width:  # noqa: PLR2004 - rows and columns
            raise wrong_shape(name, values.shape, f"[n, {width}]")
        if not np.isfinite(values).all():
            raise refusal("The tensor {name} holds NaN or infinity", "tensor_not_finite", name=name)
        return Item(payload=values, cost=len(values), group=budget)

    def forward(self, items: Sequence[Item]) -> Batch:
        """Runs the tokens of all items that it has no answer for as one batch; each token is routed by itself."""
        keys = [_key(item) for item in items]
        with self._lock:
            found = {key: self._answers[key] for key in keys if key in self._answers}
        fresh = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        batch = self._compute(list(fresh.values())) if fresh else Batch([], 0, 0)
        made = dict(zip(fresh, batch.outcomes, strict=True))
        if not batch.unrouted:
            with self._lock:
                for key, outcome in made.items():
                    self._keep(key, outcome)
        return replace(batch, outcomes=[(found | made)[key] for key in keys])

    def _keep(self, key: bytes, outcome: Outcome) -> None:
        if self._weight(outcome) <= self._answers.maxsize:
            self._answers[key] = outcome

    @torch.inference_mode()
    def _compute(self, items: Sequence[Item]) -> Batch:
        x_TW = torch.from_numpy(np.concatenate([item.payload for item in items]))
        budget = cast("float | None", items[0].group)
        output = self._guarded(x_TW, budget, generator=torch.Generator().manual_seed(SEED))
        routing = output.routing
        # A token whose router failed may have every expert; the columns are those of the item's own busiest token.
        experts_TE, weights_TE = routing.ranked(self.config.experts)
        sizes = [item.cost for item in items]
        columns = [
            max(self.config.max_experts, int(part.sum(dim=1).max())) for part in torch.split(routing.chosen_TE, sizes)
        ]
        parts = zip(
            torch.split(output.y_TD, sizes),
            [part[:, :k] for part, k in zip(torch.split(experts_TE, sizes), columns, strict=True)],
            [part[:, :k] for part, k in zip(torch.split(weights_TE, sizes), columns, strict=True)],
            torch.split(routing.complexity_T, sizes),
            torch.split(output.flops_T, sizes),
            strict=True,
        )
        names = [output["name"] for output in self.metadata()["outputs"]]
        # Copies, so that an answer which is kept does not hold the whole batch.
        outcomes = [
            Outcome({name: part.numpy().copy() for name, part in zip(names, item, strict=True)}, {}) for item in parts
        ]
        return Batch(
            outcomes,
            flops=int(output.flops_T.sum()),
            dense_flops=output.dense_flops,
            utilisation=tuple(output.utilisation_E.tolist()),
            unrouted=int(routing.failed_T.sum()),
        )


def _key(item: Item) -> bytes:
    """Of the tokens and the budget, which the layer is a function of, and of whose they are."""
    whose = repr((item.group, item.owner)).encode()
    return hashlib.blake2b(item.payload.tobytes() + whose, digest_size=32).digest()


def config_for(profile: Literal["inference", "training"], fallback: Fallback) -> MoEConfig:
    """The profile's layer, with the fallback that a worker's settings name."""
    base = MoEConfig.for_training() if profile == "training" else MoEConfig.for_inference()
    return replace(base, fallback=fallback)


_DATATYPES = {"float16": "FP16", "float64": "FP64", "object": "BYTES"}


def _datatype(values: npt.NDArray[Any]) -> str:
    """KServe's name of the array's datatype."""
    return _DATATYPES.get(values.dtype.name, values.dtype.name.upper())
