import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf
from tokenizers import BertWordPieceTokenizer

from vgjax.config import ConfigError, TextEncoder
from vgjax.models import text_encoder
from vgjax.text import load_text_encoder, write_vocabulary

REPO = Path(__file__).parents[1]
WIDTH, DEPTH, HEADS, HIDDEN, POSITIONS = 16, 3, 2, 24, 40
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "small",
    "large",
    "polyp",
    "in",
    "the",
    "centre",
    "##s",
    "left",
]
TEXTS = ["a small polyp", "large polyps in the centre", "the left"]

# Written out from the two published layouts, not taken from the package.
LAYOUTS: dict[str, Any] = {
    "bert": {
        "layer": "encoder.layer",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
        "config": dict(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=HIDDEN,
            type_vocab_size=2,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        ),
    },
    "distilbert": {
        "layer": "transformer.layer",
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "out": "attention.out_lin",
        "norm1": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "norm2": "output_layer_norm",
        "config": dict(dim=WIDTH, n_layers=DEPTH, n_heads=HEADS, hidden_dim=HIDDEN, activation="gelu"),
    },
}


def tiny_tensors(kind: str) -> dict[str, np.ndarray]:
    rng, names = np.random.default_rng(0), LAYOUTS[kind]
    tensors = {
        "embeddings.word_embeddings.weight": rng.normal(size=(len(PIECES), WIDTH)),
        "embeddings.position_embeddings.weight": rng.normal(size=(POSITIONS, WIDTH)),
        "embeddings.LayerNorm.weight": rng.normal(1, 0.2, WIDTH),
        "embeddings.LayerNorm.bias": rng.normal(size=WIDTH),
    }
    if kind == "bert":
        tensors["embeddings.token_type_embeddings.weight"] = rng.normal(size=(2, WIDTH))
    for layer in range(DEPTH):
        for part, shape in [
            *((part, (WIDTH, WIDTH)) for part in ("query", "key", "value", "out")),
            ("up", (HIDDEN, WIDTH)),
            ("down", (WIDTH, HIDDEN)),
        ]:
            tensors[f"{names['layer']}.{layer}.{names[part]}.weight"] = rng.normal(size=shape) / 2
            tensors[f"{names['layer']}.{layer}.{names[part]}.bias"] = rng.normal(size=shape[0])
        for part in ("norm1", "norm2"):
            tensors[f"{names['layer']}.{layer}.{names[part]}.weight"] = rng.normal(1, 0.2, WIDTH)
            tensors[f"{names['layer']}.{layer}.{names[part]}.bias"] = rng.normal(size=WIDTH)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def save_model(folder, kind: str, tensors=None, vocabulary_file: str = "tokenizer.json", lowercase=True, **config):
    folder.mkdir(exist_ok=True)
    save_file(tiny_tensors(kind) if tensors is None else tensors, folder / "model.safetensors")
    values = dict(model_type=kind, vocab_size=len(PIECES), max_position_embeddings=POSITIONS)
    (folder / "config.json").write_text(json.dumps(values | LAYOUTS[kind]["config"] | config))
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    if vocabulary_file == "tokenizer.json":
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)
        tokenizer.enable_padding(length=7)  # a saved setting that must not survive loading
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").unlink()
    return folder


def encoder(kind: str, width: int, path: str, max_length: int) -> text_encoder.TextEncoder:
    return load_text_encoder(TextEncoder(kind=kind, width=width, path=path, max_length=max_length))


def encoder_in(folder, max_length: int = POSITIONS) -> text_encoder.TextEncoder:
    return encoder("bert", WIDTH, str(folder), max_length)


