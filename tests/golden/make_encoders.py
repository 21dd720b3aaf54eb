"""Makes the goldens of the text encoders: tiny random BERT, DistilBERT and T5 v1.1.

For developers: needs torch 2.13 and transformers 5.23 beside numpy and safetensors.

    PYTHONPATH=. python tests/golden/make_encoders.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, T5Config, T5EncoderModel

from tests.parity.random_weights import random_tensors, save_golden

VOCABULARY = 30
BERT = dict(
    vocab_size=VOCABULARY,
    hidden_size=18,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=28,
    max_position_embeddings=24,
    type_vocab_size=2,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
)
DISTILBERT = dict(
    vocab_size=VOCABULARY, dim=18, n_layers=2, n_heads=2, hidden_dim=28, max_position_embeddings=24, activation="gelu"
)
T5 = dict(
    vocab_size=VOCABULARY,
    d_model=16,
    d_kv=5,
    num_heads=3,
    d_ff=20,
    num_layers=3,
    feed_forward_proj="gated-gelu",
    layer_norm_epsilon=1e-6,
)
# Tokens of each text of a batch. T5's distances are told apart up to 128, so that one text is longer.
LENGTHS = {"full": [24, 13, 2], "short": [5, 3]}
T5_LENGTHS = {"long": [150], "short": [9, 4, 1]}


def fill(model: nn.Module, tied: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Gives every parameter its random tensor, in float64; returns the shapes, without second names."""
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items() if name not in tied}
    tensors = {name: torch.from_numpy(a) for name, a in random_tensors(shapes).items()}
    tensors |= {second: tensors[first] for second, first in tied.items()}
    model.double().eval().load_state_dict(tensors, strict=True)
    return shapes


def make(kind: str, model: nn.Module, settings: dict, lengths: dict[str, list[int]], tied: dict[str, str]) -> None:
    shapes, rng, io = fill(model, tied), np.random.default_rng(0), {}
    for name, counts in lengths.items():
        mask = np.arange(max(counts))[None] < np.array(counts)[:, None]
        ids = np.where(mask, rng.integers(1, VOCABULARY, mask.shape), 0)
        with torch.no_grad():
            hidden = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long())[0]
        io |= {f"{name}.ids": ids.astype(np.int32), f"{name}.mask": mask, f"{name}.hidden": hidden.numpy()}
        print(f"{kind} {name}: hidden states of standard deviation {hidden.std():.2f}")
    save_golden(kind, shapes, io, model_type=kind, **settings)


if __name__ == "__main__":
    eager = dict(attn_implementation="eager")
    make("bert", BertModel(BertConfig(**BERT, **eager)), BERT, LENGTHS, {})
    make("distilbert", DistilBertModel(DistilBertConfig(**DISTILBERT, **eager)), DISTILBERT, LENGTHS, {})
    second_name = {"encoder.embed_tokens.weight": "shared.weight"}
    make("t5", T5EncoderModel(T5Config(**T5)), T5, T5_LENGTHS, second_name)
