"""Between pictures and the latents that the transformer works on, behind one interface."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax

from vgjax.config import Autoencoder as AutoencoderConfig


class Autoencoder(Protocol):
    """Pictures (B, H, W, 3) in [-1, 1] to latents (B, H / factor, W / factor, channels) of unit scale, and back."""

    @property
    def channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    def encode(self, image_BHWC: jax.Array) -> jax.Array: ...

    def decode(self, latents_BHWC: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class PixelAutoencoder:
    """None: the latents are the pictures, doubled, since pictures seldom fill their range."""

    channels: int = 3
    factor: int = 1
    scale: float = 2.0

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        return image_BHWC * self.scale

    def decode(self, latents_BHWC: jax.Array) -> jax.Array:
        return latents_BHWC / self.scale


def make_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that the config names."""
    return {"pixel": PixelAutoencoder}[config.kind]()
