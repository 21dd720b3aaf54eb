"""Stage 2: splits a text embedding into the anatomy and modality factors of the visual prior."""

import chex
import jax.numpy as jnp
from flax import linen as nn


class Mlp(nn.Module):
    """Linear - ReLU - dropout - linear, on the last axis; training with dropout needs the rng stream `dropout`."""

    hidden_dim: int
    output_dim: int
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        x = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.output_dim, name="out")(x)


class TextDisentangler(nn.Module):
    """Two heads read the factors from a text embedding; a decoder rebuilds the embedding from both."""

    anatomy_dim: int  # K, or g*g*K for a flattened coarse grid
    modality_dim: int  # Z
    hidden_dim: int = 512
    dropout_rate: float = 0.1  # share of hidden units that the two heads drop in training
    word_dropout_rate: float = 0.0  # share of the embedding's entries that the two heads do without in training

    @nn.compact
    def __call__(self, text_BD: chex.Array, train: bool) -> tuple[chex.Array, chex.Array, chex.Array]:
        """Anatomy (B, K), modality (B, Z) and the rebuilt embedding (B, D) of a pooled text embedding."""
        chex.assert_rank(text_BD, 2)
        rate = self.dropout_rate
        heard_BD = nn.Dropout(self.word_dropout_rate, deterministic=not train)(text_BD)
        anatomy_BK = Mlp(self.hidden_dim, self.anatomy_dim, rate, name="anatomy_encoder")(heard_BD, train)
        modality_BZ = Mlp(self.hidden_dim, self.modality_dim, rate, name="modality_encoder")(heard_BD, train)
        factors = jnp.concatenate([anatomy_BK, modality_BZ], axis=-1)
        reconstruction_BD = Mlp(self.hidden_dim, text_BD.shape[-1], name="decoder")(factors, train)
        return anatomy_BK, modality_BZ, reconstruction_BD
