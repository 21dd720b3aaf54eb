"""Between pictures and the latents that the transformer works on, behind one interface.

An autoencoder is a pytree whose leaves are its weights, so that compiled functions take it as an argument.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
from flax import struct

from vgjax.models.autoencoder_kl import AutoencoderKL
from vgjax.models.autoencoder_tiny import AutoencoderTiny


class Autoencoder(Protocol):
    """Pictures (B, H, W, 3) in [-1, 1] to latents (B, H / factor, W / factor, channels) of unit scale, and back."""

    @property
    def channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    def encode(self, image_BHWC: jax.Array) -> jax.Array: ...

    def decode(self, latents_BHWC: jax.Array) -> jax.Array: ...


@struct.dataclass
class PixelAutoencoder:
    """None: the latents are the pictures, doubled, since pictures seldom fill their range."""

    channels: int = struct.field(pytree_node=False, default=3)
    factor: int = struct.field(pytree_node=False, default=1)
    scale: float = struct.field(pytree_node=False, default=2.0)

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        return image_BHWC * self.scale

    def decode(self, latents_BHWC: jax.Array) -> jax.Array:
        return latents_BHWC / self.scale


@struct.dataclass
class _Trained:
    module: AutoencoderKL | AutoencoderTiny = struct.field(pytree_node=False)
    variables: Any

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.module.latent_channels

    @property
    def factor(self) -> int:
        """Picture pixels a latent pixel, along one side."""
        return self.module.factor

    def _apply(self, method: str, x: jax.Array) -> Any:
        return self.module.apply(self.variables, x, method=method)


@struct.dataclass
class KLAutoencoder(_Trained):
    """That of latent diffusion: the mean of its Gaussian, brought to unit variance by the weights' own scale."""

    module: AutoencoderKL = struct.field(pytree_node=False)

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        mean, _ = self._apply("encode", image_BHWC)
        return (mean - self.module.shift_factor) * self.module.scaling_factor

    def decode(self, latents_BHWC: jax.Array) -> jax.Array:
        return self._apply("decode", latents_BHWC / self.module.scaling_factor + self.module.shift_factor)


@struct.dataclass
class TinyAutoencoder(_Trained):
    """One of the TAESD family, whose latents have about unit scale as they are."""

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        return self._apply("encode", image_BHWC)

    def decode(self, latents_BHWC: jax.Array) -> jax.Array:
        return self._apply("decode", latents_BHWC)
