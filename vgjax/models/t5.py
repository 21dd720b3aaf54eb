"""T5 v1.1 encoder (Raffel et al. 2020; Shazeer 2020 for its gated MLP): word pieces to hidden states.

Pre-norm layers without biases. Attention scores are not scaled; what tells positions apart is one learned bias a head
and distance bucket, shared by all layers.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

ROUNDING = 1e-9  # above the error of a logarithm in float64, below any true gap


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder.

    Attributes:
      vocabulary: word pieces known.
      width: D.
      depth: layers.
      heads: attention heads.
      head_width: channels of each; heads x head_width need not be D.
      hidden: width of the hidden layer of each MLP.
      buckets: distances told apart, half of them backwards.
      max_distance: all distances from here on, in tokens, share the last bucket.
      epsilon: of the norms.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    head_width: int
    hidden: int
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6


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
        c = self.config
        normed = nn.RMSNorm(epsilon=c.epsilon, name="attention_norm")(x_BLD)

        def heads(name: str) -> chex.Array:
            projected = nn.Dense(c.heads * c.head_width, use_bias=False, name=name)(normed)
            return projected.reshape(*x_BLD.shape[:2], c.heads, c.head_width)

        attended = jax.nn.dot_product_attention(
            heads("query"), heads("key"), heads("value"), bias_1NLL, mask_BL[:, None, None, :], scale=1.0
        )
        x_BLD += nn.Dense(c.width, use_bias=False, name="attention_out")(attended.reshape(*x_BLD.shape[:2], -1))
        normed = nn.RMSNorm(epsilon=c.epsilon, name="mlp_norm")(x_BLD)
        gate = nn.gelu(nn.Dense(c.hidden, use_bias=False, name="mlp_gate")(normed), approximate=True)
        hidden = gate * nn.Dense(c.hidden, use_bias=False, name="mlp_in")(normed)
        return x_BLD + nn.Dense(c.width, use_bias=False, name="mlp_out")(hidden), None


class T5Encoder(nn.Module):
    """Word pieces to their last hidden states."""

    config: T5Config

    @nn.compact
    def __call__(self, ids_BL: chex.Array, mask_BL: chex.Array) -> chex.Array:
        """Encodes a batch.

        Args:
          ids_BL: int32 word pieces; any length.
          mask_BL: bool, True where there is a token and False on padding.

        Returns:
          (B, L, D) hidden states; those of padding mean nothing.
        """
        c = self.config
        buckets_LL = jnp.asarray(distance_buckets(ids_BL.shape[1], c.buckets, c.max_distance))
        bias_LLN = nn.Embed(c.buckets, c.heads, name="distance_bias")(buckets_LL)
        x_BLD = nn.Embed(c.vocabulary, c.width, name="word")(ids_BL)
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c.depth
        )
        x_BLD = layers(c, name="layers")(x_BLD, bias_LLN.transpose(2, 0, 1)[None], mask_BL)[0]
        return nn.RMSNorm(epsilon=c.epsilon, name="norm")(x_BLD)
