"""Layers shared by the networks of stages 1 and 2, with the numerical conventions of torch.

Images are NHWC. Convolutions carry biases and are initialised Xavier-normal, as the published system does. Compute
follows the promoted dtype of input and parameters, so the same modules run in float32 and in float64.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from vgjax.models.lora import COLLECTION

# torch's variance epsilon, shared by batch norm and by the parameterless AdaIN.
VARIANCE_EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running statistics that one step keeps; torch's momentum is one minus this

# Flax's own xavier_normal cuts the normal off at two standard deviations; torch's does not.
xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def conv(
    features: int, kernel_size: int = 3, stride: int = 1, use_bias: bool = True, name: str | None = None
) -> nn.Conv:
    """A square convolution padded by half its kernel on every side, whatever the stride.

    This is torch's `padding=kernel_size // 2`. Flax's "SAME" pads a strided convolution on the far side only, which
    would shift every feature map by a pixel against weights trained elsewhere.
    """
    size, pad = (kernel_size, kernel_size), ((kernel_size // 2,) * 2,) * 2
    return nn.Conv(features, size, stride, pad, use_bias=use_bias, kernel_init=xavier_normal, name=name)


def dense(features: int, name: str | None = None) -> nn.Dense:
    """A linear layer, Xavier-normal with zero bias."""
    return nn.Dense(features, kernel_init=xavier_normal, name=name)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's running statistics.

    The batch is normalised by its biased variance, while the running variance accumulates the *unbiased* one; flax's
    own layer stores the biased one in both places. Under `jit` with a sharded batch the statistics are those of the
    global batch. Statistics are taken in float32 at least.
    """

    epsilon: float = VARIANCE_EPSILON

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        """Normalises x of shape (..., C), by its own statistics in training, which also updates `batch_stats`.

        Raises:
          ValueError: a training batch with one value a channel, which has no variance.
        """
        channels, axes = x.shape[-1], tuple(range(x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))

        features = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = running_mean.value, running_var.value
        if train:
            count, mean, var = x.size // channels, features.mean(axes), features.var(axes)
            if not self.is_initializing():
                if count < 2:
                    raise ValueError(f"batch norm {'/'.join(self.path)}: one value a channel in a batch {x.shape}")
                for running, new in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                    running.value = MOMENTUM * running.value + (1 - MOMENTUM) * new
        gain = jax.lax.rsqrt(var + self.epsilon) * scale
        mean, gain, bias = (jnp.expand_dims(a, axes) for a in (mean, gain, bias))
        return ((features - mean) * gain + bias).astype(x.dtype)


class ConvBlock(nn.Module):
    """(conv 3x3 - batch norm - ReLU) twice."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: chex.Array, train: bool) -> chex.Array:
        for i in (1, 2):
            x_BHWC = nn.relu(BatchNorm(name=f"norm{i}")(conv(self.features, name=f"conv{i}")(x_BHWC), train))
        return x_BHWC


def plain_layer_norm(x: chex.Array) -> chex.Array:
    """LayerNorm without scale and bias, over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)


def attention(q_BNhd: chex.Array, k_BLhd: chex.Array, v_BLhd: chex.Array, mask_BL: chex.Array | None) -> chex.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), (B, N, heads, d).

    The softmax runs in float32 at least; unlike `jax.nn.dot_product_attention`'s it stays in float64 for float64
    inputs, which comparisons with other implementations need.

    Args:
      mask_BL: False for keys that nobody may look at; None: all are looked at.
    """
    logits = jnp.einsum("bnhd,blhd->bhnl", q_BNhd, k_BLhd) * q_BNhd.shape[-1] ** -0.5
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mask_BL is not None:
        logits = jnp.where(mask_BL[:, None, None].astype(bool), logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("bhnl,blhd->bnhd", jax.nn.softmax(logits).astype(v_BLhd.dtype), v_BLhd)


def text_attention(
    x_BLD: chex.Array,
    mask_BL: chex.Array,
    heads: int,
    linear: Callable[..., nn.Dense],
    bias_1NLL: chex.Array | None = None,
    scale: float | None = None,
) -> chex.Array:
    """Self-attention of a language model, as wide as its projections, which become layers of the calling module.

    Args:
      mask_BL: False for padding.
      linear: a projection, given its name.
      bias_1NLL: added to the scores of each head.
      scale: factor of the scores; None: one over the root of a head's width.
    """
    q, k, v = (linear(name=name)(x_BLD).reshape(*x_BLD.shape[:2], heads, -1) for name in ("query", "key", "value"))
    attended = jax.nn.dot_product_attention(q, k, v, bias_1NLL, mask_BL[:, None, None, :], scale=scale)
    return attended.reshape(*x_BLD.shape[:2], -1)


def stack(layer: Callable[..., nn.Module], depth: int, unroll: int = 1) -> Callable[..., nn.Module]:
    """`depth` layers in a row as one scan over stacked parameters; all inputs but the first go to each of them."""
    return nn.scan(
        layer,
        {"params": 0, COLLECTION: 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
        unroll=unroll,
    )


def max_pool_2x2(x_BHWC: chex.Array) -> chex.Array:
    """Maximum over disjoint 2x2 windows: (B, H, W, C) -> (B, H/2, W/2, C). Among equals the first gets the gradient."""
    return nn.max_pool(x_BHWC, window_shape=(2, 2), strides=(2, 2))


def upsample_nearest(x_BHWC: chex.Array) -> chex.Array:
    """Repeats every pixel twice along both spatial axes: (B, H, W, C) -> (B, 2H, 2W, C)."""
    b, h, w, c = x_BHWC.shape
    return jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def adain(content_BHWC: chex.Array, style_BZ: chex.Array) -> chex.Array:
    """Adaptive instance normalisation without learned weights.

    Every channel of every sample is normalised over space, then scaled by the standard deviation and shifted by the
    mean *over the Z entries* of that sample's style: two scalars a sample. All variances are unbiased, plus 1e-5.

    Args:
      content_BHWC: features to restyle; the result has their shape.
      style_BZ: style vectors, Z >= 2.
    """
    chex.assert_rank([content_BHWC, style_BZ], [4, 2])
    mean = content_BHWC.mean((1, 2), keepdims=True)
    var = content_BHWC.var((1, 2), ddof=1, keepdims=True)
    style_mean = style_BZ.mean(1)[:, None, None, None]
    style_std = jnp.sqrt(style_BZ.var(1, ddof=1) + VARIANCE_EPSILON)[:, None, None, None]
    return (content_BHWC - mean) * jax.lax.rsqrt(var + VARIANCE_EPSILON) * style_std + style_mean


def straight_through_gumbel_softmax(
    logits: chex.Array, gumbel_noise: chex.Array | None = None, tau: float = 1.0
) -> chex.Array:
    """One-hot sample over the last axis whose gradient is that of the softmax (Jang et al. 2017, section 2.2).

    Args:
      logits: unnormalised log-probabilities (..., K), the shape of the result, which is exactly one-hot.
      gumbel_noise: standard Gumbel noise of the same shape (`jax.random.gumbel`); None gives the deterministic mode.
      tau: temperature of the softmax that the gradient sees.
    """
    if gumbel_noise is not None:
        chex.assert_equal_shape([logits, gumbel_noise])
        logits = logits + gumbel_noise
    soft = jax.nn.softmax(logits / tau, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=soft.dtype)
    # The bracket is exactly zero in the forward pass, so the sample stays one-hot to the last bit.
    return hard + (soft - jax.lax.stop_gradient(soft))
