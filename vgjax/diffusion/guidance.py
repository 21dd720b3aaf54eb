"""Classifier-free guidance over named channels.

Ho & Salimans 2022, composed over several conditions as in Brooks et al. 2023, eq. 3, for channels c_1 ... c_n in order:

    out = e() + sum_i w_i [e(c_1 ... c_i) - e(c_1 ... c_{i-1})]

e(c_1 ... c_k) is the network's output where those channels are kept and the others replaced by their nulls: a branch.
Which branches run is decided before compilation; their coefficients are traced, so that changing a weight recompiles
nothing.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Guidance(NamedTuple):
    """What a guided step evaluates.

    Attributes:
      channels: of the condition, in its order (static).
      kept: for each branch, how many of the leading channels it keeps (static).
      coefficients: factor of each branch, (len(kept),); they sum to 1.
    """

    channels: tuple[str, ...]
    kept: tuple[int, ...]
    coefficients: jax.Array


def _all_coefficients(weights: Mapping[str, float]) -> list[float]:
    """Of the branches that keep 0, 1, ... n channels: w_k - w_{k+1} with w_0 = 1 and w_{n+1} = 0."""
    return [w - after for w, after in itertools.pairwise((1.0, *weights.values(), 0.0))]


def branches(weights: Mapping[str, float]) -> tuple[int, ...]:
    """The branches whose coefficient is not zero, for weights of channels in the condition's order.

    1 is no guidance, 0 ignores the channel. A weight of 1 for the first channel drops the branch without any, a weight
    of 0 for the last one the branch with all, and equal weights of neighbours the branch between them.
    """
    return tuple(k for k, value in enumerate(_all_coefficients(weights)) if value)


def coefficients(kept: tuple[int, ...], weights: Mapping[str, float]) -> list[float]:
    """The coefficient of each branch.

    Raises:
      ValueError: the weights need a branch that is not among `kept`.
    """
    if missing := set(branches(weights)) - set(kept):
        raise ValueError(
            f"guidance weights {dict(weights)} need the branches that keep {sorted(missing)} channels, but only"
            f" {list(kept)} were compiled: build the sampler with weights that need them"
        )
    values = _all_coefficients(weights)
    return [values[k] for k in kept]


def keep_masks(guided: Guidance, batch: int) -> dict[str, jax.Array]:
    """Channel -> whether each row of all branches, stacked along the batch, keeps it: (len(kept) * batch,) bool."""
    kept = jnp.repeat(jnp.array(guided.kept), batch)
    return {name: place < kept for place, name in enumerate(guided.channels)}


def combine(outputs: jax.Array, coefficients_T: jax.Array) -> jax.Array:
    """Weighted sum of the stacked branches: (T * B, ...) -> (B, ...)."""
    parts = outputs.reshape(len(coefficients_T), -1, *outputs.shape[1:])
    return jnp.einsum("t,tb...->b...", coefficients_T.astype(outputs.dtype), parts)
