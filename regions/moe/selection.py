"""The rule that a configuration asks for at a budget, and how many experts the budget buys. Pure arithmetic."""

import math

from regions.moe import rules
from regions.moe.config import STEERED, MoEConfig
from regions.moe.flops import feed_forward_flops, router_flops


def rule_of(config: MoEConfig, level: float, budget: float | None = None, spent: float = 0.0) -> rules.Rule:
    """The configured rule; `budget` stands for the configured one, `level` serves the rules that are steered.

    `spent` is the sum of the `pair_share`s of earlier layers of the same texts; only `sequence_budget` looks at it.

    Raises ValueError for a budget where the rule goes by the level.
    """
    bounds = (config.min_experts, config.max_experts)
    if config.rule in STEERED:
        if budget is not None:
            raise ValueError(f"the rule {config.rule} takes no budget; a BudgetController holds it to a share")
        return rules.TopP(level, *bounds) if config.rule == "top_p" else rules.RelativeThreshold(level, *bounds)
    middle = mean_count(config, budget)
    if config.rule == "top_k":
        return rules.TopK(max(config.min_experts, math.floor(middle + 0.5)))
    if config.rule == "sequence_budget":
        return rules.SequenceBudget(pair_share(config, budget), *bounds, spent)
    return rules.ComplexityK(middle, _reach(config, middle, budget), *bounds)


def mean_count(config: MoEConfig, budget: float | None = None) -> float:
    """How many experts a token gets on average: what the budget buys, or without one half-way through the range."""
    lowest, highest = float(config.min_experts), float(config.max_experts)
    budget = config.compute_budget if budget is None else budget
    if budget is None:
        return (lowest + highest) / 2
    return min(max(affordable(config, budget), lowest), highest)


def pair_share(config: MoEConfig, budget: float | None = None) -> float:
    """The share of all (token, expert) pairs that a budget buys."""
    return mean_count(config, budget) / config.experts


def affordable(config: MoEConfig, budget: float) -> float:
    """The mean number of experts that a share of the FLOPs of all of them buys, once the router is paid."""
    one = feed_forward_flops(1, config.width, config.hidden)
    total = budget * one * config.experts
    return (total - router_flops(1, config.width, config.experts)) / one


def _reach(config: MoEConfig, middle: float, budget: float | None) -> float:
    reach = min(middle - config.min_experts, config.max_experts - middle)
    if budget is None and config.compute_budget is None:
        return reach
    # A band of whole width is rounded without a bias: the mean stays at what the budget buys.
    return min(config.spread, math.floor(2 * reach) / 2)
