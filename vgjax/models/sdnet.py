"""Stage 1: the visual prior, a spatial decomposition network (SDNet, Chartsias et al. 2019).

It splits an image in [-1, 1] into an anatomy map, where every pixel picks one of K factors, and a modality vector of Z
numbers, and rebuilds the image from the two. These are the networks of the published system, layer for layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from vgjax.models.layers import (
    BatchNorm,
    ConvBlock,
    adain,
    conv,
    dense,
    max_pool_2x2,
    straight_through_gumbel_softmax,
    upsample_nearest,
)


@struct.dataclass
class PriorOutput:
    """Everything that the stage-1 losses look at; "tilde" is what is read back from the rebuilt image."""

    anatomy_BHWK: chex.Array  # one-hot
    segmentation_BHWS: chex.Array  # class probabilities, background first
    mu_BZ: chex.Array  # mean of the modality posterior
    logvar_BZ: chex.Array  # its log-variance
    z_BZ: chex.Array  # the modality sample that the image was rebuilt from
    reconstruction_BHWC: chex.Array  # in [-1, 1]
    anatomy_tilde_BHWK: chex.Array
    mu_tilde_BZ: chex.Array
    # The maps that leave stage 1 as anatomy: the anatomy map; in the default the lesion's probability as one more,
    # which text knows most about.
    structure_BHWF: chex.Array


class BottleneckBlock(nn.Module):
    """Residual block of the U-Net's lowest level: twice (ReLU - conv 3x3 - norm), plus ReLU - conv 1x1 - norm."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: chex.Array, train: bool) -> chex.Array:
        y_BHWC = x_BHWC
        for i in (1, 2):
            y_BHWC = BatchNorm(name=f"norm{i}")(conv(self.features, name=f"conv{i}")(nn.relu(y_BHWC)), train)
        skip_BHWC = conv(self.features, kernel_size=1, name="conv_skip")(nn.relu(x_BHWC))
        return y_BHWC + BatchNorm(name="norm_skip")(skip_BHWC, train)


