"""DINOv2's vision transformer (Oquab et al. 2024), with or without register tokens (Darcet et al. 2024)."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vgjax.models.layers import stack, text_attention


class ViTConfig(NamedTuple):
    """Sizes of a transformer."""

    width: int  # D
    depth: int
    heads: int  # divides `width`
    hidden: int  # width within each MLP
    patch: int  # pixels a side
    cells: int  # patches a side that there are position embeddings for
    registers: int = 0
    epsilon: float = 1e-6  # of the layer norms


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021)."""

    @nn.compact
    def __call__(self, x_BLD: chex.Array) -> chex.Array:
        return x_BLD * self.param("lambda1", nn.initializers.ones, x_BLD.shape[-1:])[None, None]


class Layer(nn.Module):
    """Pre-norm attention and MLP, each scaled and added to its input."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: chex.Array) -> tuple[chex.Array, None]:
        c, norm = self.config, functools.partial(nn.LayerNorm, epsilon=self.config.epsilon, use_fast_variance=False)
        everything = jnp.ones(x_BLD.shape[:2], bool)
        attended = text_attention(norm(name="norm1")(x_BLD), everything, c.heads, functools.partial(nn.Dense, c.width))
        x_BLD += LayerScale(name="scale1")(nn.Dense(c.width, name="attention_out")(attended))
        hidden = nn.gelu(nn.Dense(c.hidden, name="mlp_in")(norm(name="norm2")(x_BLD)), approximate=False)
        return x_BLD + LayerScale(name="scale2")(nn.Dense(c.width, name="mlp_out")(hidden)), None


class ViT(nn.Module):
    """Pictures to the features of the class token."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image_BHWC: chex.Array) -> chex.Array:
        """(B, D); pictures are square and normalised, of any whole number of patches a side."""
        c, normal = self.config, nn.initializers.normal(0.02)
        patches = nn.Conv(c.width, (c.patch,) * 2, (c.patch,) * 2, "VALID", name="patches")(image_BHWC)
        batch, cells = patches.shape[:2]
        table = self.param("position_embeddings", normal, (1, c.cells**2 + 1, c.width))
        first = self.param("cls_token", normal, (1, 1, c.width)) + table[:, :1]
        tokens = [first]
        if c.registers:
            tokens.append(self.param("register_tokens", normal, (1, c.registers, c.width)))
        front = jnp.concatenate([jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in tokens], 1)
        grid = resized(table[0, 1:].reshape(c.cells, c.cells, -1), cells, antialias=c.registers > 0)
        x_BLD = jnp.concatenate([front, (patches + grid[None]).reshape(batch, cells**2, -1)], 1)
        x_BLD = stack(Layer, c.depth)(c, name="layers")(x_BLD)[0]
        return nn.LayerNorm(epsilon=c.epsilon, use_fast_variance=False, name="norm")(x_BLD)[:, 0]


def resized(table_ggD: chex.Array, cells: int, antialias: bool) -> chex.Array:
    """Position embeddings at cells x cells, bicubically.

    Those of models with registers by Keys' kernel with a = -0.5, as jax has it, widened when shrinking; the others by
    that with a = -0.75, as torch has it without antialiasing, and with the border repeated.
    """
    if (count := len(table_ggD)) == cells:
        return table_ggD
    if antialias:
        return jax.image.resize(table_ggD, (cells, cells, table_ggD.shape[-1]), "cubic")
    places = (np.arange(cells) + 0.5) * count / cells - 0.5
    weights, a = np.zeros((cells, count)), -0.75
    for tap in range(-1, 3):
        nearest = np.floor(places).astype(int) + tap
        d = np.abs(places - nearest)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(cells), np.clip(nearest, 0, count - 1)), np.where(d <= 1, near, far))
    shares = jnp.asarray(weights, table_ggD.dtype)
    return jnp.einsum("ij,kl,jld->ikd", shares, shares, table_ggD)
