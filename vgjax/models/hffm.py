"""Hybrid feature fusion module: the pair of factors becomes the transformer's condition, each through its own channel.

`ReferenceFusion` is the published module. `FactorFusion`, the default, mends three things: no LayerNorm over a handful
of numbers (it removes exactly their mean and spread); anatomy keeps its place on the coarse grid; each channel has a
trained null, so that guidance compares with something training has seen.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.models.disentangler import Mlp
from vgjax.types import CHANNELS, Inputs, Keep, Tokens

ONE_CHANNEL = "factors"


class ReferenceFusion(nn.Module):
    """As published: LayerNorm, MLP and a type embedding a channel; a dropped channel is an all-zero token."""

    hidden: int
    token_width: int

    @nn.compact
    def __call__(self, inputs: Inputs, keep: Keep) -> Tokens:
        """Tokens (B, 2, D) for area fractions "anatomy" (B, K) and "modality" (B, Z)."""
        embeddings = self.param("type_embeddings", nn.initializers.normal(0.02), (2, self.token_width))
        columns = []
        for i, name in enumerate(CHANNELS):
            init = nn.initializers.xavier_uniform()
            x = inputs[name].astype(jnp.promote_types(inputs[name].dtype, jnp.float32))
            x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=f"norm_{name[0]}")(x)
            x = nn.gelu(nn.Dense(self.hidden, kernel_init=init, name=f"{name}_proj_0")(x), approximate=False)
            x = nn.Dense(self.token_width, kernel_init=init, name=f"{name}_proj_2")(x) + embeddings[None, i]
            columns.append(x * keep[name][:, None])
        tokens = jnp.stack(columns, axis=1)  # (B, 2, D)
        return Tokens(tokens_BND=tokens, mask_BN=jnp.ones(tokens.shape[:2]))


class FactorFusion(nn.Module):
    """Whitened components per channel; anatomy in space, modality through the timestep embedding, both as tokens."""

    hidden: int
    token_width: int
    width: int  # D of the transformer
    grid: int  # g, cells a side of the anatomy's coarse grid
    spatial_path: bool = True  # whether anatomy is also added to the patches where it belongs
    style_path: bool = True  # whether modality is also added to the timestep embedding
    one_channel: bool = False  # whether the components of both channels are read as one, with one null

    @nn.compact
    def __call__(self, inputs: Inputs, keep: Keep, basis: Mapping[str, jax.Array]) -> Tokens:
        """Tokens for the components (B, M) of each channel; one whose `keep` is False uses its null.

        Args:
          basis: for each channel, as `pipeline.principal_components` returns them.
        """
        fused = {ONE_CHANNEL: CHANNELS} if self.one_channel else {name: (name,) for name in CHANNELS}
        embeddings = self.param("type_embeddings", nn.initializers.normal(0.02), (len(fused), self.token_width))
        tokens, extras = [], {}
        for i, (name, holds) in enumerate(fused.items()):
            parts_BM = jnp.concatenate([inputs[part] for part in holds], axis=-1)
            kept = keep[name][:, None].astype(parts_BM.dtype)
            # The indicator's weight in this layer is the channel's trained null.
            hidden = nn.Dense(self.hidden, name=f"{name}_in")(jnp.concatenate([parts_BM * kept, 1 - kept], axis=-1))
            hidden = nn.gelu(nn.Dense(self.hidden, name=f"{name}_hidden")(nn.gelu(hidden)))
            tokens.append(nn.Dense(self.token_width, name=f"{name}_token")(hidden) + embeddings[None, i])
            if "modality" in holds and self.style_path:
                extras["style_BD"] = nn.Dense(self.width, name="style")(hidden)
            if "anatomy" not in holds or not self.spatial_path:
                continue
            cells = self._maps(inputs["anatomy"], basis["anatomy_whiten"], basis["anatomy_back"]) * kept[:, None, None]
            null = jnp.broadcast_to((1 - kept)[:, None, None], (*cells.shape[:3], 1))
            extras["spatial_BggD"] = nn.Dense(self.width, name="spatial")(jnp.concatenate([cells, null], axis=-1))
        stacked = jnp.stack(tokens, axis=1)  # (B, 2, D), of one channel (B, 1, D)
        return Tokens(tokens_BND=stacked, mask_BN=jnp.ones(stacked.shape[:2]), **extras)

    def _maps(self, parts_BM: jax.Array, whiten_FM: jax.Array, back_MF: jax.Array) -> jax.Array:
        """The anatomy map of the components, at true and at equal strength of its directions, (B, g, g, 2K).

        All whitened directions at equal norm: boosts low-variance directions such as outline.
        """
        (batch, components), features = parts_BM.shape, len(whiten_FM)
        predicted = (parts_BM @ back_MF).reshape(batch, self.grid, self.grid, -1)
        directions = whiten_FM / (jnp.linalg.norm(whiten_FM, axis=0, keepdims=True) + 1e-6)
        sharpened = parts_BM @ directions.T * (features / components) ** 0.5
        return jnp.concatenate([predicted, sharpened.reshape(predicted.shape)], axis=-1)


class TextHeads(nn.Module):
    """Text heads as the regression's, trained by the diffusion loss alone; `FactorFusion` reads what they find."""

    hidden: int
    anatomy_dim: int  # g * g * K
    modality_dim: int  # Z
    fusion: FactorFusion

    @nn.compact
    def __call__(self, inputs: Inputs, keep: Keep) -> Tokens:
        """Tokens for a text embedding (B, D) of each channel."""
        sizes = {"anatomy": self.anatomy_dim, "modality": self.modality_dim}
        heads = {name: Mlp(self.hidden, size, name=f"{name}_encoder") for name, size in sizes.items()}
        found = {name: head(inputs[name], train=False) for name, head in heads.items()}
        as_they_are = jnp.eye(self.anatomy_dim)
        return self.fusion(found, keep, {"anatomy_whiten": as_they_are, "anatomy_back": as_they_are})
