"""Between pictures and the latents that the transformer works on, behind one interface.

An autoencoder is a pytree whose leaves are its weights, so that compiled functions take it as an argument.
"""

from typing import Any, Protocol

import jax
from flax import struct


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
class TrainedAutoencoder:
    """That of latent diffusion or one of the TAESD family, with its weights."""

    module: Any = struct.field(pytree_node=False)
    variables: Any

    @property
    def channels(self) -> int:
        return self.module.latent_channels

    @property
    def factor(self) -> int:
        return self.module.factor

    def encode(self, image_BHWC: jax.Array) -> jax.Array:
        return self.module.apply(self.variables, image_BHWC, method="encode")

    def decode(self, latents_BHWC: jax.Array) -> jax.Array:
        return self.module.apply(self.variables, latents_BHWC, method="decode")
