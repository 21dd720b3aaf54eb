"""BERT (Devlin et al. 2019) and DistilBERT (Sanh et al. 2019) encoders.

The two differ in names and in the segment embedding that DistilBERT lacks; the arithmetic is the same, so one module
serves both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from vgjax.config import ConfigError

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}

# Field of BertConfig -> key of config.json, by model type; a number stands for itself.
_CONFIG_KEYS: dict[str, dict[str, str | float]] = {
    "bert": {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "positions": "max_position_embeddings",
        "segments": "type_vocab_size",
        "activation": "hidden_act",
        "epsilon": "layer_norm_eps",
    },
    "distilbert": {
        "vocabulary": "vocab_size",
        "width": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "hidden": "hidden_dim",
        "positions": "max_position_embeddings",
        "segments": 0,
        "activation": "activation",
        "epsilon": 1e-12,
    },
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder.

    Attributes:
      kind: "bert" or "distilbert".
      vocabulary: word pieces known.
      width: D.
      depth: layers.
      heads: attention heads; divides `width`.
      hidden: width of the hidden layer of each MLP.
      positions: longest sequence, in tokens.
      segments: segment embeddings; 0 in DistilBERT.
      activation: a key of `ACTIVATIONS`.
      epsilon: of the layer norms.
    """

    kind: str
    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    segments: int
    activation: str
    epsilon: float


def config_from_json(values: Mapping[str, Any], where: str) -> BertConfig:
    """Reads a hub's config.json.

    Args:
      values: the parsed file.
      where: what it is called, for messages.

    Raises:
      ConfigError: another architecture, a missing key, or a variant that is not built here.
    """
    kind = values.get("model_type")
    if kind not in _CONFIG_KEYS:
        raise ConfigError(f"{where} has model_type {kind!r}: name a bert or distilbert model")
    keys = _CONFIG_KEYS[kind]
    unusable = [
        key
        for field, key in keys.items()
        if isinstance(key, str) and not isinstance(values.get(key), str if field == "activation" else int | float)
    ]
    if unusable:
        raise ConfigError(f"{where} gives no usable {', '.join(unusable)}: fetch the model's original config.json")
    fields: dict[str, Any] = {field: values[key] if isinstance(key, str) else key for field, key in keys.items()}
    config = BertConfig(kind=kind, **fields)
    if config.activation not in ACTIVATIONS:
        raise ConfigError(
            f"{where} asks for activation {config.activation!r}: name a model with one of {', '.join(ACTIVATIONS)}"
        )
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ConfigError(f"{where} has position_embedding_type {positions!r}: name a model with absolute positions")
    if config.heads < 1 or config.width % config.heads:
        raise ConfigError(f"{where}: {config.heads} heads do not divide the width {config.width}: fetch it again")
    return config


class Layer(nn.Module):
    """One post-norm transformer layer: attention and MLP, each added to its input and then normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BLD: chex.Array, mask_BL: chex.Array) -> tuple[chex.Array, None]:
        c = self.config

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=c.epsilon, use_fast_variance=False, name=name)

        def heads(name: str) -> chex.Array:
            projected = nn.Dense(c.width, name=name)(x_BLD)
            return projected.reshape(*x_BLD.shape[:2], c.heads, c.width // c.heads)

        attended = jax.nn.dot_product_attention(
            heads("query"), heads("key"), heads("value"), mask=mask_BL[:, None, None, :]
        )
        update = nn.Dense(c.width, name="attention_out")(attended.reshape(x_BLD.shape))
        x_BLD = norm("attention_norm")(x_BLD + update)
        update = ACTIVATIONS[c.activation](nn.Dense(c.hidden, name="mlp_in")(x_BLD))
        return norm("mlp_norm")(x_BLD + nn.Dense(c.width, name="mlp_out")(update)), None


class Bert(nn.Module):
    """Word pieces to their last hidden states, without a head; every token belongs to the first segment."""

    config: BertConfig

    @nn.compact
    def __call__(self, ids_BL: chex.Array, mask_BL: chex.Array) -> chex.Array:
        """Encodes a batch.

        Args:
          ids_BL: int32 word pieces.
          mask_BL: bool, True where there is a token and False on padding.

        Returns:
          (B, L, D) hidden states; those of padding mean nothing.
        """
        c = self.config
        x_BLD = nn.Embed(c.vocabulary, c.width, name="word")(ids_BL)
        x_BLD += nn.Embed(c.positions, c.width, name="position")(jnp.arange(ids_BL.shape[1])[None])
        if c.segments:
            x_BLD += nn.Embed(c.segments, c.width, name="segment")(jnp.zeros_like(ids_BL))
        x_BLD = nn.LayerNorm(epsilon=c.epsilon, use_fast_variance=False, name="norm")(x_BLD)
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c.depth
        )
        return layers(c, name="layers")(x_BLD, mask_BL)[0]


def mean_pool(hidden_BLD: chex.Array, mask_BL: chex.Array) -> chex.Array:
    """Mean of the hidden states over the attention mask, (B, D); zeros for a row without tokens."""
    weight_BL1 = mask_BL[..., None].astype(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(axis=1) / jnp.maximum(weight_BL1.sum(axis=1), 1)
