"""Splits a dense feed-forward layer into experts by what calibration text shows of it, before anything is trained.

Its neurons are grouped into experts by what they look for and when they fire, a linear probe learns the size of what
each expert will contribute to a token, and a skipped expert is stood in for by its mean. After Zhang et al. 2022
(MoEfication), Szatkowski et al. 2024 (D2DMoE) and Pei et al. 2025 (CMoE).

Shapes: T calibration tokens, D width, H hidden features of the dense layer, E experts, F = H / E features of one,
R features of a neuron.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regions.models.encoder import Block

ROUNDS = 12
ACTIVITY_FEATURES = 128
RIDGE = 1e-2
SMALLEST = 1e-4
"""Contributions are no smaller in the logarithm that the router learns."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a layer becomes experts: whose turn each neuron is, the router's start, and what skipped experts stand for.

    `order_H` lists the neurons expert by expert. `size_E` is the mean size of what each expert contributes.
    """

    order_H: Tensor
    router_ED: Tensor
    router_bias_E: Tensor
    skipped_ED: Tensor
    size_E: Tensor


def split(block: Block, x_TD: Tensor, experts: int, seed: int) -> Split:
    """Splits a layer into equal experts by its inputs on calibration text; equal arguments give an equal split."""
    (up_HD, up_bias_H), (down_DH, _) = block.up, block.down
    active_TH = functional.gelu(functional.linear(x_TD, up_HD, up_bias_H))
    owner_H = balanced_clusters(_neuron_features(up_HD, active_TH, seed), experts)
    y_ETD = torch.stack([active_TH[:, owner_H == e] @ down_DH[:, owner_H == e].T for e in range(experts)])
    mean_ED = y_ETD.mean(dim=1)
    size_TE = (y_ETD - mean_ED[:, None]).norm(dim=2).T
    router_ED, router_bias_E = _probe(x_TD, size_TE.clamp_min(SMALLEST).log())
    return Split(owner_H.argsort(stable=True), router_ED, router_bias_E, mean_ED, size_TE.mean(dim=0))


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


def _neuron_features(up_HD: Tensor, active_TH: Tensor, seed: int) -> Tensor:
    """features_HR: the direction that a neuron looks for, beside a sketch of when it fires (random projection)."""
    centred_TH = functional.normalize(active_TH - active_TH.mean(dim=0), dim=0)
    generator = torch.Generator().manual_seed(seed)
    sketch_TR = torch.randn(len(active_TH), ACTIVITY_FEATURES, generator=generator) / ACTIVITY_FEATURES**0.5
    return torch.cat([functional.normalize(up_HD, dim=1), centred_TH.T @ sketch_TR], dim=1)


def _probe(x_TD: Tensor, target_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(weight_ED, bias_E) of least squares with a ridge."""
    mean_D, mean_E = x_TD.mean(dim=0), target_TE.mean(dim=0)
    centred_TD = (x_TD - mean_D).double()
    gram_DD = centred_TD.T @ centred_TD
    gram_DD += RIDGE * gram_DD.diagonal().mean() * torch.eye(len(gram_DD), dtype=torch.double)
    weight_ED = torch.linalg.solve(gram_DD, centred_TD.T @ (target_TE - mean_E).double()).T.to(x_TD.dtype)
    return weight_ED.contiguous(), mean_E - weight_ED @ mean_D
