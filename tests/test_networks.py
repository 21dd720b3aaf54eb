"""Networks that pictures are compared in, from files: given pictures as their authors did, named by what they are."""

import hashlib
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.parity.random_weights import load_golden
from vgjax import parallel
from vgjax.config import ConfigError, Mesh
from vgjax.evaluation import networks
from vgjax.models import inception
from vgjax.weights import from_torch

PREPARATION = {
    "size": {"shortest_edge": 20},
    "crop_size": {"height": 16, "width": 16},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture
def folder(tmp_path):
    """A tiny DINOv2 as transformers keeps it."""
    tensors, _, settings = load_golden("dinov2")
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPARATION))
    return tmp_path


def pictures(count, side=32):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_pictures_reach_a_model_as_its_own_file_says(folder):
    net = networks.from_file("rad_dino", str(folder), parallel.make_mesh(Mesh()))
    seen = pictures(3)
    small = np.stack([np.asarray(Image.fromarray(p).resize((20, 20), Image.Resampling.BICUBIC)) for p in seen])
    normal = ((small[:, 2:18, 2:18] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).astype(np.float32)
    tensors, _, settings = load_golden("dinov2")
    module, variables = from_torch("dinov2", {k: v.astype(np.float32) for k, v in tensors.items()}, settings)
    expected = jax.jit(module.apply)(variables, normal)
    found = net.apply(iter(seen))
    assert found.dtype == np.float32 and found == pytest.approx(np.asarray(expected), abs=1e-4)
    assert (net.name, net.size) == ("rad_dino", 16)
    assert net.resize == "bicubic to 20 x 20, of which the middle 16 x 16"
    assert net.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("fault", ["gone", "size", "mean", "crop"])
def test_a_folder_without_a_usable_preparation_is_refused(folder, fault):
    path = folder / "preprocessor_config.json"
    changes = {"size": {"size": {"width": 3}}, "mean": {"image_mean": [0.5]}, "crop": {"crop_size": {"height": 99}}}
    path.write_text(json.dumps(PREPARATION | changes.get(fault, {})))
    if fault == "gone":
        path.unlink()
    with pytest.raises(ConfigError, match=r"^config key 'networks\.dinov2': .*preprocessor_config\.json"):
        networks.from_file("dinov2", str(folder), parallel.make_mesh(Mesh()))


def test_other_weights_are_refused_by_the_name_of_their_key(folder):
    for source, told in ((str(folder / "model.safetensors"), "missing"), (str(folder / "none"), "neither a file")):
        with pytest.raises(ConfigError, match=rf"^config key 'networks\.inception': .*{told}"):
            networks.from_file("inception", source, parallel.make_mesh(Mesh()))


def test_inception_is_given_what_the_released_graph_made_of_pictures(monkeypatch, tmp_path):
    class Means:
        """In the place of the network: features that tell what reached it."""

        def apply(self, variables, image_BHWC):
            return variables["scale"] * image_BHWC.mean((1, 2)), None

    monkeypatch.setattr(networks, "from_torch", lambda kind, tensors, where: (Means(), {"scale": tensors["scale"]}))
    save_file({"scale": np.full((1, 1), 2.0, np.float32)}, tmp_path / "model.safetensors")
    net = networks.from_file("inception", str(tmp_path / "model.safetensors"), parallel.make_mesh(Mesh()))
    plain = np.full((20, 8, 8, 3), 64, np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    expected = 2 * (plain[:, 0, 0].astype(float) - 128) / 128
    assert net.apply(plain) == pytest.approx(expected, abs=1e-5) and net.size == inception.SIDE == 299
    assert "TensorFlow 1" in net.resize
