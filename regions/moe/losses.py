"""The losses that keep a router in shape while it is trained.

Shapes: T tokens, E experts.
"""

import torch
from torch import Tensor

from regions.moe.config import MoEConfig


def load_balance_loss(probabilities_TE: Tensor, chosen_TE: Tensor) -> Tensor:
    """Scalar, 1 for an even load: E times the sum over experts of share of tokens times mean probability.

    Fedus, Zoph & Shazeer 2021 (Switch Transformer), eq. 4, with the share taken over all choices, not the first alone.
    """
    load_E = chosen_TE.float().sum(dim=0)
    share_E = load_E / load_E.sum().clamp_min(1)
    return probabilities_TE.shape[1] * (share_E * probabilities_TE.mean(dim=0)).sum()


def router_z_loss(scores_TE: Tensor) -> Tensor:
    """Scalar: the mean square of the log-sum-exp of the scores, which keeps them small (Zoph et al. 2022, eq. 5)."""
    return torch.logsumexp(scores_TE, dim=1).square().mean()


def auxiliary_loss(config: MoEConfig, scores_TE: Tensor, chosen_TE: Tensor) -> Tensor:
    """Both losses, weighed as the configuration says."""
    balance = load_balance_loss(scores_TE.softmax(dim=1), chosen_TE)
    return config.balance_weight * balance + config.z_weight * router_z_loss(scores_TE)
