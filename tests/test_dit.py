import chex
import jax
import jax.numpy as jnp
import numpy as np

from vgjax.models.dit import DiT, sincos_positions, timestep_embedding
from vgjax.types import Tokens


def inputs(batch: int = 2, width: int = 16, grid: int = 2):
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = Tokens(
        tokens_BND=jax.random.normal(keys[0], (batch, 2, 12)),
        mask_BN=jnp.ones((batch, 2)),
        spatial_BggD=jax.random.normal(keys[1], (batch, grid, grid, width)),
        style_BD=jax.random.normal(keys[2], (batch, width)),
    )
    return jax.random.normal(keys[3], (batch, 8, 8, 3)), jnp.array([10.0, 700.0])[:batch], tokens


def randomised(model, *args):
    """Parameters without zeros, so that every path reaches the output."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [0.2 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def make(**changes):
    return DiT(**{**dict(width=16, depth=2, heads=2, patch=2, out_channels=3), **changes})


def test_shapes_and_initial_output_is_zero():
    model, args = make(out_channels=6), inputs()
    output = model.apply(model.init(jax.random.key(0), *args), *args)
    chex.assert_shape(output, (2, 8, 8, 6))
    assert not output.any()


def test_scan_unroll_and_remat_do_not_change_the_result():
    args = inputs()
    variables = randomised(make(), *args)
    base = make().apply(variables, *args)
    for changes in ({"unroll": 2}, {"remat": True}):
        chex.assert_trees_all_close(make(**changes).apply(variables, *args), base, atol=1e-5)


def test_patches_keep_their_place():
    """A spatial condition in one corner changes that corner most."""
    model, (x, t, tokens) = make(depth=1), inputs()
    variables = randomised(model, x, t, tokens)
    moved = tokens.replace(spatial_BggD=tokens.spatial_BggD.at[:, 0, 1].add(3.0))
    change = np.abs(model.apply(variables, x, t, moved) - model.apply(variables, x, t, tokens)).mean((0, 3))
    quarters = change.reshape(2, 4, 2, 4).mean((1, 3))
    assert quarters.argmax() == 1
    assert quarters[0, 1] > 2 * quarters[1, 0]


def test_every_condition_reaches_the_output():
    model, (x, t, tokens) = make(), inputs()
    variables = randomised(model, x, t, tokens)
    base = model.apply(variables, x, t, tokens)
    for name in ("tokens_BND", "spatial_BggD", "style_BD"):
        other = tokens.replace(**{name: getattr(tokens, name) + 1.0})
        assert np.abs(model.apply(variables, x, t, other) - base).max() > 1e-3, name
    assert np.abs(model.apply(variables, x, t + 100.0, tokens) - base).max() > 1e-3


def test_masked_tokens_are_ignored():
    model, (x, t, tokens) = make(), inputs()
    variables = randomised(model, x, t, tokens)
    hidden = tokens.replace(mask_BN=tokens.mask_BN.at[:, 1].set(0))
    other = hidden.replace(tokens_BND=hidden.tokens_BND.at[:, 1].add(5.0))
    chex.assert_trees_all_close(model.apply(variables, x, t, hidden), model.apply(variables, x, t, other), atol=1e-6)


def test_position_and_time_features():
    positions = sincos_positions(3, 3, 8)
    assert positions.shape == (9, 8)
    assert len(np.unique(positions.round(5), axis=0)) == 9
    np.testing.assert_allclose(positions[:3, 4:], np.tile(positions[0, 4:], (3, 1)))  # the first row shares its y half
    features = timestep_embedding(jnp.array([0.0, 999.0]))
    chex.assert_shape(features, (2, 256))
    np.testing.assert_allclose(features[0], np.r_[np.ones(128), np.zeros(128)])
