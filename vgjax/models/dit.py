"""Diffusion transformer with adaLN-single, the PixArt-alpha layout (Chen et al. 2023, section 2.3).

B batch, N patch tokens, L condition tokens, D width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax.models.layers import plain_layer_norm
from vgjax.models.refine import Refine, spread
from vgjax.types import Tokens


def sincos_positions(side: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine position embeddings, (side * side, width): first half for x, second half for y."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width // 4))
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (side, width / 2)
    x, y = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
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
        split = lambda y: y.reshape(*y.shape[:2], self.heads, width // self.heads)
        q = split(nn.Dense(width, name="to_q")(x_BND))  # (B, N, heads, D / heads)
        k = split(nn.Dense(width, name="to_k")(context_BLD))  # (B, L, heads, D / heads)
        v = split(nn.Dense(width, name="to_v")(context_BLD))
        mask = None if mask_BL is None else mask_BL[:, None, None, :].astype(bool)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.Dense(width, name="to_out")(out.reshape(x_BND.shape))


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
        y = nn.Dense(int(width * self.mlp_ratio), name="ff_in")(y)
        y = nn.Dense(width, name="ff_out")(nn.gelu(y, approximate=True))
        return x + gate_m * y, None


class DiT(nn.Module):
    """The denoising network.

    Attributes:
      out_channels: channels of the output (twice the input's where a variance is predicted as well).
      refine: channels of the convolutions after the transformer; 0: none, as in PixArt.
      unroll: how many blocks of the scan are laid out one after another.
    """

    width: int
    depth: int
    heads: int
    patch: int
    out_channels: int
    mlp_ratio: float = 4.0
    refine: int = 0
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, tokens: Tokens) -> jax.Array:
        """Network output (B, H, W, out_channels) at noisy input x and times t in [0, 1000]."""
        batch, side, width = x_BHWC.shape[0], x_BHWC.shape[1] // self.patch, self.width
        t = nn.Dense(width, name="linear_1")(timestep_embedding(t_B).astype(x_BHWC.dtype))
        t = nn.Dense(width, name="linear_2")(nn.silu(t))  # (B, D)
        if tokens.style_BD is not None:
            t = t + tokens.style_BD
        modulation = nn.Dense(6 * width, name="adaln")(nn.silu(t)).reshape(batch, 6, width)

        size = (self.patch, self.patch)
        x = nn.Conv(width, size, strides=self.patch, padding="VALID", name="pos_embed_proj")(x_BHWC)  # (B, h, w, D)
        if tokens.spatial_BggD is not None:  # each coarse cell speaks to the patches it covers
            repeat = side // tokens.spatial_BggD.shape[1]
            x = x + tokens.spatial_BggD.repeat(repeat, axis=1).repeat(repeat, axis=2)
        x = x.reshape(batch, side * side, width) + sincos_positions(side, width)[None]  # (B, N, D)
        context = nn.Dense(width, name="caption_1")(tokens.tokens_BND)
        context = nn.Dense(width, name="caption_2")(nn.gelu(context, approximate=True))  # (B, L, D)
        x = self._blocks()(x, modulation, context, tokens.mask_BN)[0]

        table = self.param("scale_shift_table", nn.initializers.normal(width**-0.5), (2, width))
        shift, scale = jnp.split(table[None] + t[:, None], 2, axis=1)
        x = (plain_layer_norm(x) * (1 + scale) + shift).reshape(batch, side, side, width)
        x = nn.Dense(self.patch**2 * self.out_channels, kernel_init=nn.initializers.zeros, name="proj_out")(x)
        x = spread(x, self.patch)
        return Refine(self.refine, name="refine")(x, x_BHWC, nn.silu(t)) if self.refine else x

    def _blocks(self) -> nn.Module:
        """All transformer blocks as one scan over stacked parameters."""
        return nn.scan(
            nn.remat(Block, prevent_cse=False) if self.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 3,
            length=self.depth,
            unroll=self.unroll,
        )(self.heads, self.mlp_ratio, name="blocks")
