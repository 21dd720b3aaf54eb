"""VGG-19 features up to relu3_1 for the perceptual term (Simonyan & Zisserman 2015; Johnson et al. 2016, eq. 2)."""

from collections.abc import Mapping
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from vgjax.models.layers import conv, max_pool_2x2

# Channels of each level's convolutions; a pool stands before every level but the first.
WIDTHS = ((64, 64), (128, 128), (256,))
# ImageNet statistics of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VGG19Features(nn.Module):
    """Pictures to their features at relu3_1."""

    @nn.compact
    def __call__(self, image_BHWC: chex.Array) -> chex.Array:
        """Features (B, H / 4, W / 4, 256) of RGB pictures in [-1, 1]."""
        mean, std = (jnp.asarray(values, image_BHWC.dtype)[None, None, None] for values in (MEAN, STD))
        x_BHWC = ((image_BHWC + 1.0) / 2.0 - mean) / std
        for level, widths in enumerate(WIDTHS, start=1):
            if level > 1:
                x_BHWC = max_pool_2x2(x_BHWC)
            for place, features in enumerate(widths, start=1):
                x_BHWC = nn.relu(conv(features, name=f"conv{level}_{place}")(x_BHWC))
        return x_BHWC


def perceptual(variables: Mapping[str, Any], image_BHWC: chex.Array, target_BHWC: chex.Array) -> chex.Array:
    """Mean absolute difference of the features of two batches of pictures, (B,)."""
    one, other = (jnp.asarray(VGG19Features().apply(variables, x)) for x in (image_BHWC, target_BHWC))
    return jnp.abs(one - other).mean((1, 2, 3))
