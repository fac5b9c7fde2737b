"""A layer without a budget of its own is held to a share, also when its tokens change, and serves at what was found."""

from dataclasses import replace

import pytest
import torch

from regions.moe.budget import BudgetController
from regions.moe.config import MoEConfig
from regions.moe.layer import MoELayer

CONFIG = replace(MoEConfig.for_training(), width=384, hidden=96, min_experts=1, max_experts=16)


def layer_of(**changed) -> MoELayer:
    config = replace(CONFIG, **changed)
    return MoELayer(config, torch.Generator().manual_seed(0)).eval().requires_grad_(requires_grad=False)


def steps(layer, controller, x_TD, count, generator):
    """Shares of forwards over random quarters of the tokens, each followed by an observation."""
    shares = []
    for _ in range(count):
        quarter = torch.randperm(len(x_TD), generator=generator)[: len(x_TD) // 4]
        shares.append(layer(x_TD[quarter]).share)
        controller.observe(shares[-1])
    return shares


@pytest.mark.parametrize("rule", ["top_p", "relative_threshold"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_share_is_held_on_real_text_and_after_a_drift(rule, share, hidden_states):
    layer = layer_of(rule=rule)
    controller = BudgetController(layer.router, share)
    generator = torch.Generator().manual_seed(0)
    steps(layer, controller, hidden_states, 60, generator)
    held = steps(layer, controller, hidden_states, 30, generator)
    assert sum(held) / len(held) == pytest.approx(share, abs=0.02)
    layer.router.weight_ED.mul_(2)  # as training makes a router surer
    jump = steps(layer, controller, hidden_states, 1, generator)[0]
    assert abs(jump - share) > 0.03
    steps(layer, controller, hidden_states, 60, generator)
    held = steps(layer, controller, hidden_states, 30, generator)
    assert sum(held) / len(held) == pytest.approx(share, abs=0.02)


def test_the_level_is_saved_with_the_layer(hidden_states):
    layer, other = layer_of(rule="top_p"), layer_of(rule="top_p")
    controller = BudgetController(layer.router, 0.3)
    steps(layer, controller, hidden_states, 60, torch.Generator().manual_seed(0))
    other.load_state_dict(layer.state_dict())
    assert layer(hidden_states).share == other(hidden_states).share == pytest.approx(0.3, abs=0.02)


def test_a_share_out_of_reach_is_left_again_at_once(hidden_states):
    """As the largest count allows no more than a quarter, the level must not run away while more is asked for."""
    layer = layer_of(rule="top_p", max_experts=4)
    generator = torch.Generator().manual_seed(0)
    steps(layer, BudgetController(layer.router, 0.9), hidden_states, 300, generator)
    shares = steps(layer, BudgetController(layer.router, 0.15), hidden_states, 60, generator)
    assert shares[0] == pytest.approx(0.25, abs=0.03)
    assert shares[-1] == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"^share is"):
        BudgetController(layer_of(rule="top_p").router, share)


@pytest.mark.parametrize("rule", ["top_p", "relative_threshold"])
def test_a_rule_that_is_steered_takes_no_budget(rule):
    with pytest.raises(ValueError, match=f"the rule {rule} takes no budget"):
        layer_of(rule=rule)(torch.zeros(2, 384), 0.5)
    with pytest.raises(ValueError, match="compute_budget is set"):
        replace(CONFIG, rule=rule, compute_budget=0.5)
