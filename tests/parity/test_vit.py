"""DINOv2 against transformers' own, by committed outputs."""

import functools

import jax
import numpy as np
import pytest

from tests.parity.random_weights import load_golden
from vgjax.weights import WeightsError, from_torch, to_torch

read = functools.cache(load_golden)
kinds = pytest.mark.parametrize("kind", ["dinov2", "dinov2_registers"])


@kinds
def test_features_match_at_the_size_of_the_position_embeddings_and_at_others(kind):
    tensors, io, settings = read(kind)
    module, variables = from_torch("dinov2", {k: v.astype(np.float32) for k, v in tensors.items()}, settings)
    for case in ("same", "larger", "smaller"):
        found = np.asarray(jax.jit(module.apply)(variables, io[f"{case}.pictures"]))
        assert np.abs(found - io[f"{case}.features"]).max() < 1e-4, case


@kinds
def test_weights_come_back_as_they_were(kind):
    tensors, _, settings = read(kind)
    named = {f"dinov2_with_registers.{name}": tensor for name, tensor in tensors.items()}
    back = to_torch("dinov2", from_torch("dinov2", named, settings)[1])
    assert set(back) == set(tensors) - {"embeddings.mask_token"}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


def test_every_misfit_is_named_at_once():
    tensors, _, settings = read("dinov2")
    bent = "encoder.layer.1.mlp.fc2.weight"
    wrong = {name: tensor for name, tensor in tensors.items() if name != "layernorm.bias"}
    wrong |= {bent: tensors[bent][:-1], "surprise.weight": np.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        from_torch("dinov2", wrong, settings)
    message = str(caught.value)
    assert "layernorm.bias is missing" in message and f"{bent} has shape (23, 48)" in message
    assert "surprise.weight is unexpected" in message
    with pytest.raises(WeightsError, match="num_attention_heads 5"):
        from_torch("dinov2", tensors, {**settings, "num_attention_heads": 5})
