"""Decides for each token which experts serve it, and how many: as many as the token needs and the budget allows.

Shapes: T tokens, E experts, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from regions.moe.complexity import Complexity
from regions.moe.config import Gate, MoEConfig
from regions.moe.linear import steady_linear
from regions.moe.selection import rule_of

INITIAL_SPREAD = 2.0
"""Standard deviation of fresh scores: wide enough for some tokens to have a clear favourite and others to have none."""


class RouterError(RuntimeError):
    """The router gave no usable scores for some token, and the configuration asks for no fallback."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The decision for T tokens. `weights_TE` is 0 where `chosen_TE` is false.

    `failed_T` marks tokens whose scores are not finite: nobody is chosen for them yet. `estimate` gives complexities;
    not every rule needs them, and they take as long as the scores.
    """

    scores_TE: Tensor
    chosen_TE: Tensor
    weights_TE: Tensor
    failed_T: Tensor
    estimate: Callable[[], Tensor]

    @property
    def complexity_T(self) -> Tensor:  # noqa: N802 - its shape, as in the names beside it
        """How complex each token is, in [0, 1]; 1 where the router failed."""
        return self.estimate().masked_fill(self.failed_T, 1.0)

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
    # A token that nobody is chosen for has a softmax too, so that no gradient turns into NaN.
    counted_TE = chosen_TE | ~chosen_TE.any(dim=1, keepdim=True)
    return scores_TE.masked_fill(~counted_TE, -math.inf).softmax(dim=1).masked_fill(~chosen_TE, 0.0)


class DynamicRouter(nn.Module):
    """Scores experts by a linear map of the token, and has a rule choose among them.

    The scorer `linear` takes the token at unit root mean square, so that its length decides nothing. `norm` takes it as
    it is and is trained to give the logarithm of what each expert contributes (D2DMoE, Szatkowski et al. 2024). How
    complex a token is, `complexity` says. Each token is decided by itself or within its text; in `eval()`, `forward`
    changes nothing on the module.

    Two buffers change by what training asks for: `level`, the mass of `top_p` or the ratio of `relative_threshold`, by
    a `BudgetController`; `balance_E`, which joins the scores where experts are chosen, by `rebalance`.
    """

    level: Tensor
    balance_E: Tensor

    def __init__(self, config: MoEConfig, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given)."""
        super().__init__()
        self.config = config
        deviation = INITIAL_SPREAD * config.width**-0.5
        weight_ED = torch.empty(config.experts, config.width).normal_(std=deviation, generator=generator)
        self.weight_ED = nn.Parameter(weight_ED)
        self.bias_E = nn.Parameter(torch.zeros(config.experts))
        self.complexity = Complexity(config.estimator, config.width)
        self.falling = config.rule == "relative_threshold"
        self.register_buffer("level", torch.tensor(config.ratio if self.falling else config.mass))
        self.register_buffer("balance_E", torch.zeros(config.experts))

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
        self,
        x_TD: Tensor,
        scores_TE: Tensor,
        budget: float | None = None,
        lengths: Sequence[int] | None = None,
        spent: float = 0.0,
    ) -> Routing:
        """The routing that these scores ask for; `spent` as in `rule_of`."""
        failed_T = ~scores_TE.isfinite().all(dim=1)
        failed = bool(failed_T.any())
        safe_TE = scores_TE.masked_fill(failed_T[:, None], 0.0) if failed else scores_TE
        estimate = cache(lambda: self.complexity(x_TD.detach().float(), safe_TE.detach()))
        ranking_TE = safe_TE.detach() + self.balance_E
        rule = rule_of(self.config, self.steered(), budget, spent)
        chosen_TE = rule.choose(ranking_TE, estimate, [len(x_TD)] if lengths is None else lengths)
        if failed:
            chosen_TE = chosen_TE & ~failed_T[:, None]
        weights_TE = gate_weights(self.config.gate, safe_TE, chosen_TE)
        return Routing(scores_TE, chosen_TE, weights_TE, failed_T, estimate)

    def steered(self) -> float:
        """The level in force."""
        return float(self.level)

    def steer(self, level: float) -> None:
        """Takes another level: a mass or a ratio, over 0 and up to 1."""
        self.level.fill_(level)

    def rebalance(self, utilisation_E: Tensor, rate: float = 0.01) -> None:
        """After a training step: makes busy experts less, and idle ones more, likely to be chosen.

        The weights of those chosen, and so all gradients, stay as the scores alone make them (Wang et al. 2024,
        "Auxiliary-Loss-Free Load Balancing Strategy"). `rate` is in units of the scores.
        """
        load_E = utilisation_E.to(self.balance_E)
        self.balance_E.add_(rate * (load_E.mean() - load_E).sign())
