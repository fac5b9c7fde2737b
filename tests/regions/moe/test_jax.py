"""The layer in JAX does what the layer in torch does: outputs, choices, figures, losses, gradients and fallbacks.

Shapes: T tokens, E experts, D width.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regions.moe.config import STEERED, MoEConfig
from regions.moe.jax.layer import forward
from regions.moe.jax.router import Weights
from regions.moe.jax.rules import choose
from regions.moe.layer import MoELayer
from regions.moe.rules import SequenceBudget

SMALL = MoEConfig(width=24, hidden=16, experts=6, min_experts=1, max_experts=4, balance_weight=0.5, z_weight=0.25)
LENGTHS = (5, 1, 11, 7)
RULES = ["complexity_k", "top_k", "top_p", "relative_threshold", "sequence_budget"]


def layer_of(config: MoEConfig, seed: int = 0) -> MoELayer:
    """A layer in which nothing is zero or one by default."""
    generator = torch.Generator().manual_seed(seed)
    layer = MoELayer(config, generator).requires_grad_(requires_grad=False)
    for name, value in layer.named_parameters():
        if "bias" in name:
            value.normal_(generator=generator)
    layer.router.balance_E.normal_(generator=generator)
    layer.router.calibrate(torch.randn(200, config.width, generator=generator))
    return layer


def tokens(config: MoEConfig = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), config.width, generator=torch.Generator().manual_seed(seed))


def close(actual, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected.detach().numpy(), atol=tolerance, rtol=tolerance)


def both(config, x_TD, budget=None, backend="dense", seed=0):
    layer = layer_of(config, seed)
    expected = layer(x_TD, budget, lengths=LENGTHS)
    actual = forward(Weights.of(layer), config, jnp.array(x_TD.numpy()), budget, LENGTHS, backend=backend)
    return actual, expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("gate", "scorer", "estimator"), [("softmax", "linear", "entropy"), ("unit", "norm", "input")])
@pytest.mark.parametrize("backend", ["dense", "ragged"])
def test_equals_torch(rule, gate, scorer, estimator, backend):
    config = replace(SMALL, rule=rule, gate=gate, scorer=scorer, estimator=estimator)
    for seed, budget in ((0, None), (1, None if rule in STEERED else 0.3)):
        actual, expected = both(config, tokens(seed=seed), budget, backend, seed)
        close(actual.y_TD, expected.y_TD)
        assert np.array_equal(actual.routing.chosen_TE, expected.routing.chosen_TE.numpy())
        close(actual.routing.weights_TE, expected.routing.weights_TE)
        close(actual.routing.complexity_T, expected.routing.complexity_T, 1e-4)
        assert actual.flops_T.tolist() == expected.flops_T.tolist()
        assert actual.utilisation_E.tolist() == expected.utilisation_E.tolist()
        close(actual.loss, expected.loss)


@pytest.mark.parametrize("config", [MoEConfig.for_inference(), MoEConfig.for_training()])
def test_the_profiles_equal_torch(config):
    actual, expected = both(replace(config, estimator="mass"), tokens(config))
    close(actual.y_TD, expected.y_TD, 1e-4)
    assert np.array_equal(actual.routing.chosen_TE, expected.routing.chosen_TE.numpy())


def never():
    raise AssertionError("this rule has no use for complexities")


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1), bounds=st.tuples(st.integers(0, 6), st.integers(0, 6)), seed=st.integers(0, 99))
def test_texts_with_equal_scores_are_decided_alike(share, bounds, seed):
    rule = SequenceBudget(share, min(bounds), max(bounds))
    scores_TE = torch.randint(4, (sum(LENGTHS), 6), generator=torch.Generator().manual_seed(seed)).float()
    chosen_TE = choose(rule, jnp.array(scores_TE.numpy()), jnp.zeros(len(scores_TE)), LENGTHS)
    assert np.array_equal(chosen_TE, rule.choose(scores_TE, never, LENGTHS).numpy())


@pytest.mark.parametrize("backend", ["dense", "ragged"])
def test_gradients_equal_those_of_torch(backend):
    layer, x_TD = layer_of(SMALL).requires_grad_(), tokens()
    output = layer(x_TD)
    (output.y_TD.square().sum() + output.loss).backward()

    def objective(weights):
        output = forward(weights, SMALL, jnp.array(x_TD.numpy()), backend=backend)
        return jnp.square(output.y_TD).sum() + output.loss

    gradient = jax.grad(objective)(Weights.of(layer))
    close(gradient.weight_ED, layer.router.weight_ED.grad, 1e-3)
    close(gradient.up_EFD, layer.experts.up_EFD.grad, 1e-3)
    close(gradient.down_EDF, layer.experts.down_EDF.grad, 1e-3)
    close(gradient.down_bias_ED, layer.experts.down_bias_ED.grad, 1e-3)


@pytest.mark.parametrize("fallback", ["dense", "load_balance", "single_expert", "random"])
def test_tokens_that_the_router_fails_on_get_the_fallback(fallback):
    config = replace(SMALL, fallback=fallback)
    layer, x_TD = layer_of(config), tokens()
    x_TD[[2, 3, 9]] = torch.inf
    expected = layer(x_TD, generator=torch.Generator().manual_seed(0)).routing
    key = jax.random.key(0)
    actual = forward(Weights.of(layer), config, jnp.array(x_TD.numpy()), key=key).routing
    assert np.array_equal(actual.failed_T, expected.failed_T.numpy())
    assert int(expected.failed_T.sum()) == 3
    assert actual.complexity_T[2] == 1
    if fallback == "random":  # other generators, other draws: only how many is the same
        assert actual.chosen_TE.sum(axis=1).tolist() == expected.chosen_TE.sum(dim=1).tolist()
        with pytest.raises(ValueError, match="needs a key"):
            forward(Weights.of(layer), config, jnp.array(x_TD.numpy()))
    else:
        assert np.array_equal(actual.chosen_TE, expected.chosen_TE.numpy())
        close(actual.weights_TE, expected.weights_TE)


def test_without_resilience_a_failed_token_is_nan_and_only_that():
    config = replace(SMALL, resilience=False)
    x_TD = tokens()
    x_TD[4] = torch.nan
    y_TD = forward(Weights.of(layer_of(config)), config, jnp.array(x_TD.numpy())).y_TD
    assert np.flatnonzero(np.isnan(y_TD).any(axis=1)).tolist() == [4]


def test_noise_moves_scores_by_what_is_configured():
    config = replace(SMALL, noise=0.5)
    weights, x_TD = Weights.of(layer_of(config)), jnp.array(tokens().numpy())
    quiet = forward(weights, config, x_TD).routing.scores_TE
    noisy = forward(weights, config, x_TD, noise_key=jax.random.key(1)).routing.scores_TE
    assert float((noisy - quiet).std()) == pytest.approx(0.5, abs=0.1)
