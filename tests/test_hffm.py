import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vgjax import pipeline
from vgjax.models.hffm import CHANNELS, FactorFusion, ReferenceFusion

KEEP = dict.fromkeys(CHANNELS, jnp.ones(4, bool))
NONE = dict.fromkeys(CHANNELS, jnp.zeros(4, bool))


def inputs(features: int = 3) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(4, features)), jnp.float32) for name in CHANNELS}


def fusion_and_arguments():
    """The module, its variables and the basis of 2 x 2 cells of 3 maps in 3 components."""
    module = FactorFusion(hidden=8, token_width=6, width=16, grid=2)
    rng = np.random.default_rng(1)
    basis = {
        f"anatomy_{name}": jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in (("whiten", (12, 3)), ("back", (3, 12)))
    }
    return module, module.init(jax.random.key(0), inputs(), KEEP, basis), basis


def test_shapes():
    module, variables, basis = fusion_and_arguments()
    tokens = module.apply(variables, inputs(), KEEP, basis)
    chex.assert_shape(tokens.tokens_BND, (4, 2, 6))
    chex.assert_shape(tokens.spatial_BggD, (4, 2, 2, 16))
    chex.assert_shape(tokens.style_BD, (4, 16))


def test_channels_are_separate():
    """Anatomy moves the first token and the map, modality the second token and the style, and nothing else."""
    module, variables, basis = fusion_and_arguments()
    x = inputs()
    base = module.apply(variables, x, KEEP, basis)
    other = module.apply(variables, {**x, "anatomy": x["anatomy"] + 1.0}, KEEP, basis)
    chex.assert_trees_all_equal(other.style_BD, base.style_BD)
    chex.assert_trees_all_equal(other.tokens_BND[:, 1], base.tokens_BND[:, 1])
    assert np.abs(other.spatial_BggD - base.spatial_BggD).max() > 1e-3
    other = module.apply(variables, {**x, "modality": x["modality"] + 1.0}, KEEP, basis)
    chex.assert_trees_all_equal(other.spatial_BggD, base.spatial_BggD)
    chex.assert_trees_all_equal(other.tokens_BND[:, 0], base.tokens_BND[:, 0])
    assert np.abs(other.style_BD - base.style_BD).max() > 1e-3


def test_a_dropped_channel_says_nothing():
    module, variables, basis = fusion_and_arguments()
    x, keep = inputs(), {**KEEP, "anatomy": jnp.zeros(4, bool)}
    one = module.apply(variables, x, keep, basis)
    two = module.apply(variables, {**x, "anatomy": x["anatomy"] * 3.0 + 1.0}, keep, basis)
    chex.assert_trees_all_close(one, two, atol=1e-6)
    assert np.abs(one.tokens_BND - module.apply(variables, x, KEEP, basis).tokens_BND).max() > 1e-3


def test_null_is_trained():
    module, variables, basis = fusion_and_arguments()
    loss = lambda params: jnp.square(module.apply({"params": params}, inputs(), NONE, basis).tokens_BND).sum()
    grads = jax.grad(loss)(variables["params"])
    assert np.abs(grads["anatomy_in"]["kernel"][-1]).max() > 0  # the indicator's row
    assert np.abs(grads["anatomy_in"]["kernel"][:-1]).max() == 0


def test_reference_dropped_channels_are_zero_tokens():
    module = ReferenceFusion(hidden=8, token_width=6)
    variables = module.init(jax.random.key(0), inputs(), KEEP)
    tokens = module.apply(variables, inputs(), {**KEEP, "anatomy": jnp.zeros(4, bool)}).tokens_BND
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
    given = {name: g[f"io.{name}"] for name in CHANNELS}
    module = ReferenceFusion(hidden=256, token_width=4096)
    tokens = module.apply({"params": params}, given, KEEP).tokens_BND
    np.testing.assert_allclose(tokens, g["io.tokens"], atol=2e-5)


def test_whitening_brings_predictions_to_unit_variance_and_back():
    rng = np.random.default_rng(0)
    latent, mix = rng.normal(size=(4000, 2)), rng.normal(size=(2, 6))
    train, validation = latent[:3000] @ mix + 4.0, latent[3000:] @ mix + 4.0
    truth = validation + 0.5 * rng.normal(size=validation.shape)
    mean, whiten, back = pipeline.whitening(train, validation, truth, 3)
    parts = (train - mean) @ whiten
    np.testing.assert_allclose(parts.std(0), [1.0, 1.0, 0.0], atol=1e-2)  # two directions exist, the third is closed
    np.testing.assert_allclose(mean + parts @ back, train, atol=1e-3)


def test_whitening_leaves_out_features_whose_predictions_are_chance_fits():
    """Three loud features that text does not know, one quiet one that it does: the direction is the quiet one's."""
    rng = np.random.default_rng(2)
    known = rng.normal(size=3000)
    predicted = np.stack([known, *rng.normal(size=(3, 3000)) * 5.0], axis=1)
    truth = np.stack([known[2000:] + rng.normal(size=1000), *rng.normal(size=(3, 1000))], axis=1)
    _, whiten, _ = pipeline.whitening(predicted[:2000], predicted[2000:], truth, 1)
    direction = np.abs(whiten[:, 0]) / np.linalg.norm(whiten[:, 0])
    np.testing.assert_allclose(direction, [1.0, 0.0, 0.0, 0.0], atol=1e-6)


def test_whitening_closes_directions_that_the_pictures_do_not_confirm():
    rng = np.random.default_rng(1)
    train, validation = rng.normal(size=(2000, 4)), rng.normal(size=(500, 4))
    _, whiten, back = pipeline.whitening(train, validation, rng.normal(size=(500, 4)), 4)
    assert not whiten.any()
    assert not back.any()
