"""The two autoencoders against diffusers' and TAESD's arithmetic in torch."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity.random_weights import load_golden
from vgjax.weights import WeightsError, autoencoders, from_torch, to_torch

KINDS = {
    "autoencoder_kl": "autoencoder_kl",
    "autoencoder_tiny": "autoencoder_tiny",
    "autoencoder_tiny_pool": "autoencoder_tiny",
}
# Largest difference from torch, by our precision.
TOLERANCES = {np.float64: 1e-9, np.float32: 1e-4}


def nhwc(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(0, 2, 3, 1)


def built(golden: str, dtype: type = np.float32, drop: str = "$^", **changes: np.ndarray):
    """(module, variables) of a golden's weights, but for those whose names match `drop` and those in `changes`."""
    tensors, _, settings = load_golden(golden)
    tensors = {name: a for name, a in (tensors | changes).items() if not re.match(drop, name)}
    config = settings.get("config")
    return from_torch(KINDS[golden], {name: a.astype(dtype) for name, a in tensors.items()}, config)


def run(module, variables, method: str, x: np.ndarray):
    return jax.jit(lambda variables, x: module.apply(variables, x, method=method))(variables, x)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("golden", KINDS)
def test_both_directions_match_torch(golden: str, dtype: type) -> None:
    with jax.enable_x64(dtype == np.float64):
        module, variables = built(golden, dtype)
        io = {name: nhwc(a).astype(dtype) for name, a in load_golden(golden)[1].items()}
        if "mean" in io:
            encoded = dict(zip(("mean", "logvar"), run(module, variables, "posterior", io["image"]), strict=True))
            latents = (io["mean"] - module.shift_factor) * module.scaling_factor
        else:
            encoded = {"latents": run(module, variables, "encode", io["image"])}
            latents = io["latents"]
        decoded = run(module, variables, "decode", latents)
    for name, ours in (encoded | {"decoded": decoded}).items():
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, io[name], rtol=0, atol=TOLERANCES[dtype], err_msg=name)


@pytest.mark.parametrize("golden", KINDS)
def test_weights_return_bit_equal(golden: str) -> None:
    tensors = load_golden(golden)[0]
    returned = to_torch(KINDS[golden], built(golden, np.float64)[1])
    assert set(returned) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(returned[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("golden", "missing", "misshapen"),
    [
        ("autoencoder_kl", "decoder.mid_block.attentions.0.to_q.weight", "encoder.conv_out.weight"),
        ("autoencoder_tiny", "decoder.layers.3.conv.0.weight", "encoder.layers.1.conv.2.bias"),
        ("autoencoder_tiny", "encoder.layers.2.weight", "decoder.layers.2.conv.4.weight"),
        ("autoencoder_tiny", "decoder.layers.5.weight", "decoder.layers.0.bias"),
        ("autoencoder_tiny_pool", "encoder.layers.3.pool.1.bias", "decoder.layers.5.skip.weight"),
    ],
)
def test_everything_that_is_wrong_is_named_at_once(golden: str, missing: str, misshapen: str) -> None:
    wrong = {misshapen: load_golden(golden)[0][misshapen][1:], "encoder.stranger.weight": np.zeros(3)}
    with pytest.raises(WeightsError) as caught:
        built(golden, drop=re.escape(missing), **wrong)
    message = str(caught.value)
    assert f"{missing} is missing" in message
    assert re.search(rf"{re.escape(misshapen)} has shape .* instead of", message)
    assert "encoder.stranger.weight is unexpected" in message


def test_a_lost_block_does_not_make_a_shorter_network() -> None:
    with pytest.raises(WeightsError, match=r"encoder\.layers\.4\.weight is missing"):
        built("autoencoder_tiny", drop=r"encoder\.layers\.4\.")
    with pytest.raises(WeightsError, match=r"encoder\.layers\.0\.weight is missing"):
        built("autoencoder_tiny", drop=r"encoder\.")
    for lost in (2, 3, 5, 6, 7, 9, 10):
        with pytest.raises(WeightsError, match=rf"decoder\.layers\.{lost}\.weight is missing"):
            built("autoencoder_tiny", drop=rf"decoder\.layers\.{lost}\.")


def test_halves_of_two_networks_are_refused() -> None:
    """The encoder halves once, the decoder doubles twice."""
    decoder = {n: a for n, a in load_golden("autoencoder_tiny")[0].items() if n.startswith("decoder.")}
    with pytest.raises(WeightsError, match="2 times smaller and the decoder 4 times larger"):
        built("autoencoder_tiny_pool", drop=r"decoder\.layers\.\d+\.(pool|skip)\.", **decoder)


# ---------------------------------------------------------------- KL


def test_old_attention_names_mean_the_same() -> None:
    tensors, _, settings = load_golden("autoencoder_kl")
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {name.replace(f".{new}.", f".{old}."): a for name, a in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    _, variables = from_torch("autoencoder_kl", tensors, settings["config"])
    assert set(to_torch("autoencoder_kl", variables)) == set(load_golden("autoencoder_kl")[0])
    jax.tree.map(np.testing.assert_array_equal, variables, built("autoencoder_kl", np.float64)[1])


def test_without_quantising_convolutions_they_are_the_identity() -> None:
    identity = {
        f"{name}.{leaf}": np.eye(size)[..., None, None] if leaf == "weight" else np.zeros(size)
        for name, size in {"quant_conv": 8, "post_quant_conv": 4}.items()
        for leaf in ("weight", "bias")
    }
    image = nhwc(load_golden("autoencoder_kl")[1]["image"]).astype(np.float32)
    outputs = []
    for module, variables in (built("autoencoder_kl", **identity), built("autoencoder_kl", drop=r".*quant_conv")):
        outputs.append((*run(module, variables, "posterior", image), run(module, variables, "__call__", image)))
    assert (module.quant, module.post_quant) == (False, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *outputs)


def test_middle_blocks_without_attention() -> None:
    """An attention whose output is zero is none."""
    out = {f"{part}.mid_block.attentions.0.to_out.0" for part in ("encoder", "decoder")}
    zeros = {f"{n}.weight": np.zeros((16, 16)) for n in out} | {f"{n}.bias": np.zeros(16) for n in out}
    image = nhwc(load_golden("autoencoder_kl")[1]["image"]).astype(np.float32)
    outputs = [
        run(module, variables, "__call__", image)
        for module, variables in (built("autoencoder_kl", **zeros), built("autoencoder_kl", drop=r".*attentions"))
    ]
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5)


def test_log_variance_stays_within_its_bounds() -> None:
    bias = np.concatenate([np.zeros(4), [-100.0, -31.0, 21.0, 100.0]])
    module, variables = built(
        "autoencoder_kl", **{"quant_conv.bias": bias, "quant_conv.weight": np.zeros((8, 8, 1, 1))}
    )
    _, logvar = run(module, variables, "posterior", np.zeros((1, 32, 32, 3), np.float32))
    np.testing.assert_array_equal(logvar[0, 0, 0], [-30, -30, 20, 20])


@pytest.mark.parametrize(
    ("values", "scaling", "shift"),
    [
        ({}, 0.18215, 0.0),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159),
        ({"shift_factor": None}, 0.18215, 0.0),
    ],
)
def test_scale_comes_from_the_config(values: dict, scaling: float, shift: float) -> None:
    module, _ = from_torch("autoencoder_kl", load_golden("autoencoder_kl")[0], {"norm_num_groups": 4, **values})
    assert (module.scaling_factor, module.shift_factor) == (scaling, shift)


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("autoencoder_kl", {}, "norm_num_groups is 32"),
        ("autoencoder_kl", {"norm_num_groups": 0}, "norm_num_groups is 0"),
        ("autoencoder_kl", {"norm_num_groups": "four"}, "norm_num_groups 'four', which is no number"),
        ("autoencoder_kl", {"norm_num_groups": 4, "scaling_factor": 0}, r"scaling_factor 0\.0: give a positive"),
        ("autoencoder_kl", {"norm_num_groups": 4, "act_fn": "gelu"}, "act_fn 'gelu', and only 'silu'"),
        ("autoencoder_tiny", {"upsample_fn": "bilinear"}, "upsample_fn 'bilinear', and only 'nearest'"),
    ],
)
def test_configs_that_cannot_be_served_are_refused(kind: str, values: dict, match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        from_torch(kind, load_golden(kind)[0], values)


def save_kl(folder, **config) -> None:
    tensors, _, settings = load_golden("autoencoder_kl")
    folder.mkdir(parents=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings["config"] | config))


