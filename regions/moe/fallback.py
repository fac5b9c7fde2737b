"""What serves a token whose router failed: every expert, experts in turn, the first expert, or experts by chance.

Shapes: T tokens, E experts, M tokens that failed.
"""

from dataclasses import replace

import torch
from torch import Tensor

from regions.moe.config import MoEConfig
from regions.moe.router import Routing, gate_weights


def stand_in(
    routing: Routing, config: MoEConfig, mean_count: float, generator: torch.Generator | None = None
) -> Routing:
    """The routing with experts chosen, and weighed evenly, for the tokens that failed.

    `load_balance` and `random` take `mean_count` experts, rounded, for each such token.

    `random` draws from `generator` and raises ValueError without one. `load_balance` gives turns by the token's place
    among those that failed: the only strategy here that looks at neighbours.
    """
    failed_T = routing.failed_T
    if not failed_T.any():
        return routing
    chosen_ME = _choose(int(failed_T.sum()), config, max(1, round(mean_count)), generator)
    even_ME = gate_weights(config.gate, torch.zeros(chosen_ME.shape, dtype=routing.weights_TE.dtype), chosen_ME)
    where = failed_T.nonzero(as_tuple=True)
    return replace(
        routing,
        chosen_TE=routing.chosen_TE.index_put(where, chosen_ME),
        weights_TE=routing.weights_TE.index_put(where, even_ME),
    )


def _choose(tokens: int, config: MoEConfig, count: int, generator: torch.Generator | None) -> Tensor:
    """chosen_ME for tokens that nobody chose for."""
    experts = config.experts
    if config.fallback == "dense":
        return torch.ones(tokens, experts, dtype=torch.bool)
    if config.fallback == "single_expert":
        return (torch.arange(experts) == 0).repeat(tokens, 1)
    if config.fallback == "load_balance":
        turns_MK = (torch.arange(tokens * count) % experts).view(tokens, count)
    else:
        if generator is None:
            raise ValueError("the fallback random needs a generator to draw from")
        turns_MK = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :count]
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter(1, turns_MK, value=True)
