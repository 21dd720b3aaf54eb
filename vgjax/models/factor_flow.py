"""Text to factors as a distribution: a conditional flow over the whitened factors of one channel.

A regression answers an open question (which corner? what shape?) with an average that no picture has. A flow (Lipman et
al. 2023) draws one of the answers, as the prior of unCLIP does (Ramesh et al. 2022, section 2.2). The network is a
stack of residual MLP blocks that time and conditions modulate alike (adaLN-single, Chen et al. 2023, section 2.3).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.models.dit import timestep_embedding
from vgjax.models.layers import plain_layer_norm
from vgjax.types import Keep


class ResidualBlock(nn.Module):
    """x + gate * MLP(norm of x, shifted and scaled), (B, W); zero at first."""

    @nn.compact
    def __call__(self, x_BW: jax.Array, modulation_B3W: jax.Array) -> jax.Array:
        width = x_BW.shape[-1]
        table = self.param("scale_shift_table", nn.initializers.zeros, (3, width))
        shift, scale, gate = jnp.unstack(table[None] + modulation_B3W, axis=1)
        y = plain_layer_norm(x_BW) * (1 + scale) + shift
        return x_BW + gate * nn.Dense(width, name="out")(nn.silu(nn.Dense(width, name="hidden")(y)))


class FactorFlow(nn.Module):
    """Velocity of the whitened factors of one channel."""

    features: int  # M, length of the factors
    width: int  # of the blocks
    depth: int  # number of blocks

    @nn.compact
    def __call__(self, x_BM: jax.Array, t_B: jax.Array, given: Mapping[str, jax.Array], keep: Keep) -> jax.Array:
        """Velocity (B, M) at noisy factors x and process times t in [0, 1000].

        Args:
          given: by name, what the factors are to follow, (B, F): "text", and for the anatomy "mask".
          keep: by the same names, (B,) bool; False replaces what is given by a trained null.
        """
        condition = nn.Dense(self.width, name="time")(timestep_embedding(t_B).astype(x_BM.dtype))
        for name, value_BF in given.items():
            null = self.param(f"{name}_null", nn.initializers.normal(0.02), (self.width,))
            seen = nn.Dense(self.width, name=name)(value_BF)
            condition = condition + jnp.where(keep[name][:, None], seen, null[None])
        condition = nn.Dense(self.width, name="condition")(nn.silu(condition))
        modulation = nn.Dense(3 * self.width, kernel_init=nn.initializers.zeros, name="adaln")(nn.silu(condition))
        x = nn.Dense(self.width, name="in")(x_BM)
        for i in range(self.depth):
            x = ResidualBlock(name=f"block_{i}")(x, modulation.reshape(len(x), 3, self.width))
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros, name="out")(plain_layer_norm(x))
