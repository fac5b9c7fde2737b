"""Decides for each token which experts serve it, and how many: as many as the token needs and the budget allows.

Shapes: T tokens, E experts, D width, Q quantiles.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regions.moe.config import Gate, MoEConfig
from regions.moe.experts import steady_linear
from regions.moe.flops import feed_forward_flops, router_flops

INITIAL_SPREAD = 2.0
"""Standard deviation of fresh scores: wide enough for some tokens to have a clear favourite and others to have none."""


class RouterError(RuntimeError):
    """The router gave no usable scores for some token, and the configuration asks for no fallback."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The decision for T tokens. `weights_TE` is 0 where `chosen_TE` is false.

    `complexity_T` lies in [0, 1]. `failed_T` marks tokens whose scores are not finite: nobody is chosen for them yet.
    """

    scores_TE: Tensor
    chosen_TE: Tensor
    weights_TE: Tensor
    complexity_T: Tensor
    failed_T: Tensor

    def ranked(self, columns: int) -> tuple[Tensor, Tensor]:
        """(indices, weights), each [T, columns]: a token's experts, heaviest first; -1 and 0 where there is none."""
        order_TE = self.weights_TE.where(self.chosen_TE, -1.0).argsort(dim=1, descending=True, stable=True)[:, :columns]
        chosen = self.chosen_TE.gather(1, order_TE)
        return order_TE.where(chosen, -1), self.weights_TE.gather(1, order_TE)


def unit_scale(x_TD: Tensor) -> Tensor:
    """x_TD with every row at a root mean square of one; a row of zeros stays as it is."""
    square_T1 = x_TD.square().mean(dim=1, keepdim=True)
    return x_TD * torch.rsqrt(square_T1 + torch.finfo(x_TD.dtype).eps)


def gate_weights(gate: Gate, scores_TE: Tensor, chosen_TE: Tensor) -> Tensor:
    """weights_TE of the chosen experts: a softmax over them alone, or one each; 0 for the others."""
    if gate == "unit":
        return chosen_TE.to(scores_TE.dtype)
    weights_TE = scores_TE.masked_fill(~chosen_TE, -math.inf).softmax(dim=1)
    return weights_TE.where(chosen_TE, 0.0)


class DynamicRouter(nn.Module):
    """Scores experts by a linear map of the token scaled to unit root mean square, so that its length decides nothing.

    A token's complexity is the entropy of the softmax of its scores over that of an even spread (Huang et al. 2024,
    "Harder Tasks Need More Experts", count experts by the same uncertainty). It is ranked among the complexities seen
    in calibration (uncalibrated: taken as it is), and the rank, in [0, 1], sets the number of experts. Each token is
    decided by itself, and `forward` changes nothing on the module.
    """

    complexities_Q: Tensor

    def __init__(self, config: MoEConfig, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given)."""
        super().__init__()
        self.config = config
        deviation = INITIAL_SPREAD * config.width**-0.5
        weight_ED = torch.empty(config.experts, config.width).normal_(std=deviation, generator=generator)
        self.weight_ED = nn.Parameter(weight_ED)
        self.bias_E = nn.Parameter(torch.zeros(config.experts))
        self.register_buffer("complexities_Q", torch.linspace(0.0, 1.0, 129))

    def scores(self, x_TD: Tensor) -> Tensor:
        """scores_TE, the logits of the experts."""
        return steady_linear(unit_scale(x_TD), self.weight_ED, self.bias_E)

    def calibrate(self, x_TD: Tensor) -> None:
        """Learns the spread of complexities from typical tokens, so that the mean expert count meets the budget."""
        complexity_T = _complexity(self.scores(x_TD))
        self.complexities_Q.copy_(complexity_T.quantile(torch.linspace(0.0, 1.0, len(self.complexities_Q))))

    def forward(self, x_TD: Tensor, budget: float | None = None) -> Routing:
        """Routes T tokens; `budget` stands for `config.compute_budget` where given."""
        return self.decide(self.scores(x_TD), budget)

    def decide(self, scores_TE: Tensor, budget: float | None = None) -> Routing:
        """The routing that these scores ask for."""
        failed_T = ~scores_TE.isfinite().all(dim=1)
        safe_TE = scores_TE.masked_fill(failed_T[:, None], 0.0)
        complexity_T = _complexity(safe_TE.detach())
        count_T = self.counts(complexity_T, budget).masked_fill(failed_T, 0)
        place_TE = safe_TE.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen_TE = place_TE < count_T[:, None]
        weights_TE = gate_weights(self.config.gate, safe_TE, chosen_TE | failed_T[:, None])
        return Routing(
            scores_TE=scores_TE,
            chosen_TE=chosen_TE,
            weights_TE=weights_TE.masked_fill(failed_T[:, None], 0.0),
            complexity_T=complexity_T,
            failed_T=failed_T,
        )

    def counts(self, complexity_T: Tensor, budget: float | None = None) -> Tensor:
        """count_T, whole numbers from `min_experts` to `max_experts` that grow with complexity and with the budget."""
        lowest, highest = float(self.config.min_experts), float(self.config.max_experts)
        middle = self.mean_count(budget)
        reach = min(middle - lowest, highest - middle)
        if budget is not None or self.config.compute_budget is not None:
            # Rounding a band of whole width around the middle is unbiased: the mean stays at what the budget buys.
            reach = min(self.config.spread, math.floor(2 * reach) / 2)
        rank_T = _rank(complexity_T, self.complexities_Q)
        return (middle + reach * (2 * rank_T - 1)).round().clamp(lowest, highest).long()

    def mean_count(self, budget: float | None = None) -> float:
        """How many experts a token gets on average: what the budget buys, or without one half-way through the range."""
        lowest, highest = float(self.config.min_experts), float(self.config.max_experts)
        budget = self.config.compute_budget if budget is None else budget
        if budget is None:
            return (lowest + highest) / 2
        return min(max(self.affordable(budget), lowest), highest)

    def affordable(self, budget: float) -> float:
        """The mean number of experts that a share of the FLOPs of all of them buys, once the router is paid."""
        one = feed_forward_flops(1, self.config.width, self.config.hidden)
        total = budget * one * self.config.experts
        return (total - router_flops(1, self.config.width, self.config.experts)) / one


def _complexity(scores_TE: Tensor) -> Tensor:
    if scores_TE.shape[1] == 1:
        return scores_TE.new_zeros(len(scores_TE))
    logs_TE = scores_TE.log_softmax(dim=1)
    entropy_T = -(logs_TE.exp() * logs_TE).sum(dim=1)
    return (entropy_T / math.log(scores_TE.shape[1])).clamp(0.0, 1.0)


def _rank(values_T: Tensor, sorted_Q: Tensor) -> Tensor:
    """Where each value stands among the quantiles, from 0 to 1, straight lines between them."""
    above_T = torch.searchsorted(sorted_Q, values_T.contiguous()).clamp(1, len(sorted_Q) - 1)
    low_T, high_T = sorted_Q[above_T - 1], sorted_Q[above_T]
    inside_T = ((values_T - low_T) / (high_T - low_T).clamp_min(1e-12)).clamp(0.0, 1.0)
    return (above_T - 1 + inside_T) / (len(sorted_Q) - 1)
