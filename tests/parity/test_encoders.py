"""The text encoders against transformers' own, by committed outputs."""

import functools
import os

import jax
import numpy as np
import pytest

from tests.parity.random_weights import load_golden
from vgjax.config import ConfigError, TextEncoder
from vgjax.models.t5 import distance_buckets
from vgjax.text import load_text_encoder
from vgjax.weights import WeightsError, from_torch, to_torch

# Largest error of hidden states in float64 and float32. JAX's attention takes its softmax in float32 whatever it runs
# in, and torch's T5 its norms as well, so that float64 gains but one digit.
TOLERANCE = {"bert": (1e-6, 1e-5), "distilbert": (1e-6, 1e-5), "t5": (1e-5, 1e-4)}
CASES = {"bert": ("full", "short"), "distilbert": ("full", "short"), "t5": ("long", "short")}
# A tensor to leave out and one to bend, of which no size is read.
MISSING = {
    "bert": "encoder.layer.1.output.dense.bias",
    "distilbert": "transformer.layer.1.ffn.lin2.bias",
    "t5": "encoder.block.2.layer.1.DenseReluDense.wi_1.weight",
}
BENT = {
    "bert": "encoder.layer.0.intermediate.dense.weight",
    "distilbert": "transformer.layer.0.attention.q_lin.weight",
    "t5": "encoder.block.1.layer.0.layer_norm.weight",
}

kinds = pytest.mark.parametrize("kind", list(CASES))
read = functools.cache(load_golden)


def errors(kind: str, dtype: type) -> dict[str, float]:
    """Largest absolute error of the hidden states of all tokens, padding aside, by case."""
    tensors, io, settings = read(kind)
    module, variables = from_torch(kind, {name: tensor.astype(dtype) for name, tensor in tensors.items()}, settings)
    found = {}
    for case in CASES[kind]:
        mask = io[f"{case}.mask"]
        hidden = jax.jit(module.apply)(variables, io[f"{case}.ids"], mask)
        assert hidden.dtype == dtype
        found[case] = float(np.abs(np.asarray(hidden) - io[f"{case}.hidden"])[mask].max())
    return found


@kinds
def test_hidden_states_match_in_float64(kind):
    with jax.enable_x64(True):
        found = errors(kind, np.float64)
    assert max(found.values()) < TOLERANCE[kind][0], found


@kinds
def test_hidden_states_match_in_float32(kind):
    found = errors(kind, np.float32)
    assert max(found.values()) < TOLERANCE[kind][1], found


@kinds
def test_weights_come_back_as_they_were(kind):
    tensors, _, settings = read(kind)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    back = to_torch(kind, from_torch(kind, tensors, settings)[1])
    assert set(back) == set(kept)
    for name, tensor in kept.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@kinds
def test_every_misfit_is_named_at_once(kind):
    tensors, _, settings = read(kind)
    wrong = {name: tensor for name, tensor in tensors.items() if name != MISSING[kind]}
    wrong |= {BENT[kind]: tensors[BENT[kind]][:-1], "surprise.weight": np.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        from_torch(kind, wrong, settings)
    message = str(caught.value)
    assert f"{MISSING[kind]} is missing" in message
    assert f"{BENT[kind]} has shape {wrong[BENT[kind]].shape} instead of {tensors[BENT[kind]].shape}" in message
    assert "surprise.weight is unexpected" in message


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_config_that_does_not_do_is_refused(kind):
    tensors, _, settings = read(kind)
    with pytest.raises(WeightsError, match="model_type None"):
        from_torch(kind, tensors)
    with pytest.raises(WeightsError, match="position_embedding_type 'relative_key'"):
        from_torch(kind, tensors, settings | {"position_embedding_type": "relative_key"})


def test_t5_knows_its_embedding_by_both_names_and_leaves_the_decoder_out():
    tensors, _, settings = read("t5")
    more = {"encoder.embed_tokens.weight": tensors["shared.weight"], "decoder.final_layer_norm.weight": np.ones(3)}
    _, plain = from_torch("t5", tensors, settings)
    _, variables = from_torch("t5", tensors | more | {"lm_head.weight": np.ones((2, 3))}, settings)
    jax.tree.map(np.testing.assert_array_equal, variables, plain)
    with pytest.raises(WeightsError, match=r"two different tensors are both 'shared\.weight'"):
        from_torch("t5", tensors | {"encoder.embed_tokens.weight": -tensors["shared.weight"]}, settings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_heads": 5}, "num_heads 5 but the tensors 3"),
        ({"d_kv": 64}, "d_kv 64 but the tensors 5"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
    ],
)
def test_a_t5_config_of_another_model_is_refused(changes, complaint):
    tensors, _, settings = read("t5")
    with pytest.raises(WeightsError, match=complaint):
        from_torch("t5", tensors, settings | changes)


def test_t5_takes_the_largest_distance_from_its_config():
    """With all far distances in one bucket the same weights give other hidden states."""
    tensors, io, settings = read("t5")
    hidden = []
    for largest in (128, 20):
        module, variables = from_torch("t5", tensors, settings | {"relative_attention_max_distance": largest})
        hidden.append(np.asarray(module.apply(variables, io["long.ids"], io["long.mask"])))
    assert np.abs(hidden[0] - hidden[1]).max() > 0.01


def test_distances_fall_into_growing_buckets():
    """Row 0 looks ahead and the last row back; a bucket of the published 32 begins at each of these distances."""
    firsts = [*range(1, 9), 12, 16, 23, 32, 46, 64, 91]
    ahead, back = distance_buckets(200, 32, 128)[0], distance_buckets(200, 32, 128)[-1, ::-1]
    assert [int(d) for d in np.flatnonzero(np.diff(back)) + 1] == firsts
    np.testing.assert_array_equal(ahead[1:], back[1:] + 16)
    assert back[0] == ahead[0] == 0 and back.max() == 15


@pytest.fixture
def mini_lm() -> str:
    """The folder of all-MiniLM-L6-v2's files, a BERT of width 384."""
    folder = os.environ.get("VGJAX_TEST_MINILM")
    if not folder:
        pytest.skip("VGJAX_TEST_MINILM does not name the folder of all-MiniLM-L6-v2 (config.json, weights, tokenizer)")
    return folder


def test_real_weights_put_like_sentences_near_each_other(mini_lm):
    encode = load_text_encoder(TextEncoder(kind="bert", width=384, path=mini_lm, max_length=128))
    like, alike, unlike = encode(
        ["a large polyp in the left half", "on the left there is a big polyp", "the train leaves the station at noon"]
    )
    assert like.shape == (384,)
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine(like, alike) > 0.6 > 0.3 > cosine(like, unlike)


def test_real_weights_name_their_width(mini_lm):
    with pytest.raises(ConfigError, match=r"text_encoder.width' is 768 .* set it to 384"):
        load_text_encoder(TextEncoder(kind="bert", width=768, path=mini_lm, max_length=128))


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("bert", "num_hidden_layers", 0),
        ("bert", "num_hidden_layers", 10**9),
        ("bert", "vocab_size", -1),
        ("t5", "layer_norm_epsilon", "x"),
        ("distilbert", "n_layers", 10**9),
    ],
)
def test_settings_that_make_no_network_are_refused(kind, setting, value):
    tensors, _, settings = read(kind)
    with pytest.raises(WeightsError, match=r"config\.json"):
        from_torch(kind, tensors, settings | {setting: value})
