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


class Encoder(nn.Module):
    """Picture (B, H, W, C) to moments (B, h, w, out_channels); every level but the last halves the resolution."""

    widths: Sequence[int]
    blocks: int
    out_channels: int
    groups: int
    attention: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = conv(self.widths[0], name="conv_in")(x_BHWC)
        for level, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = ResnetBlock(width, self.groups, name=f"level_{level}_resnet_{block}")(x)
            if level < len(self.widths) - 1:
                # Padded below and on the right only, as the weights were trained.
                x = nn.Conv(width, (3, 3), 2, ((0, 1), (0, 1)), name=f"level_{level}_sampler")(x)
        x = MiddleBlock(self.groups, self.attention, name="middle")(x)
        return conv(self.out_channels, name="conv_out")(nn.silu(_norm(self.groups, "conv_norm_out")(x)))


class Decoder(nn.Module):
    """Latents (B, h, w, c) to picture (B, H, W, out_channels); `widths` lists the lowest resolution first."""

    widths: Sequence[int]
    blocks: int
    out_channels: int
    groups: int
    attention: bool

    @nn.compact
    def __call__(self, x_Bhwc: jax.Array) -> jax.Array:
        x = conv(self.widths[0], name="conv_in")(x_Bhwc)
        x = MiddleBlock(self.groups, self.attention, name="middle")(x)
        for level, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = ResnetBlock(width, self.groups, name=f"level_{level}_resnet_{block}")(x)
            if level < len(self.widths) - 1:
                x = conv(width, name=f"level_{level}_sampler")(upsample_nearest(x))
        return conv(self.out_channels, name="conv_out")(nn.silu(_norm(self.groups, "conv_norm_out")(x)))


class AutoencoderKL(nn.Module):
    """Encoder to a diagonal Gaussian over latents, and decoder.

    Attributes:
      widths: channels of each level, finest first.
      blocks: residual blocks a level of the encoder; the decoder has one more.
      latent_channels: channels of the latents.
      image_channels: channels of the pictures.
      groups: groups of every group norm.
      attention: whether the middle blocks attend.
      quant, post_quant: whether a 1x1 convolution follows the encoder, and one precedes the decoder.
      scaling_factor, shift_factor: (mean - shift) * scale has unit variance over the original's training data.
    """

    widths: Sequence[int]
    blocks: int
    latent_channels: int
    image_channels: int = 3
    groups: int = 32
    attention: bool = True
    quant: bool = True
    post_quant: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def factor(self) -> int:
        """Picture pixels a latent pixel, along one side."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        widths, c = tuple(self.widths), self.latent_channels
        self.encoder = Encoder(widths, self.blocks, 2 * c, self.groups, self.attention)
        self.decoder = Decoder(widths[::-1], self.blocks + 1, self.image_channels, self.groups, self.attention)
        self.quant_conv = nn.Conv(2 * c, (1, 1)) if self.quant else None
        self.post_quant_conv = nn.Conv(c, (1, 1)) if self.post_quant else None

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        """Latents (B, h, w, c) of pictures in [-1, 1]: the posterior's mean, brought to unit variance."""
        return (self.posterior(image_BHWC)[0] - self.shift_factor) * self.scaling_factor

    def posterior(self, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the Gaussian that the weights make of a picture, each (B, h, w, c)."""
        moments = self.encoder(image_BHWC)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents_Bhwc: jax.Array) -> jax.Array:
        """Pictures (B, H, W, C) about in [-1, 1]."""
        latents_Bhwc = latents_Bhwc / self.scaling_factor + self.shift_factor
        if self.post_quant_conv is not None:
            latents_Bhwc = self.post_quant_conv(latents_Bhwc)
        return self.decoder(latents_Bhwc)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """The picture rebuilt from its latents."""
        return self.decode(self.encode(image_BHWC))
