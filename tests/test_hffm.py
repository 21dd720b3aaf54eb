from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vgjax.models.hffm import FactorFusion, ReferenceFusion
from vgjax.stages.denoiser import whitening
from vgjax.types import Factors

KEEP = (jnp.ones(4, bool), jnp.ones(4, bool))


def factors(batch: int = 4) -> Factors:
    rng = np.random.default_rng(0)
    return Factors(
        anatomy_BggK=jnp.asarray(rng.normal(size=(batch, 2, 2, 3)), jnp.float32),
        modality_BZ=jnp.asarray(rng.normal(size=(batch, 5)), jnp.float32),
    )


def fusion_and_variables():
    module = FactorFusion(hidden=8, token_width=6, width=16, components=3)
    variables = module.init(jax.random.key(0), factors(), KEEP)
    rng = np.random.default_rng(1)
    basis = {name: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for name, v in variables["basis"].items()}
    return module, {"params": variables["params"], "basis": basis}


def test_shapes():
    module, variables = fusion_and_variables()
    tokens = module.apply(variables, factors(), KEEP)
    chex.assert_shape(tokens.tokens_BND, (4, 2, 6))
    chex.assert_shape(tokens.spatial_BggD, (4, 2, 2, 16))
    chex.assert_shape(tokens.style_BD, (4, 16))


def test_channels_are_separate():
    """Anatomy moves the first token and the map, modality the second token and the style, and nothing else."""
    module, variables = fusion_and_variables()
    base, f = module.apply(variables, factors(), KEEP), factors()
    other = module.apply(variables, f.replace(anatomy_BggK=f.anatomy_BggK + 1.0), KEEP)
    chex.assert_trees_all_equal(other.style_BD, base.style_BD)
    chex.assert_trees_all_equal(other.tokens_BND[:, 1], base.tokens_BND[:, 1])
    assert np.abs(other.spatial_BggD - base.spatial_BggD).max() > 1e-3
    other = module.apply(variables, f.replace(modality_BZ=f.modality_BZ + 1.0), KEEP)
    chex.assert_trees_all_equal(other.spatial_BggD, base.spatial_BggD)
    chex.assert_trees_all_equal(other.tokens_BND[:, 0], base.tokens_BND[:, 0])
    assert np.abs(other.style_BD - base.style_BD).max() > 1e-3


def test_a_dropped_channel_says_nothing():
    module, variables = fusion_and_variables()
    f, drop_anatomy = factors(), (jnp.zeros(4, bool), jnp.ones(4, bool))
    one = module.apply(variables, f, drop_anatomy)
    two = module.apply(variables, f.replace(anatomy_BggK=f.anatomy_BggK * 3.0 + 1.0), drop_anatomy)
    chex.assert_trees_all_close(one, two, atol=1e-6)
    assert np.abs(one.tokens_BND - module.apply(variables, f, KEEP).tokens_BND).max() > 1e-3


def test_null_is_trained():
    module, variables = fusion_and_variables()
    none = (jnp.zeros(4, bool), jnp.zeros(4, bool))
    loss = lambda params: jnp.square(module.apply({**variables, "params": params}, factors(), none).tokens_BND).sum()
    grads = jax.grad(loss)(variables["params"])
    assert np.abs(grads["anatomy_in"]["kernel"][-1]).max() > 0  # the indicator's row
    assert np.abs(grads["anatomy_in"]["kernel"][:-1]).max() == 0


def test_noise_only_where_a_key_is_given():
    module, variables = fusion_and_variables()
    base = module.apply(variables, factors(), KEEP, None, 0.5)
    noisy = module.apply(variables, factors(), KEEP, jax.random.key(0), 0.5)
    chex.assert_trees_all_equal(base, module.apply(variables, factors(), KEEP))
    assert np.abs(noisy.style_BD - base.style_BD).max() > 1e-3


def test_reference_dropped_channels_are_zero_tokens():
    module = ReferenceFusion(hidden=8, token_width=6)
    variables = module.init(jax.random.key(0), factors(), KEEP)
    tokens = module.apply(variables, factors(), (jnp.zeros(4, bool), jnp.ones(4, bool))).tokens_BND
    assert not tokens[:, 0].any()
    assert tokens[:, 1].all()


def test_reference_matches_the_golden(data_root):
    path = data_root.parent / "golden" / "reference" / "hffm.safetensors"
    if not path.exists():
        pytest.skip("no golden weights")
    g = {k: v.astype(np.float32) for k, v in safetensors.numpy.load_file(path).items()}
    params = {"type_embeddings": g["params.type_embeddings"]}
    for name in ("anatomy", "modality"):
        params[f"norm_{name[0]}"] = {
            "scale": g[f"params.norm_{name[0]}.weight"],
            "bias": g[f"params.norm_{name[0]}.bias"],
        }
        for i in (0, 2):
            kernel, bias = g[f"params.{name}_proj.{i}.weight"].T, g[f"params.{name}_proj.{i}.bias"]
            params[f"{name}_proj_{i}"] = {"kernel": kernel, "bias": bias}
    given = Factors(anatomy_BggK=g["io.anatomy"][:, None, None], modality_BZ=g["io.modality"])
    module = ReferenceFusion(hidden=256, token_width=4096)
    tokens = module.apply({"params": params}, given, KEEP).tokens_BND
    np.testing.assert_allclose(tokens, g["io.tokens"], atol=2e-5)


def test_whitening_brings_predictions_to_unit_variance_and_back():
    rng = np.random.default_rng(0)
    latent, mix = rng.normal(size=(4000, 2)), rng.normal(size=(2, 6))
    train, validation = latent[:3000] @ mix + 4.0, latent[3000:] @ mix + 4.0
    truth = validation + 0.5 * rng.normal(size=validation.shape)
    mean, whiten, back = whitening(train, validation, truth, 3)
    parts = (train - mean) @ whiten
    np.testing.assert_allclose(parts.std(0), [1.0, 1.0, 0.0], atol=1e-2)  # two directions exist, the third is closed
    np.testing.assert_allclose(mean + parts @ back, train, atol=1e-3)


def test_whitening_leaves_out_features_whose_predictions_are_chance_fits():
    """Three loud features that text does not know, one quiet one that it does: the direction is the quiet one's."""
    rng = np.random.default_rng(2)
    known = rng.normal(size=3000)
    predicted = np.stack([known, *rng.normal(size=(3, 3000)) * 5.0], axis=1)
    truth = np.stack([known[2000:] + rng.normal(size=1000), *rng.normal(size=(3, 1000))], axis=1)
    _, whiten, _ = whitening(predicted[:2000], predicted[2000:], truth, 1)
    direction = np.abs(whiten[:, 0]) / np.linalg.norm(whiten[:, 0])
    np.testing.assert_allclose(direction, [1.0, 0.0, 0.0, 0.0], atol=1e-6)


def test_whitening_closes_directions_that_the_pictures_do_not_confirm():
    rng = np.random.default_rng(1)
    train, validation = rng.normal(size=(2000, 4)), rng.normal(size=(500, 4))
    _, whiten, back = whitening(train, validation, rng.normal(size=(500, 4)), 4)
    assert not whiten.any()
    assert not back.any()
