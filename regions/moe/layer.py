"""The mixture-of-experts layer: router, dispatch, experts, combine, and the figures of what was executed.

Shapes: T tokens, E experts, D width, F inner width of an expert, N (token, expert) pairs.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regions.moe.config import MoEConfig
from regions.moe.experts import Backend, Experts
from regions.moe.fallback import stand_in
from regions.moe.flops import feed_forward_flops, router_flops
from regions.moe.losses import auxiliary_loss
from regions.moe.router import DynamicRouter, RouterError, Routing
from regions.moe.selection import mean_count


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

    @property
    def share(self) -> float:
        """The executed share of the FLOPs of all experts, router included; 0 without tokens."""
        return int(self.flops_T.sum()) / max(self.dense_flops, 1)

    @property
    def load_variation(self) -> float:
        """Standard deviation of the experts' loads over their mean: 0 where all are equally busy."""
        load_E = self.utilisation_E.double()
        return float(load_E.std(correction=0) / load_E.mean().clamp_min(1e-12))

    @property
    def histogram(self) -> list[int]:
        """The number of tokens that 0, 1, 2... experts served, up to all."""
        return torch.bincount(self.routing.chosen_TE.sum(dim=1), minlength=len(self.utilisation_E) + 1).tolist()


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
        spent: float = 0.0,
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        routed: bool = True,
    ) -> MoEOutput:
        """Runs T tokens of texts of `lengths` (one, unless given), at the configured budget unless `budget` is given.

        `backend` runs the experts (the fastest that runs the chosen alone, unless given; FLOPs are those of the chosen
        whatever it is), `generator` serves the fallback `random`. Not `routed`, the router is not asked and counts as
        failed, without FLOPs.
        `spent` is what earlier layers had of these texts (`selection.rule_of`).
        Raises RouterError where the router fails and `config.resilience` is off, TimeoutError after `config.timeout`,
        and ValueError for tokens that `config.security` does not let in.
        """
        start = time.monotonic()
        self._check(x_TD)
        scores_TE = self._scores(x_TD) if routed else x_TD.new_full((len(x_TD), self.config.experts), math.nan)
        routing = self.router.decide(x_TD, scores_TE, budget, lengths, spent)
        routing = self._stood_in(routing, budget, generator)
        size = self.config
        return MoEOutput(
            y_TD=self._run(x_TD, routing, backend, start),
            routing=routing,
            flops_T=(router_flops(1, size.width, size.experts) if routed else 0)
            + feed_forward_flops(1, size.width, size.hidden) * routing.chosen_TE.sum(dim=1),
            dense_flops=feed_forward_flops(len(x_TD), size.width, size.hidden * size.experts),
            utilisation_E=routing.chosen_TE.sum(dim=0),
            loss=auxiliary_loss(size, routing.scores_TE, routing.chosen_TE) if self.training else None,
        )

    def _check(self, x_TD: Tensor) -> None:
        config = self.config
        if config.security == "minimal":
            return
        if x_TD.dim() != 2 or x_TD.shape[1] != config.width or not x_TD.is_floating_point():  # noqa: PLR2004 - T and D
            raise ValueError(f"tokens are {x_TD.dtype} {list(x_TD.shape)}; floats [tokens, {config.width}] are needed")
        if config.security == "strict" and not bool(x_TD.isfinite().all()):
            raise ValueError("tokens hold NaN or infinity")

    def _run(self, x_TD: Tensor, routing: Routing, backend: Backend | None, start: float) -> Tensor:
        """y_TD, part after part."""
        config, size = self.config, self._part(routing, backend)
        weights_TE = None if config.gate == "unit" else routing.weights_TE
        limit = math.inf if config.memory_budget is None else config.memory_budget
        again = torch.is_grad_enabled() and self._kept(x_TD, routing) > limit
        parts = []
        for first in range(0, max(len(x_TD), 1), size):
            if config.timeout is not None and time.monotonic() - start > config.timeout:
                raise TimeoutError(f"the layer took more than {config.timeout} s for {len(x_TD)} tokens")
            rows = slice(first, first + size)
            given = x_TD[rows], routing.chosen_TE[rows], None if weights_TE is None else weights_TE[rows], backend
            parts.append(checkpoint(self.experts, *given, use_reentrant=False) if again else self.experts(*given))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, routing: Routing, backend: Backend | None) -> int:
        """Tokens to run at once: as many as make no more pairs than the threshold's tokens with all experts would."""
        threshold = self.config.batch_threshold
        pairs = routing.chosen_TE.numel() if backend == "dense" else int(routing.chosen_TE.sum())
        return max(threshold, threshold * routing.chosen_TE.numel() // max(pairs, 1))

    def _kept(self, x_TD: Tensor, routing: Routing) -> int:
        """Bytes that the experts' backward needs, about: of each pair the input, two inner values and the result."""
        return int(routing.chosen_TE.sum()) * 2 * (self.config.width + self.config.hidden) * x_TD.element_size()

    def _scores(self, x_TD: Tensor) -> Tensor:
        try:
            return self.router.scores(x_TD)
        except RuntimeError as error:  # what torch raises for weights that do not fit
            if not self.config.resilience:
                raise RouterError(f"the router failed: {error}") from error
            return x_TD.new_full((len(x_TD), self.config.experts), math.nan)

    def _stood_in(self, routing: Routing, budget: float | None, generator: torch.Generator | None) -> Routing:
        failed = int(routing.failed_T.sum())
        if failed and not self.config.resilience:
            raise RouterError(f"the router's scores are not finite for {failed} of {len(routing.failed_T)} tokens")
        return stand_in(routing, self.config, mean_count(self.config, budget), generator)
