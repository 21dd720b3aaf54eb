"""The variational autoencoder of latent diffusion (Rombach et al. 2022, appendix G), in the layout of diffusers.

B batch, H W C picture, h w latent grid, N = h w, D channels inside.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from vgjax.models.layers import conv, upsample_nearest

EPSILON = 1e-6
# Bounds of the log-variance, so that its exponential stays finite.
LOGVAR_RANGE = (-30.0, 20.0)


def _norm(groups: int, name: str) -> nn.GroupNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where a group's mean is large.
    return nn.GroupNorm(groups, epsilon=EPSILON, use_fast_variance=False, name=name)


class ResnetBlock(nn.Module):
    """Twice (GroupNorm - SiLU - conv 3x3) beside the identity, or beside a 1x1 conv where the channels change."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        y = x_BHWC
        for i in (1, 2):
            y = conv(self.features, name=f"conv{i}")(nn.silu(_norm(self.groups, f"norm{i}")(y)))
        same = x_BHWC.shape[-1] == self.features
        return y + (x_BHWC if same else conv(self.features, 1, name="conv_shortcut")(x_BHWC))


class SpatialAttention(nn.Module):
    """Residual self-attention over all pixels, one head as wide as the channels."""

    groups: int

    @nn.compact
    def __call__(self, x_BhwD: jax.Array) -> jax.Array:
        batch, _, _, width = x_BhwD.shape
        y_BND = _norm(self.groups, "group_norm")(x_BhwD).reshape(batch, -1, width)
        q, k, v = (nn.Dense(width, name=name)(y_BND) for name in ("to_q", "to_k", "to_v"))
        weights_BNN = nn.softmax(q @ k.mT * width**-0.5)
        return x_BhwD + nn.Dense(width, name="to_out")(weights_BNN @ v).reshape(x_BhwD.shape)


class MiddleBlock(nn.Module):
    """What stands at the lowest resolution of either side: residual block, attention, residual block."""

    groups: int
    attention: bool

    @nn.compact
    def __call__(self, x_BhwD: jax.Array) -> jax.Array:
        width = x_BhwD.shape[-1]
        x = ResnetBlock(width, self.groups, name="resnet_0")(x_BhwD)
        if self.attention:
            x = SpatialAttention(self.groups, name="attention")(x)
        return ResnetBlock(width, self.groups, name="resnet_1")(x)


class Half(nn.Module):
    """The encoder, picture (B, H, W, C) to moments (B, h, w, out_channels), or the decoder, latents to a picture.

    Every level but the last halves the resolution, or doubles it; `widths` lists the levels as they follow one another.
    """

    widths: Sequence[int]
    blocks: int
    out_channels: int
    groups: int
    attention: bool
    decodes: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        middle = MiddleBlock(self.groups, self.attention, name="middle")
        x = conv(self.widths[0], name="conv_in")(x_BHWC)
        if self.decodes:
            x = middle(x)
        for level, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = ResnetBlock(width, self.groups, name=f"level_{level}_resnet_{block}")(x)
            sampler = f"level_{level}_sampler"
            if level < len(self.widths) - 1 and self.decodes:
                x = conv(width, name=sampler)(upsample_nearest(x))
            elif level < len(self.widths) - 1:
                # Padded below and on the right only, as the weights were trained.
                x = nn.Conv(width, (3, 3), 2, ((0, 1), (0, 1)), name=sampler)(x)
        if not self.decodes:
            x = middle(x)
        return conv(self.out_channels, name="conv_out")(nn.silu(_norm(self.groups, "conv_norm_out")(x)))


class AutoencoderKL(nn.Module):
    """Encoder to a diagonal Gaussian over latents, and decoder."""

    widths: Sequence[int]  # channels of each level, finest first
    blocks: int  # residual blocks a level of the encoder; the decoder has one more
    latent_channels: int
    image_channels: int = 3
    groups: int = 32  # of every group norm
    attention: bool = True  # in the middle blocks
    quant: bool = True  # a 1x1 convolution follows the encoder
    post_quant: bool = True  # one precedes the decoder
    # (mean - shift) * scale has unit variance over the original's training data.
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def factor(self) -> int:
        """Picture pixels a latent pixel, along one side."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        widths, c = tuple(self.widths), self.latent_channels
        shared = (self.groups, self.attention)
        self.encoder = Half(widths, self.blocks, 2 * c, *shared, decodes=False)
        self.decoder = Half(widths[::-1], self.blocks + 1, self.image_channels, *shared, decodes=True)
        self.quant_conv = nn.Conv(2 * c, (1, 1)) if self.quant else lambda x: x
        self.post_quant_conv = nn.Conv(c, (1, 1)) if self.post_quant else lambda x: x

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        """Latents (B, h, w, c) of pictures in [-1, 1]: the posterior's mean, brought to unit variance."""
        return (self.posterior(image_BHWC)[0] - self.shift_factor) * self.scaling_factor

    def posterior(self, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the Gaussian that the weights make of a picture, each (B, h, w, c)."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(image_BHWC)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents_Bhwc: jax.Array) -> jax.Array:
        """Pictures (B, H, W, C) about in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents_Bhwc / self.scaling_factor + self.shift_factor))

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """The picture rebuilt from its latents."""
        return self.decode(self.encode(image_BHWC))
