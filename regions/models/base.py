"""What the engine asks of a served model: turn one input into an item, and run a batch of items in one forward."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Item:
    """One input, ready to run. Items share a forward only when their `group` is equal; `cost` is in tokens.

    What a model keeps of an item answers only items of the same `owner`.
    """

    payload: Any
    cost: int
    group: Hashable
    truncated: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one item gave: named arrays in the order of the model's outputs, and figures for `usage.details`."""

    arrays: Mapping[str, npt.NDArray[Any]]
    details: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward gave: an outcome for each item in order, and the figures that the worker counts.

    `flops` were executed in the feed-forward layers, routers included (two per multiply-add); `dense_flops` is what the
    dense layers would have taken. `utilisation` holds the tokens that each expert served, summed over the layers; it is
    empty for a model without experts. `unrouted` counts likewise the tokens whose router failed or was not asked.
    `buffers` are those that the forward took from its pool: (used before, allocated).
    """

    outcomes: list[Outcome]
    flops: int
    dense_flops: int
    utilisation: tuple[int, ...] = ()
    unrouted: int = 0
    buffers: tuple[int, int] = (0, 0)


class ServedModel(Protocol):
    """A model behind the engine. `prepare_*` may run on any thread; `forward` on the runner's, several at once."""

    name: str
    takes: Literal["text", "tensor"]

    def metadata(self) -> Mapping[str, Any]:
        """KServe v2 model metadata: name, versions, platform, inputs and outputs with datatype and shape."""
        ...

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:
        """Tokenise one text. Raises `wire.InvalidInput` for text that is empty, or too long without `truncate`."""
        ...

    def prepare_tensor(self, values: npt.NDArray[Any], *, name: str, budget: float | None) -> Item:
        """Check one tensor. Raises `wire.InvalidInput` for a wrong shape or datatype, or a value that is not finite."""
        ...

    def forward(self, items: Sequence[Item]) -> Batch:
        """One forward over items of one group; outcomes in the order of the items."""
        ...
