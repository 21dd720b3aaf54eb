"""Hybrid feature fusion module: the pair of factors becomes the transformer's condition, each through its own channel.

`ReferenceFusion` is the published module. `FactorFusion`, the default, mends three things: no LayerNorm over a handful
of numbers (it removes exactly their mean and spread); anatomy keeps its place on the coarse grid; each channel has a
trained null, so that guidance compares with something training has seen.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.types import Factors, Tokens


class ReferenceFusion(nn.Module):
    """As published: LayerNorm, MLP and a type embedding a channel; a dropped channel is an all-zero token."""

    hidden: int
    token_width: int

    @nn.compact
    def __call__(
        self, factors: Factors, keep: tuple[jax.Array, jax.Array], noise_key=None, noise: float = 0.0
    ) -> Tokens:
        embeddings = self.param("type_embeddings", nn.initializers.normal(0.02), (2, self.token_width))
        columns = []
        for i, (name, x) in enumerate((("anatomy", factors.pooled()), ("modality", factors.modality_BZ))):
            init = nn.initializers.xavier_uniform()
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=f"norm_{name[0]}")(x)
            x = nn.gelu(nn.Dense(self.hidden, kernel_init=init, name=f"{name}_proj_0")(x), approximate=False)
            x = nn.Dense(self.token_width, kernel_init=init, name=f"{name}_proj_2")(x) + embeddings[None, i]
            columns.append(x * keep[i][:, None])
        tokens = jnp.stack(columns, axis=1)  # (B, 2, D)
        return Tokens(tokens_BND=tokens, mask_BN=jnp.ones(tokens.shape[:2]))


class FactorFusion(nn.Module):
    """Whitened components of each channel; anatomy in space, modality through the timestep embedding, both as tokens.

    The collection "basis" holds, for each channel, the mean (F,), directions (F, M) that bring the text-predictable
    part of the factors to unit variance, and their pseudo-inverse (M, F); `vgjax.stages.denoiser` computes it.
    """

    hidden: int
    token_width: int
    width: int
    components: int

    def _basis(self, channel: str, features: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean = self.variable("basis", f"{channel}_mean", jnp.zeros, (features,)).value
        whiten = self.variable("basis", f"{channel}_whiten", jnp.zeros, (features, self.components)).value
        back = self.variable("basis", f"{channel}_back", jnp.zeros, (self.components, features)).value
        return mean, whiten, back

    @nn.compact
    def __call__(
        self, factors: Factors, keep: tuple[jax.Array, jax.Array], noise_key=None, noise: float = 0.0
    ) -> Tokens:
        """Tokens for factors; channels whose `keep` is False use their trained null.

        Args:
          noise_key: where given, `noise` (in standard deviations) is added to the components: what lies below that
            level cannot be told apart by the transformer, so chance fits of the text stage do not pass.
        """
        batch, g, _, K = factors.anatomy_BggK.shape
        channels = (("anatomy", factors.anatomy_BggK.reshape(batch, -1)), ("modality", factors.modality_BZ))
        embeddings = self.param("type_embeddings", nn.initializers.normal(0.02), (2, self.token_width))
        tokens, extras = [], {}
        for i, (name, flat_BF) in enumerate(channels):
            mean, whiten, back = self._basis(name, flat_BF.shape[-1])
            parts_BM = (flat_BF - mean[None]) @ whiten
            if noise_key is not None:
                parts_BM += noise * jax.random.normal(jax.random.fold_in(noise_key, i), parts_BM.shape)
            kept = keep[i][:, None].astype(parts_BM.dtype)
            # The indicator's weight in this layer is the channel's trained null.
            hidden = nn.Dense(self.hidden, name=f"{name}_in")(jnp.concatenate([parts_BM * kept, 1 - kept], axis=-1))
            hidden = nn.gelu(nn.Dense(self.hidden, name=f"{name}_hidden")(nn.gelu(hidden)))
            tokens.append(nn.Dense(self.token_width, name=f"{name}_token")(hidden) + embeddings[None, i])
            if name == "modality":
                extras["style_BD"] = nn.Dense(self.width, name="style")(hidden)
                continue
            predicted = (parts_BM @ back).reshape(batch, g, g, K)  # the map, as far as text can tell it
            directions = whiten / (jnp.linalg.norm(whiten, axis=0, keepdims=True) + 1e-6)
            # The same map with every direction at equal strength: what text tells faintly (outline) is not drowned.
            sharpened = parts_BM @ directions.T * (flat_BF.shape[-1] / self.components) ** 0.5
            sharpened = sharpened.reshape(batch, g, g, K)
            cells = jnp.concatenate([predicted, sharpened], axis=-1) * kept[:, None, None]
            null = jnp.broadcast_to((1 - kept)[:, None, None], (batch, g, g, 1))
            extras["spatial_BggD"] = nn.Dense(self.width, name="spatial")(jnp.concatenate([cells, null], axis=-1))
        stacked = jnp.stack(tokens, axis=1)  # (B, 2, D)
        return Tokens(tokens_BND=stacked, mask_BN=jnp.ones(stacked.shape[:2]), **extras)