def reference(kind: str, text: str) -> np.ndarray:
    """The mean-pooled last hidden states of one unpadded text, from the equations of the papers, in float64."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in tiny_tensors(kind).items()}
    names = LAYOUTS[kind]

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    pieces = ["[CLS]", *text.replace("polyps", "polyp ##s").split(), "[SEP]"]
    ids = [PIECES.index(piece) for piece in pieces]
    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    if kind == "bert":
        x = x + tensors["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(DEPTH):
        prefix = f"{names['layer']}.{layer}."
        q, k, v = (linear(x, prefix + names[part]) for part in ("query", "key", "value"))
        attended = []
        for head in np.split(np.arange(WIDTH), HEADS):
            scores = q[:, head] @ k[:, head].T / math.sqrt(WIDTH // HEADS)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        x = norm(x + linear(np.concatenate(attended, -1), prefix + names["out"]), prefix + names["norm1"])
        hidden = linear(x, prefix + names["up"])
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = norm(x + linear(hidden, prefix + names["down"]), prefix + names["norm2"])
    return x.mean(0)


def test_hashing_is_deterministic_and_blind_to_case_and_punctuation():
    encode = encoder("hashing", 256, "", 128)
    once = encode(["A small polyp, in the centre.", "a large polyp"])
    again = encoder("hashing", 256, "", 128)(["a SMALL polyp in the centre", "a large polyp"])
    np.testing.assert_array_equal(once, again)
    assert once.shape == (2, 256) and once.dtype == np.float32 and encode.width == 256
    assert np.abs(once[0] - once[1]).max() > 0.5


def test_hashing_knows_word_order_and_single_characters():
    encode = encoder("hashing", 512, "", 128)
    vectors = encode(["large left small right", "small left large right", "grade 1", "grade 2"])
    assert np.abs(vectors[0] - vectors[1]).max() > 0.5
    assert np.abs(vectors[2] - vectors[3]).max() > 0.5


def test_hashing_entries_have_mean_square_one():
    vectors = encoder("hashing", 1024, "", 128)([*TEXTS, ""])
    np.testing.assert_allclose((vectors**2).mean(axis=1), [1, 1, 1, 0], rtol=1e-5)


def test_hashing_hears_every_word():
    assert encoder("hashing", 64, "", 128).unknown(["a zebra", "xyzzy"]) == []


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_bert_matches_the_equations(tmp_path, kind):
    encoded = encoder_in(save_model(tmp_path / "model", kind))(TEXTS)
    assert encoded.shape == (3, WIDTH) and encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, [reference(kind, text) for text in TEXTS], atol=2e-5)


def test_layers_run_in_the_order_of_their_numbers(tmp_path):
    tensors = tiny_tensors("bert")
    swap = {"encoder.layer.0.": "encoder.layer.2.", "encoder.layer.2.": "encoder.layer.0."}
    swapped = {swap.get(name[:16], name[:16]) + name[16:]: tensor for name, tensor in tensors.items()}
    encoded = encoder_in(save_model(tmp_path / "model", "bert", swapped))(TEXTS[:1])
    assert np.abs(encoded[0] - reference("bert", TEXTS[0])).max() > 0.1


def test_a_text_does_not_depend_on_its_batch_mates(tmp_path):
    encode = encoder_in(save_model(tmp_path / "model", "bert"))
    long = "small " * 36
    together = encode([*TEXTS, long] * 6)  # two buckets, more than one batch
    assert len(together) == 24 > text_encoder.BATCH_SIZE
    np.testing.assert_allclose(together, np.concatenate([encode([*TEXTS]), encode([long])] * 6), atol=1e-6)
    assert encode([]).shape == (0, WIDTH)


def test_texts_are_cut_at_the_limit_of_the_model_or_of_the_user(tmp_path):
    folder = save_model(tmp_path / "model", "distilbert")
    encode = encoder_in(folder, max_length=512)
    np.testing.assert_array_equal(encode(["small " * 38]), encode(["small " * 90]))  # 40 positions with both ends
    assert np.abs(encode(["small " * 38]) - encode(["small " * 37])).max() > 1e-4
    np.testing.assert_allclose(
        encoder_in(folder, max_length=5)(["a small polyp in"]), encode(["a small polyp"]), atol=1e-6
    )


def test_prefix_old_names_and_heads_are_understood(tmp_path):
    tensors = {}
    for name, tensor in tiny_tensors("bert").items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        tensors[f"bert.{name}"] = tensor
    for name in ("bert.pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.position_ids"):
        tensors[name] = np.zeros(3, np.float32)
    encoded = encoder_in(save_model(tmp_path / "model", "bert", tensors, vocabulary_file="vocab.txt"))(TEXTS)
    np.testing.assert_allclose(encoded, [reference("bert", text) for text in TEXTS], atol=2e-5)


@pytest.mark.parametrize("vocabulary_file", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_case_counts_where_the_tokenizer_says_so(tmp_path, vocabulary_file, lowercase):
    """The tokenizer.json says so itself; beside a vocab.txt the tokenizer_config.json does."""
    folder = save_model(tmp_path / "model", "bert", vocabulary_file=vocabulary_file, lowercase=lowercase)
    if vocabulary_file == "vocab.txt":
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    written, small, unknown = encoder_in(folder)(["A pólyp", "a polyp", "[UNK] [UNK]"])
    np.testing.assert_array_equal(written, small if lowercase else unknown)


def test_transformers_is_imported_late_silently_and_without_a_network(tmp_path):
    program = """