class UpConv(nn.Module):
    """Nearest-neighbour upsampling by two, then conv 3x3 and norm without activation."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: chex.Array, train: bool) -> chex.Array:
        return BatchNorm(name="norm")(conv(self.features, name="conv")(upsample_nearest(x_BHWC)), train)


class AnatomyEncoder(nn.Module):
    """U-Net from images in [-1, 1] to anatomy logits (B, H, W, K); the bottleneck has twice the last of the `widths`.

    Raises:
      ValueError: height or width does not halve evenly once a level.
    """

    anatomy_factors: int
    widths: Sequence[int]

    @nn.compact
    def __call__(self, image_BHWC: chex.Array, train: bool) -> chex.Array:
        divisor = 2 ** len(self.widths)
        height, width = image_BHWC.shape[1:3]
        if height % divisor or width % divisor:
            raise ValueError(f"the anatomy encoder got {height}x{width} pixels, not divisible by {divisor}")
        x_BHWC = image_BHWC
        skips = []
        for level, features in enumerate(self.widths, start=1):
            skips.append(ConvBlock(features, name=f"encoder_block{level}")(x_BHWC, train))
            x_BHWC = max_pool_2x2(skips[-1])
        x_BHWC = BottleneckBlock(2 * self.widths[-1], name="bottleneck")(x_BHWC, train)
        for step, (features, skip_BHWC) in enumerate(zip(reversed(self.widths), reversed(skips), strict=True), start=1):
            x_BHWC = UpConv(features, name=f"decoder_upconv{step}")(x_BHWC, train)
            x_BHWC = jnp.concatenate([x_BHWC, skip_BHWC], axis=-1)
            x_BHWC = ConvBlock(features, name=f"decoder_block{step}")(x_BHWC, train)
        return conv(self.anatomy_factors, name="classifier_conv")(x_BHWC)


class ModalityEncoder(nn.Module):
    """Anatomy map and image to mean and log-variance of the modality posterior, each (B, Z).

    The linear layer reads a flattened map, so its parameters fit one image size.
    """

    modality_factors: int
    widths: Sequence[int]
    hidden_dim: int

    @nn.compact
    def __call__(self, anatomy_BHWK: chex.Array, image_BHWC: chex.Array, train: bool) -> tuple[chex.Array, chex.Array]:
        x_BHWC = jnp.concatenate([anatomy_BHWK, image_BHWC], axis=-1)
        for block, features in enumerate(self.widths, start=1):
            x_BHWC = conv(features, stride=2, name=f"conv{block}")(x_BHWC)
            x_BHWC = nn.leaky_relu(BatchNorm(name=f"norm{block}")(x_BHWC, train), 0.2)
        # Channels lead in the flattened order, so that weights trained on NCHW maps fit.
        flat = x_BHWC.transpose(0, 3, 1, 2).reshape(x_BHWC.shape[0], -1)
        hidden = nn.leaky_relu(BatchNorm(name="norm")(dense(self.hidden_dim, name="fc")(flat), train), 0.03)
        return dense(self.modality_factors, name="mu")(hidden), dense(self.modality_factors, name="logvar")(hidden)


class Segmentor(nn.Module):
    """Anatomy map to class probabilities (B, H, W, classes), background first."""

    classes: int
    features: int

    @nn.compact
    def __call__(self, anatomy_BHWK: chex.Array, train: bool) -> chex.Array:
        x_BHWC = ConvBlock(self.features, name="block")(anatomy_BHWK, train)
        return nn.softmax(conv(self.classes, kernel_size=1, name="pred")(x_BHWC))


class Decoder(nn.Module):
    """Anatomy map and modality vector to image: AdaIN - conv 3x3 - ReLU for each width, then AdaIN - conv - tanh."""

    widths: Sequence[int]
    channels: int

    @nn.compact
    def __call__(self, anatomy_BHWK: chex.Array, z_BZ: chex.Array) -> chex.Array:
        x_BHWC = anatomy_BHWK
        for step, features in enumerate(self.widths, start=1):
            x_BHWC = nn.relu(conv(features, name=f"conv{step}")(adain(x_BHWC, z_BZ)))
        return nn.tanh(conv(self.channels, name=f"conv{len(self.widths) + 1}")(adain(x_BHWC, z_BZ)))


class SDNet(nn.Module):
    """The four networks of the visual prior and the two ways to run them together."""

    anatomy_factors: int = 8  # K
    modality_factors: int = 8  # Z
    unet_widths: Sequence[int] = (64, 128, 256, 512)  # finest level first
    modality_widths: Sequence[int] = (16, 32, 64, 128)
    modality_hidden_dim: int = 32
    segmentor_features: int = 64
    decoder_widths: Sequence[int] = (128, 64, 32)
    image_channels: int = 3
    classes: int = 2

    def setup(self) -> None:
        self.anatomy_encoder = AnatomyEncoder(self.anatomy_factors, self.unet_widths)
        self.modality_encoder = ModalityEncoder(self.modality_factors, self.modality_widths, self.modality_hidden_dim)
        self.segmentor = Segmentor(self.classes, self.segmentor_features)
        self.decoder = Decoder(self.decoder_widths, self.image_channels)

    @property
    def structure_channels(self) -> int:
        """Maps that leave stage 1 as anatomy."""
        return self.anatomy_factors

    def __call__(self, image_BHWC: chex.Array) -> PriorOutput:
        """Deterministic pass: running statistics, no noise, z = mu; nothing is read back from the rebuilt image."""
        return self._rebuild(image_BHWC, None, None)

    def noisy_pass(
        self, image_BHWC: chex.Array, lesion_BHW: chex.Array, key: chex.PRNGKey, restyle: Any
    ) -> tuple[PriorOutput, dict[str, chex.Array]]:
        """`training_pass` with noise drawn from `key`; no further loss term, and no use of the others, as published."""
        keys = jax.random.split(key, 3)
        shape = (*image_BHWC.shape[:3], self.anatomy_factors)
        gumbel_1, gumbel_2 = jax.random.gumbel(keys[0], shape), jax.random.gumbel(keys[1], shape)
        eps = jax.random.normal(keys[2], (len(image_BHWC), self.modality_factors))
        return self.training_pass(image_BHWC, gumbel_1, gumbel_2, eps), {}

    def training_pass(
        self, image_BHWC: chex.Array, gumbel_1_BHWK: chex.Array, gumbel_2_BHWK: chex.Array, eps_1_BZ: chex.Array
    ) -> PriorOutput:
        """Rebuilds the images, in [-1, 1], and reads the factors back from the result.

        Both encoders run twice, so their running statistics (collection `batch_stats`, to be made mutable) take two
        steps; the segmentor's take one.

        Args:
          gumbel_1_BHWK, gumbel_2_BHWK: standard Gumbel noise of the first anatomy pass, and of that on the result.
          eps_1_BZ: standard normal noise of the modality sample.

        Raises:
          ValueError: the image size does not fit the levels, or the batch holds one image.
        """
        output = self._rebuild(image_BHWC, gumbel_1_BHWK, eps_1_BZ)
        again_BHWC = output.reconstruction_BHWC
        anatomy_BHWK = straight_through_gumbel_softmax(self.anatomy_encoder(again_BHWC, True), gumbel_2_BHWK)
        mu_BZ, _ = self.modality_encoder(anatomy_BHWK, again_BHWC, True)
        return dataclasses.replace(output, anatomy_tilde_BHWK=anatomy_BHWK, mu_tilde_BZ=mu_BZ)

    def _rebuild(
        self, image_BHWC: chex.Array, gumbel_BHWK: chex.Array | None, eps_BZ: chex.Array | None
    ) -> PriorOutput:
        """Once through the networks, in training where there is noise; nothing is read back yet."""
        train = eps_BZ is not None
        anatomy_BHWK = straight_through_gumbel_softmax(self.anatomy_encoder(image_BHWC, train), gumbel_BHWK)
        segmentation_BHWS = self.segmentor(anatomy_BHWK, train)
        mu_BZ, logvar_BZ = self.modality_encoder(anatomy_BHWK, image_BHWC, train)
        z_BZ = mu_BZ if eps_BZ is None else mu_BZ + eps_BZ * jnp.exp(0.5 * logvar_BZ)
        return PriorOutput(
            anatomy_BHWK=anatomy_BHWK,
            segmentation_BHWS=segmentation_BHWS,
            mu_BZ=mu_BZ,
            logvar_BZ=logvar_BZ,
            z_BZ=z_BZ,
            reconstruction_BHWC=self.decoder(anatomy_BHWK, z_BZ),
            anatomy_tilde_BHWK=anatomy_BHWK,
            mu_tilde_BZ=mu_BZ,
            structure_BHWF=anatomy_BHWK,
        )
