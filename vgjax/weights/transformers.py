"""Names and sizes of encoders in the layout of the Hugging Face hub: BERT, DistilBERT, T5 v1.1; DINOv2 for pictures."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vgjax.config import ConfigError
from vgjax.models.bert import Bert, config_from_json
from vgjax.models.t5 import T5Config, T5Encoder
from vgjax.models.vit import ViT, ViTConfig
from vgjax.weights.convert import Network, Sizes, Table, WeightsError

_IDS = (np.zeros((1, 2), np.int32), np.ones((1, 2), bool))  # ids and mask

_EMBEDDINGS = (
    (r"(word|position)", r"embeddings.\1_embeddings"),
    (r"segment", r"embeddings.token_type_embeddings"),
    (r"norm", r"embeddings.LayerNorm"),
)
# What layer norms' parameters were once called.
_OLD_NORMS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
# Heads on top of the encoder, and buffers that are mere ranges.
_HEADS = (
    r"(pooler|cls|classifier|pre_classifier|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector)\..*"
    r"|embeddings\.(position_ids|token_type_ids)"
)


def _bert(sizes: Sizes, config: Mapping[str, Any]) -> tuple[Bert, tuple[Any, ...]]:
    try:
        return Bert(config_from_json(config, "the config.json")), _IDS
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def _bert_network(prefix: str, layer: str, names: Mapping[str, str]) -> Network:
    rows = (*_EMBEDDINGS, *((f"layers/{ours}", f"{layer}.{{layer}}.{theirs}") for ours, theirs in names.items()))
    return Network(Table(rows, renames=((rf"^{prefix}\.", ""), *_OLD_NORMS), ignored=_HEADS), _bert)


BERT = _bert_network(
    "bert",
    "encoder.layer",
    {
        r"(query|key|value)": r"attention.self.\1",
        r"attention_out": r"attention.output.dense",
        r"attention_norm": r"attention.output.LayerNorm",
        r"mlp_in": r"intermediate.dense",
        r"mlp_out": r"output.dense",
        r"mlp_norm": r"output.LayerNorm",
    },
)
DISTILBERT = _bert_network(
    "distilbert",
    "transformer.layer",
    {
        r"([qkv])(uery|ey|alue)": r"attention.\1_lin",
        r"attention_out": r"attention.out_lin",
        r"attention_norm": r"sa_layer_norm",
        r"mlp_in": r"ffn.lin1",
        r"mlp_out": r"ffn.lin2",
        r"mlp_norm": r"output_layer_norm",
    },
)

_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
_FIRST = "encoder.block.0.layer"


def _t5(sizes: Sizes, config: Mapping[str, Any]) -> tuple[T5Encoder, tuple[Any, ...]]:
    if (form := config.get("feed_forward_proj", "gated-gelu")) != "gated-gelu":
        raise WeightsError(f"the config.json has feed_forward_proj {form!r}: name a T5 v1.1 model (gated-gelu)")
    buckets, heads = sizes(f"{_BIAS}.weight")
    inner, width = sizes(f"{_FIRST}.0.SelfAttention.q.weight")
    for key, value in (("num_heads", heads), ("d_kv", inner // heads)):
        if config.get(key, value) != value:
            raise WeightsError(
                f"the config.json has {key} {config[key]!r} but the tensors {value}: fetch both of one model"
            )
    found = T5Config(
        vocabulary=sizes("shared.weight")[0],
        width=width,
        depth=sizes.count(r"encoder\.block\.(\d+)\."),
        heads=heads,
        head_width=inner // heads,
        hidden=sizes(f"{_FIRST}.1.DenseReluDense.wo.weight")[1],
        buckets=buckets,
        max_distance=config.get("relative_attention_max_distance", 128),
        epsilon=config.get("layer_norm_epsilon", 1e-6),
    )
    return T5Encoder(found), _IDS


_ATTENTION, _MLP = "encoder.block.{layer}.layer.0", "encoder.block.{layer}.layer.1"

T5 = Network(
    Table(
        rows=(
            (r"word", "shared"),
            (r"distance_bias", _BIAS),
            (r"layers/attention_norm", rf"{_ATTENTION}.layer_norm"),
            (r"layers/([qkv])(uery|ey|alue)", rf"{_ATTENTION}.SelfAttention.\1"),
            (r"layers/attention_out", rf"{_ATTENTION}.SelfAttention.o"),
            (r"layers/mlp_norm", rf"{_MLP}.layer_norm"),
            (r"layers/mlp_gate", rf"{_MLP}.DenseReluDense.wi_0"),
            (r"layers/mlp_in", rf"{_MLP}.DenseReluDense.wi_1"),
            (r"layers/mlp_out", rf"{_MLP}.DenseReluDense.wo"),
            (r"norm", "encoder.final_layer_norm"),
        ),
        # The embedding is stored once or twice.
        renames=((r"^encoder\.embed_tokens\.", "shared."),),
        ignored=r"(decoder|lm_head)\..*",
    ),
    _t5,
)


def _dinov2(sizes: Sizes, config: Mapping[str, Any]) -> tuple[ViT, tuple[Any, ...]]:
    heads, form = config.get("num_attention_heads"), config.get("hidden_act", "gelu")
    hidden, width = sizes("encoder.layer.0.mlp.fc1.weight")
    if not isinstance(heads, int) or heads < 1 or width % heads or form != "gelu":
        told = f"num_attention_heads {heads!r} and hidden_act {form!r}, for a width of {width}"
        raise WeightsError(f"the config.json has {told}: fetch that of a DINOv2, whose activation is gelu")
    _, channels, patch, _ = sizes("embeddings.patch_embeddings.projection.weight")
    found = ViTConfig(
        width=width,
        depth=sizes.count(r"encoder\.layer\.(\d+)\."),
        heads=heads,
        hidden=hidden,
        patch=patch,
        cells=math.isqrt(sizes("embeddings.position_embeddings")[1]),
        registers=sizes(registers)[1] if sizes.has(registers := "embeddings.register_tokens") else 0,
        epsilon=config.get("layer_norm_eps", 1e-6),
    )
    return ViT(found), (np.zeros((1, patch, patch, channels), np.float32),)


_LAYER = "encoder.layer.{layer}"

DINOV2 = Network(
    Table(
        rows=(
            (r"", "embeddings"),
            (r"patches", "embeddings.patch_embeddings.projection"),
            (r"layers/(query|key|value)", rf"{_LAYER}.attention.attention.\1"),
            (r"layers/attention_out", rf"{_LAYER}.attention.output.dense"),
            (r"layers/norm([12])", rf"{_LAYER}.norm\1"),
            (r"layers/scale([12])", rf"{_LAYER}.layer_scale\1"),
            (r"layers/mlp_in", rf"{_LAYER}.mlp.fc1"),
            (r"layers/mlp_out", rf"{_LAYER}.mlp.fc2"),
            (r"norm", "layernorm"),
        ),
        renames=((r"^dinov2(_with_registers)?\.", ""),),
        # Takes the place of hidden patches in its training; heads.
        ignored=r"embeddings\.mask_token|(classifier|pooler)\..*",
    ),
    _dinov2,
)
