"""What follows the transformer in the default.

Each patch is drawn by its own token; two small convolutions over the whole picture then let neighbours agree on outline
and grain, which a small transformer trained for minutes does not learn through attention.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.models.layers import plain_layer_norm

STEP = 0.1  # scale of the correction


class Refine(nn.Module):
    """Adds a correction, zero at first, made from the noisy input and the transformer's output."""

    width: int

    @nn.compact
    def __call__(self, output_BHWC: jax.Array, x_BHWC: jax.Array, condition_BD: jax.Array) -> jax.Array:
        """The transformer's output for the noisy x, corrected.

        Args:
          condition_BD: timestep and style; scales and shifts each channel (Perez et al. 2018, "FiLM").
        """
        # Unchecked, the gradient of these layers is tens of times the transformer's and clipping starves the latter:
        # hence the norms, the stopped gradient and the small step.
        h = jnp.concatenate([x_BHWC, jax.lax.stop_gradient(output_BHWC)], axis=-1)
        condition = plain_layer_norm(condition_BD)
        for i in range(2):
            h = nn.Conv(self.width, (3, 3), name=f"conv{i}")(h)
            film = nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros, name=f"film{i}")(condition)
            scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
            h = nn.silu(plain_layer_norm(h) * (1 + scale) + shift)
        correction = nn.Conv(output_BHWC.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name="out")(h)
        return output_BHWC + STEP * correction


def spread(x_BhwC: jax.Array, factor: int) -> jax.Array:
    """Channels to space: (B, h, w, factor^2 C) -> (B, factor h, factor w, C)."""
    b, h, w, channels = x_BhwC.shape
    x = x_BhwC.reshape(b, h, w, factor, factor, channels // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, -1)
