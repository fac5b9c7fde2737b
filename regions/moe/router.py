"""Decides for each token which experts serve it, and how many: as many as the token needs and the budget allows.

Shapes: T tokens, E experts, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regions.moe import rules
from regions.moe.complexity import Complexity
from regions.moe.config import Gate, MoEConfig
from regions.moe.flops import feed_forward_flops, router_flops
from regions.moe.linear import steady_linear

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
    """Scores experts by a linear map of the token, and has a rule choose among them.

    The scorer `linear` takes the token at unit root mean square, so that its length decides nothing. `norm` takes it as
    it is and is trained to give the logarithm of what each expert contributes (D2DMoE, Szatkowski et al. 2024). How
    complex a token is, `complexity` says. Each token is decided by itself or within its text; in `eval()`, `forward`
    changes nothing on the module.
    """

    def __init__(self, config: MoEConfig, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given)."""
        super().__init__()
        self.config = config
        deviation = INITIAL_SPREAD * config.width**-0.5
        weight_ED = torch.empty(config.experts, config.width).normal_(std=deviation, generator=generator)
        self.weight_ED = nn.Parameter(weight_ED)
        self.bias_E = nn.Parameter(torch.zeros(config.experts))
        self.complexity = Complexity(config.estimator, config.width)

    def scores(self, x_TD: Tensor) -> Tensor:
        """scores_TE, in float32 whatever the tokens are in; with noise in training, where that is asked for."""
        x_TD = x_TD.float()
        scores_TE = steady_linear(
            unit_scale(x_TD) if self.config.scorer == "linear" else x_TD, self.weight_ED, self.bias_E
        )
        if self.training and self.config.noise > 0:
            scores_TE = scores_TE + self.config.noise * torch.randn_like(scores_TE)
        return scores_TE

    def calibrate(self, x_TD: Tensor) -> None:
        """Learns from typical tokens how complexities spread, so that the mean expert count meets the budget."""
        x_TD = x_TD.float()
        self.complexity.calibrate(x_TD, self.scores(x_TD))

    def forward(self, x_TD: Tensor, budget: float | None = None, lengths: Sequence[int] | None = None) -> Routing:
        """Routes T tokens of texts of `lengths` (one, unless given); `budget` stands for the configured one."""
        return self.decide(x_TD, self.scores(x_TD), budget, lengths)

    def decide(
        self, x_TD: Tensor, scores_TE: Tensor, budget: float | None = None, lengths: Sequence[int] | None = None
    ) -> Routing:
        """The routing that these scores ask for."""
        failed_T = ~scores_TE.isfinite().all(dim=1)
        safe_TE = scores_TE.masked_fill(failed_T[:, None], 0.0)
        complexity_T = self.complexity(x_TD.detach().float(), safe_TE.detach())
        chosen_TE = self.rule(budget).choose(
            safe_TE.detach(), complexity_T, [len(x_TD)] if lengths is None else lengths
        )
        chosen_TE = chosen_TE & ~failed_T[:, None]
        weights_TE = gate_weights(self.config.gate, safe_TE, chosen_TE | failed_T[:, None])
        return Routing(
            scores_TE=scores_TE,
            chosen_TE=chosen_TE,
            weights_TE=weights_TE.masked_fill(failed_T[:, None], 0.0),
            complexity_T=complexity_T,
            failed_T=failed_T,
        )

    def rule(self, budget: float | None = None) -> rules.Rule:
        """The configured rule at a budget."""
        config, middle = self.config, self.mean_count(budget)
        bounds = (config.min_experts, config.max_experts)
        if config.rule == "top_k":
            return rules.TopK(max(config.min_experts, math.floor(middle + 0.5)))
        if config.rule == "top_p":
            return rules.TopP(config.mass, *bounds)
        if config.rule == "relative_threshold":
            return rules.RelativeThreshold(config.ratio, *bounds)
        if config.rule == "sequence_budget":
            return rules.SequenceBudget(middle / config.experts, *bounds)
        return rules.ComplexityK(middle, self._reach(middle, budget), *bounds)

    def _reach(self, middle: float, budget: float | None) -> float:
        reach = min(middle - self.config.min_experts, self.config.max_experts - middle)
        if budget is None and self.config.compute_budget is None:
            return reach
        # A band of whole width is rounded without a bias: the mean stays at what the budget buys.
        return min(self.config.spread, math.floor(2 * reach) / 2)

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
