import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vgjax import pipeline
from vgjax.models.hffm import CHANNELS, FactorFusion, ReferenceFusion
from vgjax.types import Factors

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


@pytest.mark.parametrize(
    ("path", "field", "other"),
    [("spatial_path", "spatial_BggD", "style_BD"), ("style_path", "style_BD", "spatial_BggD")],
)
def test_a_path_that_is_off_leaves_the_tokens_and_the_other_path(path, field, other):
    module, variables, basis = fusion_and_arguments()
    whole = module.apply(variables, inputs(), KEEP, basis)
    left = module.clone(**{path: False}).apply(variables, inputs(), KEEP, basis)
    assert getattr(left, field) is None and getattr(whole, field) is not None
    chex.assert_trees_all_equal(left.tokens_BND, whole.tokens_BND)
    chex.assert_trees_all_equal(getattr(left, other), getattr(whole, other))


def correlated(count=4000, seed=0):
    """Factors (count, 6) that vary in two directions of unequal strength."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 2)) * [5.0, 1.0]) @ rng.normal(size=(2, 6)) + 4.0


def test_principal_components_have_unit_variance_and_lead_back():
    factors = correlated()
    basis = pipeline.principal_components(factors, 3)
    parts = (factors - basis["mean"]) @ basis["whiten"]
    # Two directions exist; the third one is constant, and so zero rather than noise divided by nothing.
    np.testing.assert_allclose(np.cov(parts, rowvar=False), np.diag([1.0, 1.0, 0.0]), atol=1e-3)
    np.testing.assert_allclose(basis["mean"] + parts @ basis["back"], factors, atol=1e-3)
    assert not basis["whiten"][:, 2].any() and not basis["back"][2].any()


def test_the_strongest_directions_come_first_whatever_the_order_of_features():
    factors = np.random.default_rng(1).normal(size=(3000, 4)) * [0.5, 4.0, 1.0, 2.0]
    basis = pipeline.principal_components(factors, 2)
    leading = np.abs(basis["whiten"]) / np.linalg.norm(basis["whiten"], axis=0)
    assert leading[:, 0].argmax() == 1 and leading[:, 1].argmax() == 3
    assert leading.max(0).min() > 0.99


@pytest.mark.parametrize(("wanted", "found"), [(2, 2), (6, 6), (100, 6)])
def test_there_are_at_most_as_many_components_as_features(wanted, found):
    basis = pipeline.principal_components(correlated(100), wanted)
    assert {name: value.shape for name, value in basis.items()} == {
        "mean": (6,),
        "whiten": (6, found),
        "back": (found, 6),
    }


def test_factors_that_never_vary_are_zero_components():
    basis = pipeline.principal_components(np.full((50, 4), 7.0), 3)
    assert not basis["whiten"].any() and not basis["back"].any()
    assert (basis["mean"] == 7.0).all()


def test_one_feature_has_one_component():
    x = np.random.default_rng(0).normal(3.0, 2.0, (500, 1))
    basis = pipeline.principal_components(x, 4)
    assert ((x - basis["mean"]) @ basis["whiten"]).std() == pytest.approx(1.0, abs=0.01)


def test_components_of_each_channel_use_its_own_basis():
    rng = np.random.default_rng(0)
    flat = {"anatomy": rng.normal(size=(200, 12)) + 1.0, "modality": rng.normal(size=(200, 5)) * 3.0}
    basis = {
        f"{channel}_{name}": value
        for channel, x in flat.items()
        for name, value in pipeline.principal_components(x, 4).items()
    }
    factors = Factors(jnp.asarray(flat["anatomy"].reshape(200, 2, 2, 3)), jnp.asarray(flat["modality"]))
    parts = pipeline.to_components(factors, basis)
    for channel, x in flat.items():
        np.testing.assert_allclose(np.std(parts[channel], axis=0), 1.0, atol=0.02)
        wanted = (x - basis[f"{channel}_mean"]) @ basis[f"{channel}_whiten"]
        np.testing.assert_allclose(parts[channel], wanted, atol=1e-4)
