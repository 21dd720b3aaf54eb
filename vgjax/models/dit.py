"""Diffusion transformer with adaLN-single, the PixArt-alpha layout (Chen et al. 2023, section 2.3).

B batch, N patch tokens, L condition tokens, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax.models.layers import attention, plain_layer_norm, stack
from vgjax.models.lora import Dense, PatchConv
from vgjax.models.refine import Refine, spread
from vgjax.types import Tokens


def sincos_positions(
    height: int, width_cells: int, width: int, base: int = 0, interpolation: float = 1.0
) -> np.ndarray:
    """Fixed 2-D sine-cosine position embeddings, (height * width_cells, width): first half for x, second half for y.

    Args:
      height, width_cells: patches along y and x.
      width: D.
      base: patches a side that the network was made for; another number of them is squeezed or stretched onto that
        range. 0: as many as there are.
      interpolation: further divisor of the coordinates (PixArt: 1 at 512 pixels, 2 at 1024).
    """
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width // 4))

    def line(cells: int) -> np.ndarray:
        places = np.arange(cells, dtype=np.float64) * ((base or cells) / cells) / interpolation
        angles = places[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (cells, D / 2)

    x, y = np.tile(line(width_cells), (height, 1)), np.repeat(line(height), width_cells, axis=0)
    return np.concatenate([x, y], axis=1).astype(np.float32)


def timestep_embedding(t_B: jax.Array, width: int = 256) -> jax.Array:
    """Cosine-sine features of times in [0, 1000], (B, width)."""
    frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(width // 2) / (width // 2))
    angles = t_B[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Attention(nn.Module):
    """Multi-head attention of x over `context`."""

    heads: int

    @nn.compact
    def __call__(self, x_BND: jax.Array, context_BLD: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
        width = x_BND.shape[-1]
        # Each (B, N or L, heads, D / heads).
        project = lambda y, name: Dense(width, name=name)(y).reshape(*y.shape[:2], self.heads, -1)
        q, k, v = project(x_BND, "to_q"), project(context_BLD, "to_k"), project(context_BLD, "to_v")
        return Dense(width, name="to_out")(attention(q, k, v, mask_BL).reshape(x_BND.shape))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, modulated by adaLN-single."""

    heads: int
    mlp_ratio: float

    @nn.compact
    def __call__(self, x_BND: jax.Array, modulation_B6D: jax.Array, context_BLD: jax.Array, mask_BL: jax.Array):
        width = x_BND.shape[-1]
        table = self.param("scale_shift_table", nn.initializers.normal(width**-0.5), (6, width))
        rows = jnp.split(table[None] + modulation_B6D, 6, axis=1)  # six of (B, 1, D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows
        y = plain_layer_norm(x_BND) * (1 + scale_a) + shift_a  # (B, N, D)
        x = x_BND + gate_a * Attention(self.heads, name="attn1")(y, y)
        x = x + Attention(self.heads, name="attn2")(x, context_BLD, mask_BL)
        y = plain_layer_norm(x) * (1 + scale_m) + shift_m
        y = Dense(int(width * self.mlp_ratio), name="ff_in")(y)
        y = Dense(width, name="ff_out")(nn.gelu(y, approximate=True))
        return x + gate_m * y, None


class DiT(nn.Module):
    """The denoising network."""

    width: int
    depth: int
    heads: int
    patch: int
    out_channels: int  # twice the input's where a variance is predicted as well
    mlp_ratio: float = 4.0
    base_cells: int = 0  # as for `sincos_positions`
    interpolation: float = 1.0  # likewise
    pixels_per_latent: int = 0  # above 0, the network is also told height, width and aspect ratio (PixArt at 1024)
    refine: int = 0  # channels of the convolutions after the transformer; 0: none, as in PixArt
    remat: bool = False
    unroll: int = 1  # how many blocks of the scan are laid out one after another

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, tokens: Tokens) -> jax.Array:
        """Network output (B, H, W, out_channels) at noisy input x and times t in [0, 1000]."""
        batch, height, cells, width = x_BHWC.shape[0], *(n // self.patch for n in x_BHWC.shape[1:3]), self.width
        t = Dense(width, name="linear_1")(timestep_embedding(t_B).astype(x_BHWC.dtype))
        t = Dense(width, name="linear_2")(nn.silu(t))  # (B, D)
        if self.pixels_per_latent:
            t = t + self._size_embedding(x_BHWC)
        if tokens.style_BD is not None:
            t = t + tokens.style_BD
        modulation = Dense(6 * width, name="adaln")(nn.silu(t)).reshape(batch, 6, width)

        x = PatchConv(width, self.patch, name="pos_embed_proj")(x_BHWC)  # (B, h, w, D)
        if tokens.spatial_BggD is not None:  # each coarse cell speaks to the patches it covers
            repeat = height // tokens.spatial_BggD.shape[1]
            x = x + tokens.spatial_BggD.repeat(repeat, axis=1).repeat(repeat, axis=2)
        positions = sincos_positions(height, cells, width, self.base_cells, self.interpolation)
        x = x.reshape(batch, height * cells, width) + positions[None].astype(x.dtype)  # (B, N, D)
        context = Dense(width, name="caption_1")(tokens.tokens_BND)
        context = Dense(width, name="caption_2")(nn.gelu(context, approximate=True))  # (B, L, D)
        blocks = stack(nn.remat(Block, prevent_cse=False) if self.remat else Block, self.depth, self.unroll)
        x = blocks(self.heads, self.mlp_ratio, name="blocks")(x, modulation, context, tokens.mask_BN)[0]

        table = self.param("scale_shift_table", nn.initializers.normal(width**-0.5), (2, width))
        shift, scale = jnp.split(table[None] + t[:, None], 2, axis=1)
        x = (plain_layer_norm(x) * (1 + scale) + shift).reshape(batch, height, cells, width)
        x = Dense(self.patch**2 * self.out_channels, nn.initializers.zeros, name="proj_out")(x)
        x = spread(x, self.patch)
        return Refine(self.refine, name="refine")(x, x_BHWC, nn.silu(t)) if self.refine else x

    def _size_embedding(self, x_BHWC: jax.Array) -> jax.Array:
        """Height, width and their ratio, each embedded in a third of the width: (B, D)."""
        batch, height, width = x_BHWC.shape[:3]
        pixels, parts = (height * self.pixels_per_latent, width * self.pixels_per_latent), []
        for name, values in (("resolution", pixels), ("aspect_ratio", (height / width,))):
            part = timestep_embedding(jnp.asarray(values, jnp.float32)).astype(x_BHWC.dtype)  # (values, 256)
            part = nn.silu(Dense(self.width // 3, name=f"{name}_1")(part))
            parts.append(Dense(self.width // 3, name=f"{name}_2")(part).reshape(1, -1))
        return jnp.concatenate(parts, axis=1).repeat(batch, axis=0)
