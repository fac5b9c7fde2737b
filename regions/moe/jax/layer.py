"""`regions.moe.layer` as a pure function of JAX arrays, for `jit` and `grad`.

Compiled shapes are fixed, so what a token does not choose is masked. The back end `ragged` sorts (token, expert) pairs
and multiplies by `jax.lax.ragged_dot`, from which a compiler may leave out the pairs that nobody chose.

Shapes: T tokens, E experts, D width, F inner width of an expert, N pairs.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from regions.moe.config import MoEConfig
from regions.moe.flops import feed_forward_flops, router_flops
from regions.moe.jax.router import Routing, Weights, gate_weights, route, scores
from regions.moe.selection import mean_count

Backend = Literal["dense", "ragged"]


class Output(NamedTuple):
    """What one forward gave. `flops_T` (int32) is what the routing asks for, router included; `loss` as in training."""

    y_TD: Array
    routing: Routing
    flops_T: Array
    utilisation_E: Array
    loss: Array


@partial(jax.jit, static_argnames=("config", "budget", "lengths", "backend"))
def forward(
    weights: Weights,
    config: MoEConfig,
    x_TD: Array,
    budget: float | None = None,
    lengths: tuple[int, ...] | None = None,
    *,
    key: Array | None = None,
    noise_key: Array | None = None,
    backend: Backend = "dense",
) -> Output:
    """Runs T tokens of texts of `lengths` (one, unless given); a change of `config`, `budget` or lengths compiles anew.

    `key` serves the fallback `random`, `noise_key` the noise of training. Compiled code cannot raise: where a router
    fails and `config.resilience` is off, the token's result is NaN, and `routing.failed_T` tells.
    """
    scores_TE = scores(weights, config, x_TD, noise_key)
    lengths = (len(x_TD),) if lengths is None else lengths
    routing = route(weights, config, x_TD, scores_TE, budget=budget, lengths=lengths)
    if config.resilience:
        routing = _stand_in(routing, config, max(1, round(mean_count(config, budget))), key)
    run = _ragged if backend == "ragged" else _dense
    y_TD = run(weights, x_TD, routing)
    if not config.resilience:
        y_TD = jnp.where(routing.failed_T[:, None], jnp.nan, y_TD)
    one = feed_forward_flops(1, config.width, config.hidden)
    return Output(
        y_TD=y_TD,
        routing=routing,
        flops_T=router_flops(1, config.width, config.experts) + one * routing.chosen_TE.sum(axis=1),
        utilisation_E=routing.chosen_TE.sum(axis=0),
        loss=auxiliary_loss(config, scores_TE, routing.chosen_TE),
    )


def auxiliary_loss(config: MoEConfig, scores_TE: Array, chosen_TE: Array) -> Array:
    """The losses of `regions.moe.losses`, weighed as the configuration says."""
    load_E = chosen_TE.astype(jnp.float32).sum(axis=0)
    share_E = load_E / jnp.maximum(load_E.sum(), 1)
    balance = config.experts * (share_E * jax.nn.softmax(scores_TE, axis=1).mean(axis=0)).sum()
    z_loss = jnp.square(jax.nn.logsumexp(scores_TE, axis=1)).mean()
    return config.balance_weight * balance + config.z_weight * z_loss


def _dense(weights: Weights, x_TD: Array, routing: Routing) -> Array:
    inner_TEF = jnp.einsum("td,efd->tef", x_TD, weights.up_EFD) + weights.up_bias_EF
    weighed_TEF = jax.nn.gelu(inner_TEF, approximate=False) * routing.weights_TE[:, :, None]
    return jnp.einsum("tef,edf->td", weighed_TEF, weights.down_EDF) + routing.weights_TE @ weights.down_bias_ED


def _ragged(weights: Weights, x_TD: Array, routing: Routing) -> Array:
    """Pairs by expert, chosen ones first; the groups end where those do, and what follows counts nothing."""
    tokens, experts = routing.chosen_TE.shape
    columns_N = jnp.arange(tokens * experts) // tokens
    group_N = jnp.where(routing.chosen_TE.T.reshape(-1), columns_N, experts)
    order_N = jnp.argsort(group_N, stable=True)
    token_N, expert_N = order_N % tokens, order_N // tokens
    counts_E = routing.chosen_TE.sum(axis=0)
    inner_NF = jax.lax.ragged_dot(x_TD[token_N], weights.up_EFD.transpose(0, 2, 1), counts_E)
    inner_NF = jax.nn.gelu(inner_NF + weights.up_bias_EF[expert_N], approximate=False)
    y_ND = jax.lax.ragged_dot(inner_NF, weights.down_EDF.transpose(0, 2, 1), counts_E)
    y_ND = (y_ND + weights.down_bias_ED[expert_N]) * routing.weights_TE[token_N, expert_N, None]
    return jnp.zeros_like(x_TD).at[token_N].add(y_ND)


def _stand_in(routing: Routing, config: MoEConfig, count: int, key: Array | None) -> Routing:
    """As `regions.moe.fallback.stand_in`."""
    failed_T1 = routing.failed_T[:, None]
    spare_TE = _spare(routing.failed_T, config, count, key)
    chosen_TE = jnp.where(failed_T1, spare_TE, routing.chosen_TE)
    even_TE = gate_weights(config, jnp.zeros(chosen_TE.shape), spare_TE)
    return routing._replace(
        chosen_TE=chosen_TE,
        weights_TE=jnp.where(failed_T1, even_TE, routing.weights_TE),
        complexity_T=jnp.where(routing.failed_T, 1.0, routing.complexity_T),
    )


def _spare(failed_T: Array, config: MoEConfig, count: int, key: Array | None) -> Array:
    """chosen_TE as if every token had failed."""
    tokens, experts = len(failed_T), config.experts
    if config.fallback == "dense":
        return jnp.ones((tokens, experts), dtype=bool)
    if config.fallback == "single_expert":
        return jnp.tile(jnp.arange(experts) == 0, (tokens, 1))
    if config.fallback == "load_balance":
        first_T = (jnp.cumsum(failed_T) - 1) * count
        return (jnp.arange(experts) - first_T[:, None]) % experts < count
    if key is None:
        raise ValueError("the fallback random needs a key to draw from")
    return jnp.argsort(jnp.argsort(jax.random.uniform(key, (tokens, experts)), axis=1), axis=1) < count
