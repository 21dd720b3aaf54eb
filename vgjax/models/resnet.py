"""ResNet-18 (He et al. 2016, table 1) for pictures of about 64 pixels: a 3 x 3 stem of stride 2, and no pool behind."""

import chex
from flax import linen as nn

from vgjax.models.layers import BatchNorm, conv


class Block(nn.Module):
    """Two convolutions around which a shortcut leads, projected where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: chex.Array, train: bool) -> chex.Array:
        def layer(x: chex.Array, name: str, size: int, stride: int) -> chex.Array:
            x = conv(self.features, size, stride, use_bias=False, name=f"conv{name}")(x)
            return BatchNorm(name=f"norm{name}")(x, train)

        inside = layer(nn.relu(layer(x_BHWC, "1", 3, self.stride)), "2", 3, 1)
        changes = self.stride > 1 or x_BHWC.shape[-1] != self.features
        return nn.relu(inside + (layer(x_BHWC, "_shortcut", 1, self.stride) if changes else x_BHWC))


class ResNet18(nn.Module):
    """Pictures in [-1, 1] to features: `width` channels in the first of four levels, each twice those of the last."""

    width: int = 64

    @nn.compact
    def __call__(self, image_BHWC: chex.Array, train: bool) -> chex.Array:
        """Means over space, (B, 8 width)."""
        stem = conv(self.width, stride=2, use_bias=False, name="conv")(image_BHWC)
        x_BHWC = nn.relu(BatchNorm(name="norm")(stem, train))
        for level in range(4):
            for place in range(2):
                stride = 2 if level and not place else 1
                x_BHWC = Block(self.width << level, stride, name=f"level{level}_{place}")(x_BHWC, train)
        return x_BHWC.mean((1, 2))
