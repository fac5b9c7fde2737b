"""The rules of `regions.moe.rules` over JAX arrays; under `jit`, lengths and all figures but the level are static.

Shapes: T tokens in texts that lie end to end, E experts, L tokens of one text.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regions.moe.rules import ComplexityK, RelativeThreshold, Rule, SequenceBudget, TopK, TopP


def choose(rule: Rule, scores_TE: Array, complexity_T: Array, lengths: Sequence[int]) -> Array:
    """chosen_TE, a mask, from finite scores. Raises TypeError for a rule that is not one of those."""
    if isinstance(rule, TopK):
        return places(scores_TE) < rule.count
    if isinstance(rule, TopP):
        falling_TE = jnp.sort(jax.nn.softmax(scores_TE, axis=1), axis=1, descending=True)
        wanted_TE = jnp.cumsum(falling_TE, axis=1) - falling_TE < rule.mass
    elif isinstance(rule, RelativeThreshold):
        wanted_TE = scores_TE >= scores_TE.max(axis=1, keepdims=True) + jnp.log(rule.ratio)
    elif isinstance(rule, SequenceBudget):
        wanted_TE = _highest(scores_TE, rule, lengths)
        if rule.lowest == 0 and rule.highest >= scores_TE.shape[1]:
            return wanted_TE
    elif isinstance(rule, ComplexityK):
        count_T = jnp.round(rule.middle + rule.reach * (2 * complexity_T - 1))
        wanted_TE = jnp.arange(scores_TE.shape[1]) < count_T[:, None]
    else:
        raise TypeError(f"there is no rule {type(rule).__name__} in JAX")
    count_T = jnp.clip(wanted_TE.sum(axis=1), rule.lowest, rule.highest)
    return places(scores_TE) < count_T[:, None]


def places(scores_TE: Array) -> Array:
    """place_TE of each expert among those of its token, 0 for the highest score; equal ones in order of the experts."""
    return jnp.argsort(jnp.argsort(scores_TE, axis=1, descending=True, stable=True), axis=1)


def _highest(scores_TE: Array, rule: SequenceBudget, lengths: Sequence[int]) -> Array:
    """Marks the highest of each text's scores; of equal ones the first."""
    parts, start = [], 0
    for length in lengths:
        values_P = scores_TE[start : start + length].reshape(-1)
        pairs = int(rule.pairs(np.array([values_P.size]))[0])
        place_P = jnp.argsort(jnp.argsort(values_P, descending=True, stable=True))
        parts.append((place_P < pairs).reshape(length, -1))
        start += length
    return jnp.concatenate(parts)
