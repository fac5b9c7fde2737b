"""The mixture-of-experts layer: router, dispatch, experts, combine, and the figures of what was executed.

Shapes: T tokens, E experts, D width, F inner width of an expert, N (token, expert) pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regions.moe.config import MoEConfig
from regions.moe.experts import Backend, Experts
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
        lengths: Sequence[int] | None = None,
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        routed: bool = True,
    ) -> MoEOutput:
        """Runs T tokens of texts of `lengths` (one, unless given), at the configured budget unless `budget` is given.

        `backend` runs the experts (the fastest, unless given), `generator` serves the fallback `random`. Not `routed`,
        the router is not asked and counts as failed, without FLOPs.
        Raises RouterError where the router fails and `config.resilience` is off.
        """
        scores_TE = self._scores(x_TD) if routed else x_TD.new_full((len(x_TD), self.config.experts), math.nan)
        routing = self._route(x_TD, scores_TE, budget, lengths, generator)
        size = self.config
        return MoEOutput(
            y_TD=self.experts(x_TD, routing.chosen_TE, None if size.gate == "unit" else routing.weights_TE, backend),
            routing=routing,
            flops_T=(router_flops(1, size.width, size.experts) if routed else 0)
            + feed_forward_flops(1, size.width, size.hidden) * routing.chosen_TE.sum(dim=1),
            dense_flops=feed_forward_flops(len(x_TD), size.width, size.hidden * size.experts),
            utilisation_E=routing.chosen_TE.sum(dim=0),
            loss=auxiliary_loss(size, routing.scores_TE, routing.chosen_TE) if self.training else None,
        )

    def _scores(self, x_TD: Tensor) -> Tensor:
        try:
            return self.router.scores(x_TD)
        except RuntimeError as error:  # what torch raises for weights that do not fit
            if not self.config.resilience:
                raise RouterError(f"the router failed: {error}") from error
            return x_TD.new_full((len(x_TD), self.config.experts), math.nan)

    def _route(
        self,
        x_TD: Tensor,
        scores_TE: Tensor,
        budget: float | None,
        lengths: Sequence[int] | None,
        generator: torch.Generator | None,
    ) -> Routing:
        routing = self.router.decide(x_TD, scores_TE, budget, lengths)
        failed = int(routing.failed_T.sum())
        if failed and not self.config.resilience:
            raise RouterError(f"the router's scores are not finite for {failed} of {len(x_TD)} tokens")
        return stand_in(routing, self.config, self.router.mean_count(budget), generator)
