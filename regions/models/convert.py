"""Turns a dense feed-forward layer into a mixture of experts without training, by what calibration text shows of it.

Its neurons are grouped into experts by what they look for and when they fire, a linear probe learns how much each
expert will contribute to a token, and a skipped expert is stood in for by its mean over the tokens that skip it.
After Zhang et al. 2022 (MoEfication) and Pei et al. 2025 (CMoE).

Shapes: T calibration tokens, D width, H hidden features of the dense layer, E experts, F = H / E features of one,
G budgets, R features of a neuron.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regions.moe.config import Fallback, MoEConfig
from regions.moe.layer import MoELayer
from regions.moe.router import unit_scale

GRID = tuple(step / 10 for step in range(1, 10))
"""The budgets, 0.1 to 0.9, at which the means of skipped experts are taken; between them straight lines hold."""

ROUNDS = 6
ACTIVITY_FEATURES = 128
RIDGE = 1e-2
SHARPNESS = 4.0
"""The softmax of the scores takes contributions to this power. It orders experts alike whatever it is; at 2, the share
of each in the energy, the complexity of nearly every token would lie above 0.9."""


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """`down @ gelu(up @ x + up_bias) + down_bias`; `gain_D` is that of the normalisation which follows.

    Features that the normalisation turns down matter less, so the gain weighs what an expert contributes.
    """

    up_HD: Tensor
    up_bias_H: Tensor
    down_DH: Tensor
    down_bias_D: Tensor
    gain_D: Tensor


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A dense layer as experts: `layer` without the dense layer's last bias, and what skipped experts stand for."""

    layer: MoELayer
    bias_D: Tensor
    skipped_GED: Tensor

    def skipped(self, budget: float) -> Tensor:
        """skipped_ED at a budget."""
        place = min(max((budget - GRID[0]) / (GRID[1] - GRID[0]), 0.0), len(GRID) - 1.0)
        below = min(int(place), len(GRID) - 2)
        return torch.lerp(self.skipped_GED[below], self.skipped_GED[below + 1], place - below)


def split(dense: DenseLayer, x_TD: Tensor, experts: int, fallback: Fallback) -> SplitLayer:
    """Splits a layer into equal experts by its inputs on calibration text; the same inputs give the same split."""
    hidden, width = dense.up_HD.shape
    config = MoEConfig(
        width=width,
        hidden=hidden // experts,
        experts=experts,
        min_experts=0,
        max_experts=experts,
        spread=2.0,
        gate="unit",
        fallback=fallback,
    )
    active_TH = functional.gelu(functional.linear(x_TD, dense.up_HD, dense.up_bias_H))
    owner_H = balanced_clusters(_neuron_features(dense, active_TH), experts)
    layer = _gather(config, dense, owner_H.argsort(stable=True).view(experts, -1))
    y_ETD = torch.stack([active_TH[:, owner_H == e] @ dense.down_DH[:, owner_H == e].T for e in range(experts)])
    _fit_router(layer, x_TD, ((y_ETD - y_ETD.mean(dim=1, keepdim=True)) * dense.gain_D).norm(dim=2).T)
    skipped_GED = _skipped_means(layer, x_TD, y_ETD)
    return SplitLayer(layer=layer.eval(), bias_D=dense.down_bias_D, skipped_GED=skipped_GED)


def balanced_clusters(features_HR: Tensor, clusters: int) -> Tensor:
    """owner_H: k-means with clusters of one size. Those who would lose most by a second choice choose first."""
    rows = len(features_HR)
    centres_ER = features_HR[torch.arange(clusters) * (rows // clusters)]
    owner_H = torch.zeros(rows, dtype=torch.long)
    for _ in range(ROUNDS):
        distance_HE = torch.cdist(features_HR, centres_ER)
        nearest_HE, choices_HE = distance_HE.sort(dim=1, stable=True)
        urgency_H = (nearest_HE[:, 1] - nearest_HE[:, 0]).argsort(descending=True, stable=True)
        owner_H = torch.tensor(_assign(urgency_H.tolist(), choices_HE.tolist(), rows // clusters))
        centres_ER = torch.stack([features_HR[owner_H == cluster].mean(dim=0) for cluster in range(clusters)])
    return owner_H


def _assign(order: list[int], choices: list[list[int]], room_each: int) -> list[int]:
    room = [room_each] * len(choices[0])
    owner = [0] * len(order)
    for row in order:
        owner[row] = next(cluster for cluster in choices[row] if room[cluster])
        room[owner[row]] -= 1
    return owner


def _neuron_features(dense: DenseLayer, active_TH: Tensor) -> Tensor:
    """features_HR: the direction that a neuron looks for, beside a sketch of when it fires (random projection)."""
    centred_TH = functional.normalize(active_TH - active_TH.mean(dim=0), dim=0)
    generator = torch.Generator().manual_seed(0)
    sketch_TR = torch.randn(len(active_TH), ACTIVITY_FEATURES, generator=generator) / ACTIVITY_FEATURES**0.5
    return torch.cat([functional.normalize(dense.up_HD, dim=1), centred_TH.T @ sketch_TR], dim=1)


def _gather(config: MoEConfig, dense: DenseLayer, neurons_EF: Tensor) -> MoELayer:
    layer = MoELayer(config).requires_grad_(requires_grad=False)
    layer.experts.up_EFD.copy_(dense.up_HD[neurons_EF])
    layer.experts.up_bias_EF.copy_(dense.up_bias_H[neurons_EF])
    layer.experts.down_EDF.copy_(dense.down_DH[:, neurons_EF].transpose(0, 1))
    return layer


def _fit_router(layer: MoELayer, x_TD: Tensor, size_TE: Tensor) -> None:
    """Least squares, with a ridge, of SHARPNESS times the log of each expert's contribution."""
    input_TD = unit_scale(x_TD).double()
    target_TE = SHARPNESS * size_TE.clamp_min(1e-6).log().double()
    mean_D, mean_E = input_TD.mean(dim=0), target_TE.mean(dim=0)
    centred_TD = input_TD - mean_D
    gram_DD = centred_TD.T @ centred_TD
    gram_DD += RIDGE * gram_DD.diagonal().mean() * torch.eye(len(gram_DD), dtype=torch.double)
    weight_DE = torch.linalg.solve(gram_DD, centred_TD.T @ (target_TE - mean_E))
    layer.router.weight_ED.copy_(weight_DE.T)
    layer.router.bias_E.copy_(mean_E - mean_D @ weight_DE)
    layer.router.calibrate(x_TD)


def _skipped_means(layer: MoELayer, x_TD: Tensor, y_ETD: Tensor) -> Tensor:
    """mean_GED of each expert over the tokens that skip it at each budget of the grid; over all where none does."""
    scores_TE = layer.router.scores(x_TD)
    skips_GTE = torch.stack([~layer.router.decide(scores_TE, budget).chosen_TE for budget in GRID]).to(y_ETD.dtype)
    skips_GTE = torch.where(skips_GTE.sum(dim=1, keepdim=True) > 0, skips_GTE, 1.0)
    shares_GTE = skips_GTE / skips_GTE.sum(dim=1, keepdim=True)
    return (shares_GTE.permute(2, 0, 1) @ y_ETD).transpose(0, 1)
