"""BERT (Devlin et al. 2019) and DistilBERT (Sanh et al. 2019) encoders.

The two differ in names and in the segment embedding that DistilBERT lacks; the arithmetic is the same, so one module
serves both.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from vgjax.config import ConfigError
from vgjax.models.layers import stack, text_attention

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}

KINDS = ("bert", "distilbert")
# Field of BertConfig -> key of config.json for each of the kinds; a number stands for itself.
_CONFIG_KEYS: dict[str, tuple[str | float, ...]] = {
    "vocabulary": ("vocab_size", "vocab_size"),
    "width": ("hidden_size", "dim"),
    "depth": ("num_hidden_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_heads"),
    "hidden": ("intermediate_size", "hidden_dim"),
    "positions": ("max_position_embeddings", "max_position_embeddings"),
    "segments": ("type_vocab_size", 0),
    "activation": ("hidden_act", "activation"),
    "epsilon": ("layer_norm_eps", 1e-12),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder."""

    kind: str  # one of `KINDS`
    vocabulary: int
    width: int  # D
    depth: int
    heads: int  # divides `width`
    hidden: int  # width within each MLP
    positions: int  # longest sequence, in tokens
    segments: int  # 0 in DistilBERT
    activation: str  # a key of `ACTIVATIONS`
    epsilon: float  # of the layer norms


def config_from_json(values: Mapping[str, Any], where: str) -> BertConfig:
    """Reads the values of a hub's config.json, called `where` in messages.

    Raises:
      ConfigError: another architecture, a missing key, or a variant that is not built here.
    """
    kind = values.get("model_type")
    if kind not in KINDS:
        raise ConfigError(f"{where} has model_type {kind!r}: name a bert or distilbert model")
    keys = {field: names[KINDS.index(kind)] for field, names in _CONFIG_KEYS.items()}
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
        norm = functools.partial(nn.LayerNorm, c.epsilon, use_fast_variance=False)
        attended = text_attention(x_BLD, mask_BL, c.heads, functools.partial(nn.Dense, c.width))
        x_BLD = norm(name="attention_norm")(x_BLD + nn.Dense(c.width, name="attention_out")(attended))
        update = ACTIVATIONS[c.activation](nn.Dense(c.hidden, name="mlp_in")(x_BLD))
        return norm(name="mlp_norm")(x_BLD + nn.Dense(c.width, name="mlp_out")(update)), None


class Bert(nn.Module):
    """Word pieces to their last hidden states, without a head; every token belongs to the first segment."""

    config: BertConfig

    @nn.compact
    def __call__(self, ids_BL: chex.Array, mask_BL: chex.Array) -> chex.Array:
        """(B, L, D) hidden states of int32 ids; those of padding, where the bool mask is False, mean nothing."""
        c = self.config
        x_BLD = nn.Embed(c.vocabulary, c.width, name="word")(ids_BL)
        x_BLD += nn.Embed(c.positions, c.width, name="position")(jnp.arange(ids_BL.shape[1])[None])
        if c.segments:
            x_BLD += nn.Embed(c.segments, c.width, name="segment")(jnp.zeros_like(ids_BL))
        x_BLD = nn.LayerNorm(epsilon=c.epsilon, use_fast_variance=False, name="norm")(x_BLD)
        return stack(Layer, c.depth)(c, name="layers")(x_BLD, mask_BL)[0]


def mean_pool(hidden_BLD: chex.Array, mask_BL: chex.Array) -> chex.Array:
    """Mean of the hidden states over the attention mask, (B, D); zeros for a row without tokens."""
    weight_BL1 = mask_BL[..., None].astype(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(axis=1) / jnp.maximum(weight_BL1.sum(axis=1), 1)
