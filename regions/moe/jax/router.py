"""`regions.moe.router` as a pure function of JAX arrays: the same scores, complexities, choices and weights.

Shapes: T tokens, E experts, D width, F inner width of an expert, Q quantiles.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regions.moe.config import MoEConfig
from regions.moe.jax.rules import choose
from regions.moe.layer import MoELayer
from regions.moe.selection import rule_of

EPSILON = float(np.finfo(np.float32).eps)


class Weights(NamedTuple):
    """All that a layer knows, as a pytree: what `MoELayer` has under the same names."""

    weight_ED: Array
    bias_E: Array
    balance_E: Array
    level: Array
    quantiles_Q: Array
    mean_D: Array
    scale_D: Array
    up_EFD: Array
    up_bias_EF: Array
    down_EDF: Array
    down_bias_ED: Array

    @classmethod
    def of(cls, layer: MoELayer) -> Self:
        """Copies those of a torch layer, in float32."""
        state = {name.rpartition(".")[2]: value for name, value in layer.state_dict().items()}
        return cls(**{name: jnp.array(state[name].float().cpu().numpy()) for name in cls._fields})


class Routing(NamedTuple):
    """The decision for T tokens, as `regions.moe.router.Routing`."""

    scores_TE: Array
    chosen_TE: Array
    weights_TE: Array
    complexity_T: Array
    failed_T: Array


def scores(weights: Weights, config: MoEConfig, x_TD: Array, noise_key: Array | None = None) -> Array:
    """scores_TE in float32; `noise_key` draws the noise of training, where the configuration asks for any."""
    x_TD = x_TD.astype(jnp.float32)
    if config.scorer == "linear":
        square_T1 = jnp.square(x_TD).mean(axis=1, keepdims=True)
        x_TD = x_TD * jax.lax.rsqrt(square_T1 + EPSILON)
    scores_TE = x_TD @ weights.weight_ED.T + weights.bias_E
    if noise_key is None:
        return scores_TE
    return scores_TE + config.noise * jax.random.normal(noise_key, scores_TE.shape)


def complexity(weights: Weights, config: MoEConfig, x_TD: Array, scores_TE: Array) -> Array:
    """complexity_T in [0, 1]: the estimator's figure by its rank among the quantiles of the calibration."""
    raw_T = _estimate(weights, config, x_TD.astype(jnp.float32), scores_TE)
    sorted_Q = weights.quantiles_Q
    above_T = jnp.clip(jnp.searchsorted(sorted_Q, raw_T), 1, len(sorted_Q) - 1)
    low_T, high_T = sorted_Q[above_T - 1], sorted_Q[above_T]
    inside_T = jnp.clip((raw_T - low_T) / jnp.maximum(high_T - low_T, 1e-12), 0.0, 1.0)
    return (above_T - 1 + inside_T) / (len(sorted_Q) - 1)


def _estimate(weights: Weights, config: MoEConfig, x_TD: Array, scores_TE: Array) -> Array:
    if config.estimator == "input":
        return jnp.square((x_TD - weights.mean_D) / weights.scale_D).mean(axis=1)
    if config.estimator == "mass":
        return jax.nn.logsumexp(scores_TE, axis=1)
    if config.experts == 1:
        return jnp.zeros(len(scores_TE))
    logs_TE = jax.nn.log_softmax(scores_TE, axis=1)
    return jnp.clip(-(jnp.exp(logs_TE) * logs_TE).sum(axis=1) / math.log(config.experts), 0.0, 1.0)


def route(
    weights: Weights, config: MoEConfig, x_TD: Array, scores_TE: Array, *, budget: float | None, lengths: Sequence[int]
) -> Routing:
    """The routing that these scores ask for; nobody is chosen for a token whose scores are not finite."""
    failed_T = ~jnp.isfinite(scores_TE).all(axis=1)
    safe_TE = jnp.where(failed_T[:, None], 0.0, scores_TE)
    complexity_T = complexity(weights, config, jax.lax.stop_gradient(x_TD), jax.lax.stop_gradient(safe_TE))
    # Under `jit` the level is a traced value; the rules only compute with it.
    rule = rule_of(config, weights.level, budget)  # type: ignore[arg-type]
    ranking_TE = jax.lax.stop_gradient(safe_TE) + weights.balance_E
    chosen_TE = choose(rule, ranking_TE, complexity_T, lengths) & ~failed_T[:, None]
    return Routing(scores_TE, chosen_TE, gate_weights(config, safe_TE, chosen_TE), complexity_T, failed_T)


def gate_weights(config: MoEConfig, scores_TE: Array, chosen_TE: Array) -> Array:
    """weights_TE of the chosen experts: a softmax over them alone, or one each; 0 for the others."""
    if config.gate == "unit":
        return chosen_TE.astype(scores_TE.dtype)
    nobody_T1 = ~chosen_TE.any(axis=1, keepdims=True)
    return jnp.where(chosen_TE, jax.nn.softmax(jnp.where(chosen_TE | nobody_T1, scores_TE, -jnp.inf), axis=1), 0.0)
