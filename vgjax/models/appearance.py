"""Appearance of a picture by region: what L1 does not see and the modality vector therefore has to be asked for.

Colour means and band energies of an undecimated wavelet pyramid ("a trous", Starck & Murtagh 1994), each averaged over
lesion, background and the band between them. Averages are normalised by area, so they say how a picture looks, not
where its lesion lies.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

LEVELS = 3
REGIONS = 3  # lesion, background, boundary
STATISTICS = REGIONS * (3 + LEVELS)


def blur(x_BHWC: jax.Array, spacing: int = 1) -> jax.Array:
    """Binomial 5-tap blur with taps `spacing` pixels apart, edges repeated."""
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (2 * spacing, 2 * spacing)
        y = jnp.pad(x_BHWC, pad, mode="edge")
        size = x_BHWC.shape[axis]
        taps = [jax.lax.slice_in_dim(y, i * spacing, i * spacing + size, axis=axis) for i in range(5)]
        x_BHWC = (taps[0] + taps[4]) / 16 + (taps[1] + taps[3]) / 4 + taps[2] * 3 / 8
    return x_BHWC


def regions(lesion_BHW: jax.Array) -> jax.Array:
    """Averaging weights over space for lesion, background and boundary, (B, H, W, 3); each sums to 1, or 0 if empty."""
    p = jax.lax.stop_gradient(lesion_BHW)
    largest = lambda x: nn.max_pool(x[..., None], (3, 3), padding="SAME")[..., 0]
    outer, inner = largest(p), -largest(-p)
    masks = jnp.stack([inner, 1 - outer, outer - inner], axis=-1)
    return masks / (masks.sum(axis=(1, 2), keepdims=True) + 1e-3)


def statistics(x_BHWC: jax.Array, lesion_BHW: jax.Array) -> jax.Array:
    """Appearance statistics (B, STATISTICS) of pictures in [-1, 1]: colour means x 2, then log10 band energies."""
    weights = regions(lesion_BHW)
    colour = jnp.einsum("bhwr,bhwc->brc", weights, x_BHWC) * 2.0
    bands, x = [], x_BHWC
    for level in range(LEVELS):
        low = blur(x, 2**level)
        bands.append(((x - low) ** 2).mean(axis=-1))
        x = low
    energy = jnp.einsum("bhwr,bhwl->brl", weights, jnp.stack(bands, axis=-1))
    return jnp.concatenate([colour, jnp.log10(energy + 1e-5)], axis=-1).reshape(len(x_BHWC), -1)
