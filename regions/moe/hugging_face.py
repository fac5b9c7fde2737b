"""Gives the mixtures of experts of Hugging Face models a number of experts that varies with the token.

For Mixtral, OLMoE, Qwen2-MoE and Qwen3-MoE: the model's own router scores, a rule of `rules` chooses, and the model's
experts run for those alone. Needs the extra `hf`.

Shapes: T tokens, E experts, K experts of the busiest token.
"""

import math
from dataclasses import dataclass, replace
from os import PathLike
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from regions.moe.complexity import entropy
from regions.moe.flops import linear_flops, router_flops
from regions.moe.rules import RelativeThreshold, Rule, SequenceBudget, TopP

ROUTERS = (MixtralTopKRouter, OlmoeTopKRouter, Qwen2MoeTopKRouter, Qwen3MoeTopKRouter)

Routed = tuple[Tensor, Tensor, Tensor]
"""What those routers give: logits_TE, weights_TK, indices_TK."""


@dataclass(frozen=True, slots=True)
class Figures:
    """FLOPs of routers and routed experts since the last reading, and what other choices would have taken.

    `all_experts` has no router, `own_choice` is the model's fixed number of experts with its router. Experts that a
    model shares among all tokens count nowhere.
    """

    tokens: int = 0
    executed: int = 0
    own_choice: int = 0
    all_experts: int = 0

    @property
    def share(self) -> float:
        """The executed share of what all experts would have taken; 0 before a forward."""
        return self.executed / max(self.all_experts, 1)


class DynamicExperts:
    """A rule at work in a model, until `remove`; also a context manager.

    Weights and state of the model stay as they are. The model must run its experts one by one (transformers'
    implementation `eager`), which skips those that no token chose; this is set, and set back by `remove`.
    """

    def __init__(self, model: PreTrainedModel, rule: Rule) -> None:
        """Raises ValueError for a model without such experts, or a rule that needs to see the whole text."""
        self._gates = [module for module in model.modules() if isinstance(module, ROUTERS)]
        if not self._gates:
            names = ", ".join(router.__name__.removesuffix("TopKRouter") for router in ROUTERS)
            raise ValueError(f"{type(model).__name__} has none of the routers of {names}")
        self.rule = rule
        self._figures = Figures()
        self._model = model
        self._implementation = model.get_experts_implementation()
        model.set_experts_implementation("eager")
        experts: dict[int, Any] = {id(block.gate): block.experts for block in model.modules() if hasattr(block, "gate")}
        self._hooks = [gate.register_forward_hook(_Hook(self, experts[id(gate)])) for gate in self._gates]

    @property
    def rule(self) -> Rule:
        """The rule in force; another may be set between forwards."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        if isinstance(rule, SequenceBudget):
            told = "SequenceBudget weighs a token against later ones, which a decoder does not know yet"
            raise ValueError(told)  # noqa: TRY004 - a rule like any other, but not for these models
        self._rule = rule

    @property
    def falling(self) -> bool:
        """Whether a higher level of the rule means fewer experts (for `budget.BudgetController`)."""
        return isinstance(self.rule, RelativeThreshold)

    def steered(self) -> float:
        """The rule's level. Raises ValueError for a rule without one."""
        if isinstance(self.rule, TopP):
            return self.rule.mass
        if isinstance(self.rule, RelativeThreshold):
            return self.rule.ratio
        raise ValueError(f"{type(self.rule).__name__} has no level to steer; TopP and RelativeThreshold have")

    def steer(self, level: float) -> None:
        """Takes another level from the next forward on. Raises ValueError for a rule without one."""
        self.steered()
        self.rule = replace(self.rule, **{"ratio" if self.falling else "mass": level})  # type: ignore[type-var]

    def read(self) -> Figures:
        """The figures since the last reading."""
        figures, self._figures = self._figures, Figures()
        return figures

    def remove(self) -> None:
        """Gives the model its own fixed choice back."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._model.set_experts_implementation(self._implementation)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def count(self, chosen_TE: Tensor, width: int, inner: int, own: int) -> None:
        """Adds a layer's choice to the figures; an expert has three matrices of `width` times `inner`."""
        tokens, experts = chosen_TE.shape
        one, router = 3 * linear_flops(1, width, inner), router_flops(tokens, width, experts)
        before = self._figures
        self._figures = Figures(
            tokens=before.tokens + tokens,
            executed=before.executed + router + one * int(chosen_TE.sum()),
            own_choice=before.own_choice + router + one * own * tokens,
            all_experts=before.all_experts + one * experts * tokens,
        )


class _Hook:
    """Puts the rule's choice in the place of a router's own."""

    def __init__(self, dynamic: DynamicExperts, experts: Any) -> None:
        self._dynamic = dynamic
        self._experts = experts

    def __call__(self, gate: Any, _: object, routed: Routed) -> Routed:
        logits_TE = routed[0]
        chosen_TE = _choose(self._dynamic.rule, logits_TE.detach().float())
        self._dynamic.count(chosen_TE, gate.hidden_dim, self._experts.intermediate_dim, gate.top_k)
        # Of these models only Mixtral always scales the weights of the chosen to a sum of one.
        weights_TE = _weights(logits_TE, chosen_TE, scaled=getattr(gate, "norm_topk_prob", True))
        busiest = max(int(chosen_TE.sum(dim=1).max()), 1) if len(chosen_TE) else 1
        order_TK = weights_TE.detach().where(chosen_TE, -1.0).argsort(dim=1, descending=True, stable=True)[:, :busiest]
        picked_TK = chosen_TE.gather(1, order_TK)
        # An index behind the last expert is one that the model's experts skip.
        return logits_TE, weights_TE.gather(1, order_TK), order_TK.masked_fill(~picked_TK, chosen_TE.shape[1])


def _choose(rule: Rule, scores_TE: Tensor) -> Tensor:
    return rule.choose(scores_TE, lambda: entropy(scores_TE), [len(scores_TE)])


def _weights(logits_TE: Tensor, chosen_TE: Tensor, *, scaled: bool) -> Tensor:
    """weights_TE: the probabilities of the chosen among all experts, or among themselves; 0 for the others."""
    if scaled:
        logits_TE = logits_TE.masked_fill(~chosen_TE, -math.inf)
    return logits_TE.softmax(dim=1, dtype=torch.float32).masked_fill(~chosen_TE, 0.0).to(logits_TE.dtype)


def load(path: str | PathLike[str], rule: Rule) -> tuple[PreTrainedModel, DynamicExperts]:
    """A causal language model from a directory, in `eval()`, with a rule at work in it. Nothing is downloaded."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)  # in eval() already
    return model, DynamicExperts(model, rule)
