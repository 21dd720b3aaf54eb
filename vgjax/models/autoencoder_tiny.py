"""TAESD and its relatives: small distilled stand-ins for the autoencoders of larger diffusion models.

Original weights: github.com/madebyollin/taesd (MIT). Both halves are plain sequences of convolutions and residual
blocks, which the weights themselves describe; a layer keeps its place in the original's sequence as its name.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vgjax.models.layers import conv, upsample_nearest

# The decoder squashes latents smoothly to +- this.
LATENT_BOUND = 3.0
POOL_GROUPS = 4
POOL_WIDENING = 4
POOL_EPSILON = 1e-5


class Layer(NamedTuple):
    """A layer with weights, of an original sequence."""

    place: int  # its index there, counting the layers without weights
    features: int
    block: bool  # a residual block; else a convolution
    pool: bool = False  # the block mixes in globally normalised features first


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU between them beside a skip, then ReLU."""

    features: int
    pool: bool = False

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.pool:
            width = x_BHWC.shape[-1]
            y = conv(POOL_WIDENING * width, 1, use_bias=False, name="pool_0")(x_BHWC)
            y = nn.GroupNorm(POOL_GROUPS, epsilon=POOL_EPSILON, use_fast_variance=False, name="pool_1")(y)
            x_BHWC = x_BHWC + conv(width, 1, use_bias=False, name="pool_3")(nn.relu(y))
        y = nn.relu(conv(self.features, name="conv_0")(x_BHWC))
        y = nn.relu(conv(self.features, name="conv_2")(y))
        y = conv(self.features, name="conv_4")(y)
        same = x_BHWC.shape[-1] == self.features
        return nn.relu(y + (x_BHWC if same else conv(self.features, 1, use_bias=False, name="skip")(x_BHWC)))


class TinyHalf(nn.Module):
    """The encoder, from a picture in [0, 1] to latents, or the decoder back.

    A convolution between the first and the last halves the resolution in the encoder; in the decoder it follows a
    doubling.
    """

    layers: tuple[Layer, ...]
    decodes: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = LATENT_BOUND * jnp.tanh(x_BHWC / LATENT_BOUND) if self.decodes else x_BHWC
        for position, layer in enumerate(self.layers):
            name = f"layers_{layer.place}"
            if layer.block:
                x = TinyBlock(layer.features, layer.pool, name=name)(x)
            elif position in (0, len(self.layers) - 1):
                x = conv(layer.features, name=name)(x)
                x = nn.relu(x) if self.decodes and position == 0 else x
            elif self.decodes:
                x = conv(layer.features, use_bias=False, name=name)(upsample_nearest(x))
            else:
                x = conv(layer.features, stride=2, use_bias=False, name=name)(x)
        return x


class AutoencoderTiny(nn.Module):
    """Encoder and decoder without any randomness, whose latents have about unit scale as they are."""

    encoder_layers: tuple[Layer, ...]
    decoder_layers: tuple[Layer, ...]

    @property
    def latent_channels(self) -> int:
        return self.encoder_layers[-1].features

    @property
    def image_channels(self) -> int:
        return self.decoder_layers[-1].features

    @property
    def factor(self) -> int:
        """Picture pixels a latent pixel, along one side."""
        return 2 ** sum(not layer.block for layer in self.encoder_layers[1:-1])

    def setup(self) -> None:
        self.encoder, self.decoder = TinyHalf(self.encoder_layers, False), TinyHalf(self.decoder_layers, True)

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        """Latents (B, h, w, c) of pictures in [-1, 1]."""
        return self.encoder((image_BHWC + 1.0) / 2.0)

    def decode(self, latents_Bhwc: jax.Array) -> jax.Array:
        """Pictures (B, H, W, C) about in [-1, 1]."""
        return self.decoder(latents_Bhwc) * 2.0 - 1.0

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """The picture rebuilt from its latents."""
        return self.decode(self.encode(image_BHWC))
