import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import phantom
from vgjax import config as configs
from vgjax import parallel
from vgjax.config import ConfigError
from vgjax.context import Context
from vgjax.models import vgg
from vgjax.stages import prior
from vgjax.stages.prior import load_features

# torchvision's names of the convolutions up to relu3_1: (inputs, outputs).
LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}


def tensors(**changes):
    rng = np.random.default_rng(0)
    found = {}
    for layer, (inputs, outputs) in LAYERS.items():
        kernel = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3))
        found[f"features.{layer}.weight"] = kernel.astype("f")
        found[f"features.{layer}.bias"] = rng.normal(0, 0.1, outputs).astype("f")
    found.update(changes)
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def saved(path, **changes):
    safetensors.numpy.save_file(tensors(**changes), path)
    return str(path)


def test_features_and_term(tmp_path):
    variables = load_features(saved(tmp_path / "vgg.safetensors"))
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1, maxval=1)
    chex.assert_shape(vgg.VGG19Features().apply(variables, x), (2, 4, 4, 256))
    assert not vgg.perceptual(variables, x, x).any()
    assert (vgg.perceptual(variables, x, -x) > 0.01).all()
    assert np.abs(jax.grad(lambda x: vgg.perceptual(variables, x, -x).sum())(x)).max() > 1e-5


def test_first_layer_matches_a_direct_sum(tmp_path):
    """One output pixel of conv1_1 by hand: normalisation, layout and padding."""
    variables = load_features(saved(tmp_path / "vgg.safetensors"))
    x = np.random.default_rng(1).uniform(-1, 1, (1, 4, 4, 3)).astype("f")
    normal = ((x[0] + 1) / 2 - np.array(vgg.MEAN)) / np.array(vgg.STD)
    kernel, bias = (tensors()[f"features.0.{leaf}"] for leaf in ("weight", "bias"))
    wanted = np.einsum("yxi,oiyx->o", normal[0:3, 1:4], kernel) + bias
    _, between = vgg.VGG19Features().apply(variables, x, capture_intermediates=True)
    got = between["intermediates"]["conv1_1"]["__call__"][0]
    np.testing.assert_allclose(got[0, 1, 2], wanted, atol=1e-4)


def test_the_whole_network_of_torchvision_is_read_up_to_its_features(tmp_path):
    later = {"features.12.weight": np.ones((1, 1), "f"), "features.34.bias": np.ones(1, "f")}
    path = saved(tmp_path / "vgg.safetensors", **later, **{"classifier.6.bias": np.ones(1, "f")})
    chex.assert_trees_all_equal(load_features(path), load_features(saved(tmp_path / "part.safetensors")))


def test_stage_one_has_the_term(tmp_path):
    given = phantom.get_config("smoke")
    given.prior.weight_perceptual, given.prior.vgg_path = 0.5, saved(tmp_path / "vgg.safetensors")
    config = configs.from_config_dict(given)
    stage = prior.PriorStage(Context(config, parallel.make_mesh(config.mesh), {}.__getitem__))
    rng, size = np.random.default_rng(0), config.data.image_size
    batch = {
        "image": rng.integers(0, 256, (2, size, size, 3), np.uint8),
        "mask": rng.integers(0, 2, (2, size, size), np.uint8),
    }

    state = stage.init(jax.random.key(0))
    terms, _ = jax.jit(stage.loss)(*state, stage.frozen, batch, jax.random.key(1))
    assert stage.weights["perceptual"] == 0.5
    assert terms["perceptual"].shape == (2,) and (terms["perceptual"] > 0.01).all()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"features.5.bias": None}, r"features\.5\.bias is missing"),
        ({"features.7.weight": np.zeros((1, 1, 3, 3), "f")}, r"features\.7\.weight has shape \(1, 1, 3, 3\)"),
        ({"features.3.weight": np.zeros(1, "f")}, r"features\.3\.weight is unexpected"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, changes, complaint):
    with pytest.raises(ConfigError, match=rf"prior\.vgg_path.*torchvision.*{complaint}"):
        load_features(saved(tmp_path / "vgg.safetensors", **changes))


@pytest.mark.parametrize("name", ["vgg.safetensors", "vgg.pth"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04 no tensors")
    with pytest.raises(ConfigError, match=rf"prior\.vgg_path.*{name}"):
        load_features(str(tmp_path / name))
