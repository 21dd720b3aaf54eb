"""Inception-v3 (Szegedy et al. 2016) as it was released on 2015-12-05, the network that FID and IS are defined by.

It differs from later releases in its pools: averages leave the padding out, and the last block takes a maximum. Layers
are called as in the released graph.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vgjax.models.layers import BatchNorm

SIDE = 299  # pixels of the pictures that the network was trained on
EPSILON = 1e-3  # of the batch norms
SQUARE, ROW, COLUMN = (3, 3), (1, 7), (7, 1)  # height and width of kernels

AVERAGE = functools.partial(nn.avg_pool, window_shape=SQUARE, padding="SAME", count_include_pad=False)
MAXIMUM = functools.partial(nn.max_pool, window_shape=SQUARE, padding="SAME")
HALVE = functools.partial(nn.max_pool, window_shape=SQUARE, strides=(2, 2))


class Conv(NamedTuple):
    """A convolution: padded to keep the size, unless it strides or is not `padded`."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


# A branch runs its steps in order: pools, convolutions, and pairs of them side by side, concatenated.
Step = Conv | tuple[Conv, Conv] | Callable[[chex.Array], chex.Array]
Branch = tuple[Step, ...]


def _chain(name: str, *convs: tuple) -> Branch:
    """Convolutions in order, called `name`_1 and so on."""
    return tuple(Conv(f"{name}_{place}", *conv) for place, conv in enumerate(convs, start=1))


def _fork(name: str) -> tuple[Conv, Conv]:
    return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))


def _block_a(pool: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        _chain("branch5x5", (48,), (64, (5, 5))),
        _chain("branch3x3dbl", (64,), (96, SQUARE), (96, SQUARE)),
        (AVERAGE, Conv("branch_pool", pool)),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        _chain("branch7x7", (inner,), (inner, ROW), (192, COLUMN)),
        _chain("branch7x7dbl", (inner,), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _block_e(pool: Step) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), _fork("branch3x3_2")),
        (*_chain("branch3x3dbl", (448,), (384, SQUARE)), _fork("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, SQUARE, 2),
    Conv("Conv2d_2a_3x3", 32, SQUARE, padded=False),
    Conv("Conv2d_2b_3x3", 64, SQUARE),
    HALVE,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, SQUARE, padded=False),
    HALVE,
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, SQUARE, 2),),
        _chain("branch3x3dbl", (64,), (96, SQUARE), (96, SQUARE, 2)),
        (HALVE,),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        _chain("branch3x3", (192,), (320, SQUARE, 2)),
        _chain("branch7x7x3", (192,), (192, ROW), (192, COLUMN), (192, SQUARE, 2)),
        (HALVE,),
    ),
    "Mixed_7b": _block_e(AVERAGE),
    "Mixed_7c": _block_e(MAXIMUM),
}


def resize(image_BHWC: chex.Array) -> chex.Array:
    """Uint8 pictures of any size as the released graph takes them: at the network's size, in [-1, 1).

    Bilinear between the corners of pixels at the top left, without a filter when shrinking, as TensorFlow 1 did; ports
    that count from pixel centres (pytorch-fid) find other distances.
    """
    weights = []
    for count in image_BHWC.shape[1:3]:
        places, rows = np.arange(SIDE) * count / SIDE, np.zeros((SIDE, count), np.float32)
        for side, share in ((0, 1 - places % 1), (1, places % 1)):
            np.add.at(rows, (np.arange(SIDE), np.minimum(places.astype(int) + side, count - 1)), share)
        weights.append(rows)
    return (jnp.einsum("ih,jw,bhwc->bijc", *weights, image_BHWC.astype(jnp.float32)) - 128.0) / 128.0


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm by its running statistics, ReLU."""

    conv: Conv

    @nn.compact
    def __call__(self, x_BHWC: chex.Array) -> chex.Array:
        c = self.conv
        padding = "SAME" if c.padded and c.stride == 1 else "VALID"
        x_BHWC = nn.Conv(c.features, c.size, (c.stride, c.stride), padding, use_bias=False, name="conv")(x_BHWC)
        return nn.relu(BatchNorm(epsilon=EPSILON, name="bn")(x_BHWC, train=False))


def _run(branch: Branch, x_BHWC: chex.Array) -> chex.Array:
    """What a branch makes of features; its layers become those of the calling module."""
    for step in branch:
        if callable(step):
            x_BHWC = step(x_BHWC)
        else:
            convs = (step,) if isinstance(step, Conv) else step
            x_BHWC = jnp.concatenate([ConvNorm(conv, name=conv.name)(x_BHWC) for conv in convs], -1)
    return x_BHWC


class Mixed(nn.Module):
    """Branches side by side, concatenated."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x_BHWC: chex.Array) -> chex.Array:
        return jnp.concatenate([_run(branch, x_BHWC) for branch in self.branches], -1)


class InceptionV3(nn.Module):
    """Pictures to features and class logits, with frozen statistics."""

    classes: int = 1008

    @nn.compact
    def __call__(self, image_BHWC: chex.Array) -> tuple[chex.Array, chex.Array]:
        """The features that FID compares ("pool3"), (B, 2048), and logits (B, classes).

        Args:
          image_BHWC: `resize`d RGB pictures; at least 75 pixels a side.
        """
        x_BHWC = _run(STEM, image_BHWC)
        for name, branches in BLOCKS.items():
            x_BHWC = Mixed(branches, name=name)(x_BHWC)
        features_BD = x_BHWC.mean((1, 2))
        return features_BD, nn.Dense(self.classes, name="fc")(features_BD)
