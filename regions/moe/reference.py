"""The layer as slow loops over tokens and experts, that tests compare the fast one with. Nothing else imports it.

Shapes: T tokens, E experts, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from regions.moe.experts import Experts
from regions.moe.router import Routing


def expert_output(experts: Experts, expert: int, x_D: Tensor) -> Tensor:
    """y_D of one expert for one token."""
    inner_F = functional.gelu(experts.up_EFD[expert] @ x_D + experts.up_bias_EF[expert])
    return experts.down_EDF[expert] @ inner_F + experts.down_bias_ED[expert]


def mixture(experts: Experts, routing: Routing, x_TD: Tensor) -> Tensor:
    """y_TD: for each token, what each chosen expert gives times its weight."""
    y_TD = torch.zeros_like(x_TD)
    for token in range(x_TD.shape[0]):
        for expert in range(routing.chosen_TE.shape[1]):
            if routing.chosen_TE[token, expert]:
                y_TD[token] += routing.weights_TE[token, expert] * expert_output(experts, expert, x_TD[token])
    return y_TD


def dense(experts: Experts, weight: float, x_TD: Tensor) -> Tensor:
    """y_TD with every expert serving every token at the same weight."""
    return torch.stack(
        [
            sum((weight * expert_output(experts, e, x_D) for e in range(len(experts.up_EFD))), torch.zeros_like(x_D))
            for x_D in x_TD
        ]
    )
