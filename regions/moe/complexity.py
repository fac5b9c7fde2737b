"""How hard a token is: estimators that the router turns into a complexity in [0, 1] by rank among calibration tokens.

Shapes: T tokens, E experts, D width.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Estimator = Literal["entropy", "mass", "input"]
"""By what: how undecided the router is, how much all experts would contribute, how unusual the input is."""

QUANTILES = 129


def entropy(scores_TE: Tensor) -> Tensor:
    """entropy_T of the softmax of the scores over that of an even spread, in [0, 1] (as Huang et al. 2024 count)."""
    if scores_TE.shape[1] == 1:
        return scores_TE.new_zeros(len(scores_TE))
    logs_TE = scores_TE.log_softmax(dim=1)
    entropy_T = -(logs_TE.exp() * logs_TE).sum(dim=1)
    return (entropy_T / math.log(scores_TE.shape[1])).clamp(0.0, 1.0)


def mass(scores_TE: Tensor) -> Tensor:
    """mass_T: the logarithm of what all experts contribute together, where scores are logarithms of contributions."""
    return scores_TE.logsumexp(dim=1)


def gradient_norm(loss: Tensor, x_TD: Tensor) -> Tensor:
    """norm_T of the loss's gradient by each token: what training may hand to the router as complexity, once ranked.

    `x_TD` must have taken part in the loss with `requires_grad`; the graph is kept.
    """
    gradient_TD: Tensor
    (gradient_TD,) = torch.autograd.grad(loss, x_TD, retain_graph=True)
    norm_T: Tensor = gradient_TD.norm(dim=1)
    return norm_T


def rank(values_T: Tensor, sorted_Q: Tensor) -> Tensor:
    """Where each value stands among sorted quantiles, from 0 to 1, straight lines between them."""
    above_T = torch.searchsorted(sorted_Q, values_T.contiguous()).clamp(1, len(sorted_Q) - 1)
    low_T, high_T = sorted_Q[above_T - 1], sorted_Q[above_T]
    inside_T = ((values_T - low_T) / (high_T - low_T).clamp_min(1e-12)).clamp(0.0, 1.0)
    return (above_T - 1 + inside_T) / (len(sorted_Q) - 1)


class Complexity(nn.Module):
    """complexity_T in [0, 1], spread evenly over tokens like those of the calibration. A forward changes nothing."""

    quantiles_Q: Tensor
    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, estimator: Estimator, width: int) -> None:
        super().__init__()
        self.estimator = estimator
        # Entropies lie in [0, 1] already; before a calibration they are taken as they are.
        self.register_buffer("quantiles_Q", torch.linspace(0.0, 1.0, QUANTILES))
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    @torch.no_grad()
    def calibrate(self, x_TD: Tensor, scores_TE: Tensor) -> None:
        """Learns from typical tokens what is usual."""
        self.mean_D.copy_(x_TD.mean(dim=0))
        self.scale_D.copy_(x_TD.std(dim=0).clamp_min(1e-6))
        raw_T = self.estimate(x_TD, scores_TE)
        self.quantiles_Q.copy_(raw_T.quantile(torch.linspace(0.0, 1.0, QUANTILES, dtype=raw_T.dtype)))

    def estimate(self, x_TD: Tensor, scores_TE: Tensor) -> Tensor:
        """The estimator's own figure of each token, in its own unit."""
        if self.estimator == "entropy":
            return entropy(scores_TE)
        if self.estimator == "mass":
            return mass(scores_TE)
        return ((x_TD - self.mean_D) / self.scale_D).square().mean(dim=1)

    def forward(self, x_TD: Tensor, scores_TE: Tensor) -> Tensor:
        """complexity_T of T tokens."""
        return rank(self.estimate(x_TD, scores_TE), self.quantiles_Q)
