"""Estimators of complexity: they vary on real text, keep to [0, 1], and rank the way they say.

Shapes: T tokens, E experts, D width.
"""

from dataclasses import replace

import pytest
import torch

from regions.moe.complexity import Complexity, entropy, gradient_norm, mass, rank
from regions.moe.config import MoEConfig
from regions.moe.layer import MoELayer


def test_entropy_is_0_for_a_certain_and_1_for_an_even_choice():
    assert entropy(torch.tensor([[50.0, 0.0, 0.0], [2.0, 2.0, 2.0]])).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert entropy(torch.tensor([[3.0]])).tolist() == [0.0]


def test_mass_adds_contributions():
    assert float(mass(torch.tensor([[2.0, 6.0]]).log()).exp()[0]) == pytest.approx(8.0)


def test_ranks_are_places_among_the_quantiles():
    assert rank(torch.tensor([-1.0, 0.0, 1.5, 2.0, 9.0]), torch.tensor([0.0, 1.0, 2.0])).tolist() == [0, 0, 0.75, 1, 1]


def test_unusual_inputs_are_complex():
    generator = torch.Generator().manual_seed(0)
    usual_TD = torch.randn(500, 16, generator=generator) + 3
    complexity = Complexity("input", 16)
    scores_TE = torch.zeros(500, 4)
    complexity.calibrate(usual_TD, scores_TE)
    assert float(complexity(usual_TD, scores_TE).mean()) == pytest.approx(0.5, abs=0.02)
    far_TD = usual_TD + 10
    assert complexity(far_TD, scores_TE).tolist() == [1.0] * 500


def test_the_gradient_norm_is_that_of_each_token():
    x_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = (x_TD * torch.tensor([[3.0, 4.0], [0.0, 1.0]])).sum()
    assert gradient_norm(loss, x_TD).tolist() == [5.0, 1.0]


@pytest.mark.parametrize("estimator", ["entropy", "mass", "input"])
def test_complexity_varies_on_real_text_and_moves_the_count(estimator, hidden_states):
    config = replace(MoEConfig.for_inference(), width=384, estimator=estimator)
    layer = MoELayer(config, torch.Generator().manual_seed(0)).eval().requires_grad_(requires_grad=False)
    half = len(hidden_states) // 2
    layer.router.calibrate(hidden_states[:half])
    routing = layer(hidden_states[half:]).routing
    assert 0 <= float(routing.complexity_T.min()) <= float(routing.complexity_T.max()) <= 1
    assert float(routing.complexity_T.std()) > 0.05
    assert len(routing.chosen_TE.sum(dim=1).unique()) == 3


def test_gradients_vary_on_real_text(hidden_states):
    layer = MoELayer(replace(MoEConfig.for_training(), width=384), torch.Generator().manual_seed(0))
    x_TD = hidden_states[:200].clone().requires_grad_()
    norm_T = gradient_norm(layer(x_TD).y_TD.square().mean(), x_TD)
    ranked_T = rank(norm_T, norm_T.sort().values)
    assert float(norm_T.std() / norm_T.mean()) > 0.05
    assert float(ranked_T.std()) > 0.05
