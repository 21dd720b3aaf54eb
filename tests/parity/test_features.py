"""VGG-19 and Inception-v3 against the same networks in torch, by committed outputs."""

import functools

import jax
import numpy as np
import pytest

from tests.parity.random_weights import load_golden
from vgjax.models import vgg
from vgjax.models.inception import resize
from vgjax.weights import WeightsError, from_torch, to_torch

BENT = {"vgg19": "features.7.weight", "inception": "Mixed_6b.branch7x7_2.conv.weight"}
MISSING = {"vgg19": "features.10.bias", "inception": "Mixed_7c.branch_pool.bn.running_var"}

kinds = pytest.mark.parametrize("kind", list(BENT))


@functools.cache
def read(kind: str):
    """(weights, inputs and outputs) of a golden, pictures in [-1, 1]."""
    tensors, io, settings = load_golden(kind)
    tiles = io["image"].repeat(settings.get("tile", 1), 1).repeat(settings.get("tile", 1), 2)
    io["image"] = 2 * (tiles.astype(np.float64) / 255) - 1
    for name in tensors:
        if name.endswith("running_var"):
            tensors[name] = tensors[name] * settings["variance_scale"]
    return tensors, io


def load(kind: str, dtype: type):
    """Module, and its variables and the golden's pictures in one precision."""
    tensors, io = read(kind)
    module, variables = from_torch(kind, {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    return module, variables, io["image"].astype(dtype)


def largest(ours, theirs: np.ndarray) -> float:
    """Largest absolute difference of two arrays of one shape."""
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_vgg_features_and_distance_match(dtype, tolerance):
    io = read("vgg19")[1]
    with jax.enable_x64(dtype is np.float64):
        module, variables, image = load("vgg19", dtype)
        features = jax.jit(module.apply)(variables, image)
        distance = vgg.perceptual(variables, image[:1], image[1:])
        assert features.dtype == dtype
        assert largest(features, io["features"]) < tolerance
        assert largest(distance, io["distance"].reshape(1)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-4)])
def test_inception_features_and_logits_match(dtype, tolerance):
    io = read("inception")[1]
    with jax.enable_x64(dtype is np.float64):
        module, variables, image = load("inception", dtype)
        features, logits = jax.jit(module.apply)(variables, image)
        assert features.dtype == dtype
        assert features.shape == (2, 2048) and logits.shape == (2, 1008)
        assert largest(features, io["features"]) < tolerance
        assert largest(logits, io["logits"]) < tolerance


def test_pictures_are_resized_as_tensorflow_1_did():
    """Up and down at once, of a picture of 600 x 7 pixels; every 13th pixel."""
    picture = read("inception")[1]["tall"][0, :, :, 0].astype(np.float64)
    expected = np.zeros((23, 23))
    for i, j in np.ndindex(23, 23):
        y, x = 13 * i * 600 / 299, 13 * j * 7 / 299
        top, left, dy, dx = int(y), int(x), y % 1, x % 1
        bottom, right = min(top + 1, 599), min(left + 1, 6)
        above = picture[top, left] * (1 - dx) + picture[top, right] * dx
        below = picture[bottom, left] * (1 - dx) + picture[bottom, right] * dx
        expected[i, j] = ((above * (1 - dy) + below * dy) - 128) / 128
    resized = resize(read("inception")[1]["tall"])
    assert resized.shape == (1, 299, 299, 1)
    assert largest(resized[0, ::13, ::13, 0], expected) < 1e-4


@kinds
def test_weights_come_back_as_they_were(kind):
    tensors, _ = read(kind)
    back = to_torch(kind, from_torch(kind, tensors)[1])
    counters = {name for name in back if name.endswith("num_batches_tracked")}
    assert set(back) - counters == set(tensors)
    assert {name.rpartition(".")[0] for name in counters} == {n.rpartition(".")[0] for n in tensors if "_mean" in n}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@kinds
def test_every_misfit_is_named_at_once(kind):
    tensors, _ = read(kind)
    wrong = {name: tensor for name, tensor in tensors.items() if name != MISSING[kind]}
    wrong |= {BENT[kind]: tensors[BENT[kind]][:-1], "surprise.weight": np.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        from_torch(kind, wrong)
    message = str(caught.value)
    assert f"{MISSING[kind]} is missing" in message
    assert f"{BENT[kind]} has shape {wrong[BENT[kind]].shape} instead of {tensors[BENT[kind]].shape}" in message
    assert "surprise.weight is unexpected" in message
