"""The experts: E small feed-forward networks of one shape, and the back ends that run those which were chosen.

Shapes: T tokens, P rows that experts run on, sorted by expert, N rows of one of them, E experts, D width, F inner one.
"""

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from regions.moe.dispatch import Dispatch
from regions.moe.linear import Linear, packed_linear, steady_linear

Backend = Literal["loop", "grouped_mm", "dense"]
"""One expert after the other; all in one grouped product; or every expert on every token, chosen or not."""


class Experts(nn.Module):
    """`down(gelu(up(x)))` for each of E experts."""

    def __init__(self, experts: int, width: int, hidden: int, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given); biases start at 0."""
        super().__init__()
        up_EFD = torch.empty(experts, hidden, width).normal_(std=width**-0.5, generator=generator)
        down_EDF = torch.empty(experts, width, hidden).normal_(std=hidden**-0.5, generator=generator)
        self.up_EFD = nn.Parameter(up_EFD)
        self.up_bias_EF = nn.Parameter(torch.zeros(experts, hidden))
        self.down_EDF = nn.Parameter(down_EDF)
        self.down_bias_ED = nn.Parameter(torch.zeros(experts, width))
        self._packed: list[tuple[Linear, Linear]] = []

    def pack(self) -> None:
        """Lays the weights out for the kernels of inference; they must not change afterwards."""
        self._packed = [
            (packed_linear(up_FD, up_bias_F, gelu=True), packed_linear(down_DF, down_bias_D))
            for up_FD, up_bias_F, down_DF, down_bias_D in zip(
                self.up_EFD, self.up_bias_EF, self.down_EDF, self.down_bias_ED, strict=True
            )
        ]

    def one(self, expert: int, x_ND: Tensor) -> Tensor:
        """What one expert makes of its tokens."""
        if self._packed:
            up, down = self._packed[expert]
            return down(up(x_ND))
        inner_NF = functional.gelu(steady_linear(x_ND, self.up_EFD[expert], self.up_bias_EF[expert]))
        return steady_linear(inner_NF, self.down_EDF[expert], self.down_bias_ED[expert])

    def forward(
        self, x_TD: Tensor, chosen_TE: Tensor, weights_TE: Tensor | None = None, backend: Backend | None = None
    ) -> Tensor:
        """y_TD: for each token the sum of its experts, weighed (each by one, unless given).

        Without a back end named it is `dense` where every expert was chosen for every token, else `loop`: of the two
        that execute nothing else, `grouped_mm` was the faster one for no shape that benchmarks/moe_layer.py has.
        """
        if backend is None:
            backend = "dense" if bool(chosen_TE.all()) else "loop"
        run: _Run = {"loop": _loop, "grouped_mm": _grouped, "dense": _dense}[backend]
        return run(self, x_TD, chosen_TE, weights_TE)


class _Run(Protocol):
    def __call__(self, experts: Experts, x_TD: Tensor, chosen_TE: Tensor, weights_TE: Tensor | None) -> Tensor: ...


def _loop(experts: Experts, x_TD: Tensor, chosen_TE: Tensor, weights_TE: Tensor | None) -> Tensor:
    """Expert after expert, on the tokens that chose it."""
    dispatch = Dispatch.by_expert(chosen_TE)
    runs = zip(range(len(dispatch.counts)), torch.split(dispatch.tokens_P, dispatch.counts), strict=True)
    parts = (experts.one(expert, x_TD.index_select(0, tokens_P)) for expert, tokens_P in runs if len(tokens_P))
    return dispatch.combine(
        _joined(parts, x_TD, dispatch.counts), None if weights_TE is None else weights_TE[chosen_TE]
    )


def _joined(parts: Iterator[Tensor], x_TD: Tensor, counts: list[int]) -> Tensor:
    """The parts one below the other; without gradients each is copied while it is still in the cache, and let go of."""
    if torch.is_grad_enabled():
        return torch.cat([x_TD[:0], *parts])
    y_PD = x_TD.new_empty(sum(counts), x_TD.shape[1])
    for rows_ND in torch.split(y_PD, [count for count in counts if count]):
        rows_ND.copy_(next(parts))
    return y_PD


def _grouped(experts: Experts, x_TD: Tensor, chosen_TE: Tensor, weights_TE: Tensor | None) -> Tensor:
    """One grouped matrix product over all experts."""
    dispatch = Dispatch.by_expert(chosen_TE)
    counts_E = torch.tensor(dispatch.counts, dtype=torch.int32)
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    inner_PF = functional.grouped_mm(x_TD[dispatch.tokens_P], experts.up_EFD.transpose(1, 2), offs=ends_E)
    inner_PF = functional.gelu(inner_PF + experts.up_bias_EF.repeat_interleave(counts_E, dim=0))
    y_PD = functional.grouped_mm(inner_PF, experts.down_EDF.transpose(1, 2), offs=ends_E)
    y_PD = y_PD + experts.down_bias_ED.repeat_interleave(counts_E, dim=0)
    return dispatch.combine(y_PD, None if weights_TE is None else weights_TE[chosen_TE])


def _dense(experts: Experts, x_TD: Tensor, chosen_TE: Tensor, weights_TE: Tensor | None) -> Tensor:
    """Every expert on every token as two matrix products; the weights, 0 for those not chosen, come between."""
    count, inner, width = experts.up_EFD.shape
    weights_TE = (chosen_TE if weights_TE is None else weights_TE).to(x_TD.dtype)
    inner_TH = functional.gelu(steady_linear(x_TD, experts.up_EFD.view(-1, width), experts.up_bias_EF.view(-1)))
    weighed_TH = (inner_TH.view(-1, count, inner) * weights_TE[:, :, None]).view(inner_TH.shape)
    down_DH = experts.down_EDF.transpose(0, 1).reshape(width, -1)
    return steady_linear(weighed_TH, down_DH) + steady_linear(weights_TE, experts.down_bias_ED.T)
