from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vgjax.config import ConfigError
from vgjax.models import vgg


def weights(path, **changes):
    rng = np.random.default_rng(0)
    tensors = {}
    for layer, (inputs, outputs) in vgg.LAYERS.items():
        tensors[f"features.{layer}.weight"] = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3)).astype(
            "f"
        )
        tensors[f"features.{layer}.bias"] = rng.normal(0, 0.1, outputs).astype("f")
    tensors.update(changes)
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)
    return str(path)


def test_features_and_term(tmp_path):
    features = vgg.load_features(weights(tmp_path / "vgg.safetensors"))
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1, maxval=1)
    chex.assert_shape(vgg.relu3_1(features, x), (2, 4, 4, 256))
    assert not vgg.perceptual(features, x, x).any()
    assert (vgg.perceptual(features, x, -x) > 0.01).all()


def test_first_layer_matches_a_direct_sum(tmp_path):
    """One output pixel of conv1_1 by hand: normalisation, layout and padding."""
    features = vgg.load_features(weights(tmp_path / "vgg.safetensors"))
    raw = safetensors.numpy.load_file(tmp_path / "vgg.safetensors")
    x = np.random.default_rng(1).uniform(-1, 1, (1, 4, 4, 3)).astype("f")
    normal = ((x[0] + 1) / 2 - vgg.MEAN) / vgg.STD
    wanted = np.einsum("yxi,oiyx->o", normal[0:3, 1:4], raw["features.0.weight"]) + raw["features.0.bias"]
    flat = ((jnp.asarray(x) + 1) / 2 - vgg.MEAN[None, None, None]) / vgg.STD[None, None, None]
    kernel = features["0"]["kernel"]
    got = jax.lax.conv_general_dilated(
        flat, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(got[0, 1, 2] + features["0"]["bias"], wanted, atol=1e-4)


@pytest.mark.parametrize("changes", [{"features.5.bias": None}, {"features.7.weight": np.zeros((1, 1, 3, 3), "f")}])
def test_wrong_weights_are_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"vgg_path.*features\.[57].*torchvision"):
        vgg.load_features(weights(tmp_path / "vgg.safetensors", **changes))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "vgg.pth").write_bytes(b"\x80\x04 no safetensors")
    with pytest.raises(ConfigError, match=r"cannot be read as safetensors"):
        vgg.load_features(str(tmp_path / "vgg.pth"))