def test_a_pipeline_is_as_good_as_its_autoencoder(tmp_path) -> None:
    save_kl(tmp_path / "pipeline" / "vae")
    for source in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        tensors, config = autoencoders.load_kl(source)
        assert config["scaling_factor"] == 0.7
        from_torch("autoencoder_kl", tensors, config)
    with pytest.raises(WeightsError, match="neither a file, a folder nor a model in the local Hugging Face cache"):
        autoencoders.load_kl("nobody/nothing")


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_hub_ids_mean_the_local_cache(tmp_path, monkeypatch, subfolder: str) -> None:
    repository = tmp_path / "models--someone--something"
    save_kl(repository / "snapshots" / "abc" / subfolder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert set(autoencoders.load_kl("someone/something")[0]) == set(load_golden("autoencoder_kl")[0])


# ---------------------------------------------------------------- TAESD's own two files


def save_pair(folder, stem: str = "taetest") -> None:
    """The pool variant in the original's spelling: no prefix, and a decoder that counts from the clamp."""
    tensors = {name: a.astype(np.float32) for name, a in load_golden("autoencoder_tiny_pool")[0].items()}
    for part, offset in (("encoder", 0), ("decoder", 1)):
        named = {}
        for name, tensor in tensors.items():
            if name.startswith(f"{part}.layers."):
                index, rest = name.removeprefix(f"{part}.layers.").split(".", 1)
                named[f"{int(index) + offset}.{rest}"] = tensor
        save_file(named, folder / f"{stem}_{part}.safetensors")


def test_two_files_mean_the_same_as_one(tmp_path) -> None:
    save_pair(tmp_path)
    module, expected = built("autoencoder_tiny_pool")
    for source in (tmp_path, tmp_path / "taetest_encoder.safetensors"):
        found, variables = from_torch("autoencoder_tiny", *autoencoders.load_tiny(source))
        assert found == module
        jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_one_file_in_diffusers_spelling(tmp_path) -> None:
    tensors = load_golden("autoencoder_tiny")[0]
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    assert set(autoencoders.load_tiny(tmp_path)[0]) == set(tensors)


def test_what_is_no_pair_is_refused(tmp_path) -> None:
    save_pair(tmp_path, "one")
    save_pair(tmp_path, "two")
    with pytest.raises(WeightsError, match="2 files"):
        autoencoders.load_tiny(tmp_path)
    (tmp_path / "one_decoder.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"one_encoder.*one_decoder\.safetensors"):
        autoencoders.load_tiny(tmp_path / "one_encoder.safetensors")


def test_pth_pairs_are_found(tmp_path) -> None:
    for part in ("encoder", "decoder"):
        (tmp_path / f"taetest_{part}.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=r"taetest_encoder\.pth' is not a zip checkpoint"):
        autoencoders.load_tiny(tmp_path)
