"""The mixture-of-experts layer: router, dispatch, experts, combine, and the figures of what was executed.

Shapes: T tokens, E experts, D width, F inner width of an expert, N (token, expert) pairs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regions.moe.config import MoEConfig
from regions.moe.dispatch import Dispatch
from regions.moe.experts import Experts
from regions.moe.fallback import stand_in
from regions.moe.flops import feed_forward_flops, router_flops
from regions.moe.losses import auxiliary_loss
from regions.moe.router import DynamicRouter, RouterError, Routing


@dataclass(frozen=True, slots=True)
class MoEOutput:
    """What one forward gave: y_TD, the routing that was executed, and what it took.

    `flops_T` (int64) covers router and experts, `dense_flops` is what all experts take for T tokens without a router,
    `utilisation_E` (int64) counts the tokens that each expert served. `loss` is there in training mode only.
    """

    y_TD: Tensor
    routing: Routing
    flops_T: Tensor
    dense_flops: int
    utilisation_E: Tensor
    loss: Tensor | None


class MoELayer(nn.Module):
    """y = sum over a token's experts of weight times `expert(x)`. A forward in `eval()` changes nothing."""

    def __init__(self, config: MoEConfig, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given)."""
        super().__init__()
        self.config = config
        self.router = DynamicRouter(config, generator)
        self.experts = Experts(config.experts, config.width, config.hidden, generator)

    def forward(
        self,
        x_TD: Tensor,
        budget: float | None = None,
        *,
        skipped_ED: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MoEOutput:
        """Runs T tokens; `budget` stands for the configured one, `generator` serves the fallback `random`.

        `skipped_ED` is what an expert contributes to the tokens that it does not serve (nothing unless given), for the
        gate `unit` alone: a weight other than one would scale the part taken off as well.
        Raises RouterError where the router fails and `config.resilience` is off.
        """
        if skipped_ED is not None and self.config.gate != "unit":
            raise ValueError(f"skipped_ED needs the gate unit, not {self.config.gate}")
        routing = self._route(x_TD, budget, generator)
        dispatch = Dispatch.by_expert(routing.chosen_TE)
        # Every token gets the sum of what all experts stand for; a chosen expert takes its own part of that off again.
        y_ND = self.experts(dispatch.gather(x_TD), dispatch.counts, skipped_ED)
        y_TD = dispatch.combine(y_ND, routing.weights_TE)
        if skipped_ED is not None:
            y_TD = y_TD + skipped_ED.sum(dim=0)
        size = self.config
        return MoEOutput(
            y_TD=y_TD,
            routing=routing,
            flops_T=router_flops(1, size.width, size.experts)
            + feed_forward_flops(1, size.width, size.hidden) * routing.chosen_TE.sum(dim=1),
            dense_flops=feed_forward_flops(len(x_TD), size.width, size.hidden * size.experts),
            utilisation_E=torch.tensor(dispatch.counts),
            loss=auxiliary_loss(size, routing.scores_TE, routing.chosen_TE) if self.training else None,
        )

    def _route(self, x_TD: Tensor, budget: float | None, generator: torch.Generator | None) -> Routing:
        try:
            scores_TE = self.router.scores(x_TD)
        except RuntimeError as error:  # what torch raises for weights that do not fit
            if not self.config.resilience:
                raise RouterError(f"the router failed: {error}") from error
            scores_TE = x_TD.new_full((len(x_TD), self.config.experts), math.nan)
        routing = self.router.decide(scores_TE, budget)
        failed = int(routing.failed_T.sum())
        if failed and not self.config.resilience:
            raise RouterError(f"the router's scores are not finite for {failed} of {len(x_TD)} tokens")
        return stand_in(routing, self.config, self.router.mean_count(budget), generator)
