"""Classifier-free guidance as a function of named channels.

Ho & Salimans 2022, composed over two conditions as in Brooks et al. 2023, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# ((anatomy kept, modality kept), weight); a channel that is not kept uses its null.
Branch = tuple[tuple[bool, bool], float]


def branches(anatomy: float, modality: float) -> list[Branch]:
    """The combinations of kept channels to evaluate, with the weight of each; the weights sum to 1.

    out = e(-,-) + w_a [e(a,-) - e(-,-)] + w_m [e(a,m) - e(a,-)]; terms of weight 0 are left out.

    Args:
      anatomy, modality: guidance weights; 1 is no guidance, 0 ignores the channel.
    """
    terms = [((False, False), 1.0 - anatomy), ((True, False), anatomy - modality), ((True, True), modality)]
    return [(keep, weight) for keep, weight in terms if weight != 0.0]


def keep_masks(terms: Sequence[Branch], batch: int) -> tuple[jax.Array, jax.Array]:
    """(anatomy, modality) masks of all branches stacked along the batch, each (len(terms) * batch,) bool."""
    anatomy, modality = (jnp.repeat(jnp.array([keep[i] for keep, _ in terms]), batch) for i in (0, 1))
    return anatomy, modality


def combine(outputs: jax.Array, terms: Sequence[Branch]) -> jax.Array:
    """Weighted sum of the stacked branches: (len(terms) * B, ...) -> (B, ...)."""
    parts = outputs.reshape(len(terms), -1, *outputs.shape[1:])
    return jnp.einsum("t,tb...->b...", jnp.asarray([weight for _, weight in terms], outputs.dtype), parts)