import socket, sys
import vgjax.text
from vgjax.config import TextEncoder
assert "transformers" not in sys.modules
def refuse(self, address): raise AssertionError(address)
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
encode = vgjax.text.load_text_encoder(TextEncoder(kind="bert", width=16, path=sys.argv[1], max_length=40))
assert "transformers" in sys.modules and encode(["a polyp"]).shape == (1, 16)
"""
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    command = [sys.executable, "-W", "error", "-c", program]
    for vocabulary_file in ("tokenizer.json", "vocab.txt"):
        folder = save_model(tmp_path / vocabulary_file, "bert", vocabulary_file=vocabulary_file)
        ran = subprocess.run([*command, folder], cwd=REPO, env=online, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_half_precision_weights_are_computed_with_in_float32(tmp_path):
    tensors = {name: tensor.astype(np.float16) for name, tensor in tiny_tensors("bert").items()}
    encoded = encoder_in(save_model(tmp_path / "model", "bert", tensors))(TEXTS)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, [reference("bert", text) for text in TEXTS], atol=2e-2)


def test_every_misfit_of_the_weights_is_listed_at_once(tmp_path):
    tensors = tiny_tensors("bert")
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["encoder.layer.3.output.dense.bias"] = np.zeros(WIDTH, np.float32)
    tensors["encoder.layer.2.intermediate.dense.weight"] = np.zeros((WIDTH, HIDDEN), np.float32)
    tensors["embeddings.surprise"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError) as caught:
        encoder_in(save_model(tmp_path / "model", "bert", tensors))
    message = str(caught.value)
    assert "encoder.layer.1.output.dense.bias is missing" in message
    assert "encoder.layer.3.output.dense.bias is unexpected" in message
    assert "encoder.layer.2.intermediate.dense.weight has shape (16, 24) instead of (24, 16)" in message
    assert "embeddings.surprise is unexpected" in message


def spoil(folder, name: str, content: str | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", None, "no file .*config.json"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"model_type": "t5"}', "model_type 't5'"),
        ("config.json", '{"model_type": "bert", "vocab_size": 13}', "no usable hidden_size, num_hidden_layers"),
        ("config.json", '{"model_type": "distilbert", "dim": "wide"}', "no usable vocab_size, dim"),
        ("model.safetensors", None, "holds 0 weight files"),
        ("model.safetensors", "not tensors at all", "cannot be read as safetensors"),
        ("tokenizer.json", None, "neither tokenizer.json nor vocab.txt"),
        ("tokenizer.json", "{}", "broken tokenizer"),
    ],
)
def test_a_broken_folder_is_refused_in_one_sentence(tmp_path, name, content, complaint):
    folder = save_model(tmp_path / "model", "bert")
    spoil(folder, name, content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        encoder_in(folder)
    assert "text_encoder.path" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"hidden_act": "swish"}, "activation 'swish'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 3}, "3 heads do not divide"),
        ({"num_attention_heads": 0}, "0 heads do not divide"),
        ({"vocab_size": 13}, "knows 14 pieces but the model 13"),
    ],
)
def test_a_variant_that_is_not_built_is_refused(tmp_path, config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        encoder_in(save_model(tmp_path / "model", "bert", **config))


def test_values_of_the_config_that_do_not_fit_name_their_key(tmp_path):
    folder = str(save_model(tmp_path / "model", "bert"))
    with pytest.raises(ConfigError, match=r"text_encoder.width' is 768 .* set it to 16"):
        encoder("bert", 768, folder, 128)
    with pytest.raises(ConfigError, match=r"text_encoder.max_length' is 2"):
        encoder("bert", WIDTH, folder, 2)
    for path in (str(tmp_path / "absent"), "nobody/no-such-model", "no/such/hub/id"):
        with pytest.raises(ConfigError, match=r"text_encoder.path': .* is neither a file, a folder nor a model"):
            encoder("bert", WIDTH, path, 128)


def test_a_model_in_the_local_hub_cache_is_found_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots").mkdir()
    save_model(home / "snapshots" / ("0" * 40), "bert")
    encoded = encoder("bert", WIDTH, "someone/tiny", 128)(TEXTS)
    np.testing.assert_allclose(encoded, [reference("bert", text) for text in TEXTS], atol=2e-5)


def test_word_pieces_are_the_tokenizers_own(tmp_path):
    folder = save_model(tmp_path / "model", "bert")
    encode = encoder_in(folder)
    found = encode.ids(TEXTS)
    assert len({len(ids) for ids in found}) > 1 and encode.ids(TEXTS[-1:])[0] == found[-1]
    states = encode.module.apply(encode.variables, np.array(found[:1]), np.ones((1, len(found[0])), bool))
    np.testing.assert_allclose(states[0].mean(0), encode(TEXTS[:1])[0], atol=1e-6)


def test_hashed_words_are_told_by_their_entries():
    encode = text_encoder.Hashing(64)
    (ids,) = encode.ids(["a small polyp"])
    assert ids == [int(np.abs(encode([word])[0]).argmax()) for word in ("a", "small", "polyp")]
    assert encode.ids([""]) == [[]]


def test_a_vocabulary_with_a_model_reads_unknown_words_by_it(tmp_path):
    """Widths need not agree: the embedding stays that of the vocabulary."""
    save_model(tmp_path / "model", "bert")
    write_vocabulary(tmp_path / "vocabulary.json", ["a small polyp", "a large polyp"], 20)
    config = TextEncoder(kind="vocabulary", width=20, path=str(tmp_path / "model"))
    encode = load_text_encoder(config, tmp_path / "vocabulary.json")
    assert isinstance(encode, text_encoder.SynonymEncoder) and encode(["a small polyp"]).shape == (1, 20)
    states = encoder_in(tmp_path / "model")(["huge", "small", "large", "a"])
    likeness = states[1:3] @ states[0] / np.linalg.norm(states[1:3], axis=1)
    found = encode.unknown(["a huge polyp"])
    assert found in (["huge"], [f"huge (read as {('small', 'large')[int(likeness.argmax())]})"])
    plain = load_text_encoder(TextEncoder(kind="vocabulary", width=20), tmp_path / "vocabulary.json")
    assert plain.unknown(["a huge polyp"]) == ["huge"]
