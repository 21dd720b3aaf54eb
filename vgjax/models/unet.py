"""A plain U-Net (Ronneberger et al. 2015), with group norm (Wu & He 2018) and half its input's resolution."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.models.layers import upsample_nearest


class UNet(nn.Module):
    """Pictures (B, H, W, 3) in [-1, 1] to logits of the lesion (B, H/2, W/2); every level halves the resolution."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x, skips = x_BHWC, []
        for width in self.widths:
            x = self._block(x, width, stride=2)
            x = self._block(x, width)
            skips.append(x)
        for skip in reversed(skips[:-1]):
            x = jnp.concatenate([upsample_nearest(x), skip], axis=-1)
            x = self._block(self._block(x, skip.shape[-1]), skip.shape[-1])
        return nn.Conv(1, (1, 1))(x)[..., 0]

    def _block(self, x: jax.Array, width: int, stride: int = 1) -> jax.Array:
        return nn.relu(nn.GroupNorm(num_groups=8)(nn.Conv(width, (3, 3), stride)(x)))
