"""T5 v1.1 encoder (Raffel et al. 2020; Shazeer 2020 for its gated MLP): word pieces to hidden states.

Pre-norm layers without biases. Attention scores are not scaled; what tells positions apart is one learned bias a head
and distance bucket, shared by all layers.
"""

import dataclasses
import functools
import math

import chex
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vgjax.models.layers import stack, text_attention

ROUNDING = 1e-9  # above the error of a logarithm in float64, below any true gap


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder."""

    vocabulary: int
    width: int  # D
    depth: int
    heads: int
    head_width: int  # heads x head_width need not be D
    hidden: int  # width within each MLP
    buckets: int = 32  # distances told apart, half of them backwards
    max_distance: int = 128  # all distances from here on, in tokens, share the last bucket
    epsilon: float = 1e-6  # of the norms


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance from query to key, (length, length) int.

    Half of the buckets lie behind the query, half ahead. Of each half, the first half holds one distance each, and the
    rest grow geometrically up to `max_distance`.
    """
    offset = np.arange(length)[None] - np.arange(length)[:, None]
    half = buckets // 2
    single = half // 2
    distance = np.abs(offset)
    steps = np.log(np.maximum(distance, 1) / single) / math.log(max_distance / single) * (half - single)
    # Where a bucket begins at a whole distance, rounding must not put that distance into the one before.
    far = np.minimum(single + (steps + ROUNDING).astype(int), half - 1)
    return half * (offset > 0) + np.where(distance < single, distance, far)


class Layer(nn.Module):
    """Self-attention and gated MLP, each on the normed input and added to it."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BLD: chex.Array, bias_1NLL: chex.Array, mask_BL: chex.Array) -> tuple[chex.Array, None]:
        c, linear = self.config, functools.partial(nn.Dense, use_bias=False)
        inner = functools.partial(linear, c.heads * c.head_width)
        normed = nn.RMSNorm(epsilon=c.epsilon, name="attention_norm")(x_BLD)
        attended = text_attention(normed, mask_BL, c.heads, inner, bias_1NLL, scale=1.0)
        x_BLD += linear(c.width, name="attention_out")(attended)
        normed = nn.RMSNorm(epsilon=c.epsilon, name="mlp_norm")(x_BLD)
        gate = nn.gelu(linear(c.hidden, name="mlp_gate")(normed), approximate=True)
        hidden = gate * linear(c.hidden, name="mlp_in")(normed)
        return x_BLD + linear(c.width, name="mlp_out")(hidden), None


class T5Encoder(nn.Module):
    """Word pieces to their last hidden states."""

    config: T5Config

    @nn.compact
    def __call__(self, ids_BL: chex.Array, mask_BL: chex.Array) -> chex.Array:
        """(B, L, D) hidden states of int32 ids, any L; those of padding, where the bool mask is False, mean nothing."""
        c = self.config
        buckets_LL = jnp.asarray(distance_buckets(ids_BL.shape[1], c.buckets, c.max_distance))
        bias_LLN = nn.Embed(c.buckets, c.heads, name="distance_bias")(buckets_LL)
        x_BLD = nn.Embed(c.vocabulary, c.width, name="word")(ids_BL)
        x_BLD = stack(Layer, c.depth)(c, name="layers")(x_BLD, bias_LLN.transpose(2, 0, 1)[None], mask_BL)[0]
        return nn.RMSNorm(epsilon=c.epsilon, name="norm")(x_BLD)
