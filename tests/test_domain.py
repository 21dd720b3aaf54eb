"""The network of the data's own domain: its loss is the published one, views keep what counts, it does not collapse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_evaluate import drawn, open_run  # noqa: F401
from vgjax.data import records
from vgjax.evaluation import domain, networks
from vgjax.models.resnet import ResNet18


def test_the_terms_are_those_of_vicreg():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 4))
    found = domain.vicreg(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    variance = covariance = 0.0
    for one in (x, y):
        c = np.cov(one.T)
        variance += sum(max(0.0, 1 - np.sqrt(c[i, i] + 1e-4)) for i in range(4)) / 4 / 2
        covariance += sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    assert found["invariance"] == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
    assert found["variance"] == pytest.approx(variance, rel=1e-5) and variance > 0
    assert found["covariance"] == pytest.approx(covariance, rel=1e-5)


def test_views_are_mirrored_as_the_data_allow_and_keep_their_colour():
    picture = np.full((64, 16, 16, 3), -0.4, np.float32)
    picture[:, :, 8:, 0] = 0.4  # red on the right
    picture[:, 8:, :, 1] = 0.4  # green below
    for symmetries, (sideways, over) in {1: (0, 0), 2: (1, 0), 8: (1, 1)}.items():
        seen = np.asarray(jax.jit(domain.views, static_argnums=2)(jax.random.key(0), picture, symmetries))
        assert seen.shape == picture.shape and len(np.unique(seen.mean((1, 2, 3)))) == 64
        right = seen[:, :, 12:, 0].mean((1, 2)) > seen[:, :, :4, 0].mean((1, 2))
        below = seen[:, 12:, :, 1].mean((1, 2)) > seen[:, :4, :, 1].mean((1, 2))
        assert 0.2 < right.mean() < 0.8 if sideways else right.all(), symmetries
        assert 0.2 < below.mean() < 0.8 if over else below.all(), symmetries
        assert np.abs(seen[..., 2].mean((1, 2)) + 0.4).max() < 0.12 and seen.min() > -0.7  # blue, and no black border


def test_the_network_halves_four_times_and_has_the_layers_of_resnet18():
    shapes = jax.eval_shape(lambda x: ResNet18(8).init(jax.random.key(0), x, False), jnp.zeros((1, 64, 64, 3)))
    kernels = [leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes["params"]) if len(leaf.shape) == 4]
    assert sorted(kernels).count((1, 1, 8, 16)) == 1 and len(kernels) == 17 + 3
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda v, x: ResNet18(8).apply(v, x, False), shapes, image).shape == (2, 64)


def test_training_spreads_the_pictures_and_features_do_not_depend_on_the_batch(tmp_path, drawn):  # noqa: F811
    training = dict(steps=12, batch_size=16, learning_rate=3e-3, checkpoint_every_steps=12)
    more = {f"domain.train.{name}": value for name, value in training.items()}
    more |= {"networks.use": ("domain",), "data.train_items": 64, "data.test_items": 32}
    run = open_run(tmp_path / "run", ("fidelity",), more=more)
    net = networks.load("domain", run.context)
    rows = run.context.rows(["pictures"], "test")
    pictures = [records.from_png(rows[i]["image"]) for i in range(32)]
    features = net.apply(iter(pictures))
    assert (features.shape, features.dtype, net.size) == ((32, 64), np.float32, 16) and len(net.sha256) == 64
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    assert features.std(0).mean() > 0.05 * np.abs(features).mean()
    assert (values > 1e-3 * values[0]).sum() >= 8  # as many directions at least, not one point or one line
    assert net.apply(pictures[:3]) == pytest.approx(features[:3], abs=1e-5)
    found = json.loads(run.artefact("fidelity").path("metrics.json").read_text())["fidelity/coverage/domain"]
    assert (found["n"], found["sha256"], found["resize"]) == (16, net.sha256, "linearly to 16 x 16")
    inputs = run.recipe("domain").inputs
    assert set(inputs) == {"pictures"}  # nothing of the model, nor what was drawn
