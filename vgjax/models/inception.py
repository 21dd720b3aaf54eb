"""Inception-v3 (Szegedy et al. 2016) as it was released on 2015-12-05, the network that FID and IS are defined by.

It differs from later releases in its pools: averages leave the padding out, and the last block takes a maximum. Layers
are called as in the released graph.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from vgjax.models.layers import BatchNorm

SIDE = 299  # pixels of the pictures that the network was trained on
EPSILON = 1e-3  # of the batch norms


class Conv(NamedTuple):
    """A convolution: padded to keep the size, unless it strides."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch runs its steps in order; a pair of convolutions runs side by side, concatenated.
Step = Conv | tuple[Conv, Conv] | str
Branch = tuple[Step, ...]
AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"


def _block_a(pool: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (AVERAGE, Conv("branch_pool", pool)),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        (HALVE,),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _block_d() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (HALVE,),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(AVERAGE),
    "Mixed_7c": _block_e(MAXIMUM),
}


def resize(image_BHWC: chex.Array) -> chex.Array:
    """Pictures of any size at the network's, bilinearly between pixel centres and without a filter when shrinking."""
    batch, *_, channels = image_BHWC.shape
    return jax.image.resize(image_BHWC, (batch, SIDE, SIDE, channels), "bilinear", antialias=False)


def _pool(kind: str, x_BHWC: chex.Array) -> chex.Array:
    if kind == HALVE:
        return nn.max_pool(x_BHWC, (3, 3), (2, 2))
    around = ((1, 1), (1, 1))
    if kind == AVERAGE:
        return nn.avg_pool(x_BHWC, (3, 3), padding=around, count_include_pad=False)
    return nn.max_pool(x_BHWC, (3, 3), padding=around)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm by its running statistics, ReLU.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
      stride: along both axes.
      padded: keeps the size by zeros around the picture.
    """

    features: int
    size: tuple[int, int]
    stride: int
    padded: bool

    @nn.compact
    def __call__(self, x_BHWC: chex.Array) -> chex.Array:
        padding = "SAME" if self.padded else "VALID"
        strides = (self.stride, self.stride)
        x_BHWC = nn.Conv(self.features, self.size, strides, padding, use_bias=False, name="conv")(x_BHWC)
        return nn.relu(BatchNorm(epsilon=EPSILON, name="bn")(x_BHWC, train=False))


class Mixed(nn.Module):
    """Branches side by side, concatenated.

    Attributes:
      branches: what each of them does.
    """

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x_BHWC: chex.Array) -> chex.Array:
        outputs = []
        for branch in self.branches:
            y_BHWC = x_BHWC
            for step in branch:
                if isinstance(step, str):
                    y_BHWC = _pool(step, y_BHWC)
                else:
                    convs = (step,) if isinstance(step, Conv) else step
                    y_BHWC = jnp.concatenate(
                        [ConvNorm(c.features, c.size, c.stride, c.stride == 1, name=c.name)(y_BHWC) for c in convs], -1
                    )
            outputs.append(y_BHWC)
        return jnp.concatenate(outputs, -1)


class InceptionV3(nn.Module):
    """Pictures to features and class logits, with frozen statistics.

    Attributes:
      classes: of the logits.
    """

    classes: int = 1008

    @nn.compact
    def __call__(self, image_BHWC: chex.Array) -> tuple[chex.Array, chex.Array]:
        """Runs the network.

        Args:
          image_BHWC: RGB pictures in [-1, 1], `resize`d; at least 75 pixels a side.

        Returns:
          The features that FID compares ("pool3") of shape (B, 2048), and logits (B, classes).
        """
        x_BHWC = ConvNorm(32, (3, 3), 2, padded=False, name="Conv2d_1a_3x3")(image_BHWC)
        x_BHWC = ConvNorm(32, (3, 3), 1, padded=False, name="Conv2d_2a_3x3")(x_BHWC)
        x_BHWC = ConvNorm(64, (3, 3), 1, padded=True, name="Conv2d_2b_3x3")(x_BHWC)
        x_BHWC = _pool(HALVE, x_BHWC)
        x_BHWC = ConvNorm(80, (1, 1), 1, padded=False, name="Conv2d_3b_1x1")(x_BHWC)
        x_BHWC = ConvNorm(192, (3, 3), 1, padded=False, name="Conv2d_4a_3x3")(x_BHWC)
        x_BHWC = _pool(HALVE, x_BHWC)
        for name, branches in BLOCKS.items():
            x_BHWC = Mixed(branches, name=name)(x_BHWC)
        features_BD = x_BHWC.mean((1, 2))
        return features_BD, nn.Dense(self.classes, name="fc")(features_BD)
