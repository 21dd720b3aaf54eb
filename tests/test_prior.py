import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax.models import appearance
from vgjax.models.prior import ModalityEncoder, VisualPrior
from vgjax.pipeline import factor_statistics, restyle
from vgjax.stages.prior import mirror


def picture(row: int, column: int, radius: float = 4.0, grain: float = 0.1):
    rows, columns = np.mgrid[:32, :32]
    lesion = (np.hypot(rows - row, columns - column) < radius).astype(np.float32)
    image = 0.3 - 0.5 * lesion[..., None] + grain * np.random.default_rng(0).normal(size=(32, 32, 3))
    return jnp.asarray(image, jnp.float32)[None], jnp.asarray(lesion)[None]


@pytest.fixture(scope="module")
def prior():
    module = VisualPrior(
        widths=(4, 4), modality_widths=(4, 4), segmentor_width=4, decoder_widths=(4, 4), anatomy_factors=3,
        modality_factors=5, appearance=appearance.STATISTICS,
    )  # fmt: skip
    return module, module.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))


def test_shapes_and_one_hot_map(prior):
    module, variables = prior
    output = module.apply(variables, jax.random.normal(jax.random.key(1), (2, 32, 32, 3)))
    chex.assert_shape(output.anatomy_BHWK, (2, 32, 32, 3))
    chex.assert_shape(output.segmentation_BHWS, (2, 32, 32, 2))
    chex.assert_shape([output.mu_BZ, output.z_BZ, output.mu_tilde_BZ], (2, 5))
    chex.assert_shape(output.reconstruction_BHWC, (2, 32, 32, 3))
    np.testing.assert_array_equal(np.sort(output.anatomy_BHWK, axis=-1)[..., -1], 1.0)


def test_same_picture_same_factors_whatever_the_batch(prior):
    module, variables = prior
    x = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    together, alone = module.apply(variables, x), module.apply(variables, x[:1])
    chex.assert_trees_all_close(together.mu_BZ[:1], alone.mu_BZ, atol=1e-5)
    assert float(jnp.abs(together.anatomy_BHWK[:1] - alone.anatomy_BHWK).mean()) < 1e-3


def test_anatomy_ignores_cast_brightness_and_contrast(prior):
    """Exact up to the floor that keeps flat pictures from dividing by zero."""
    module, variables = prior
    x, _ = picture(12, 20)
    styled = x * jnp.array([1.3, 0.8, 1.0])[None, None, None] + jnp.array([0.2, -0.1, 0.0])[None, None, None]
    maps = [module.apply(variables, y).anatomy_BHWK for y in (x, styled)]
    assert float(jnp.abs(maps[0] - maps[1]).mean()) < 0.01


def test_modality_ignores_place_and_sees_brightness():
    module = ModalityEncoder((4, 4), 5)
    (here, lesion_here), (there, lesion_there) = picture(12, 12, grain=0.0), picture(18, 20, grain=0.0)
    variables = module.init(jax.random.key(0), here, lesion_here)
    mu = module.apply(variables, here, lesion_here)[0]
    moved = module.apply(variables, there, lesion_there)[0]
    brighter = module.apply(variables, here + 0.3, lesion_here)[0]
    assert float(jnp.abs(moved - mu).max()) < 0.2 * float(jnp.abs(brighter - mu).max())


def test_statistics_read_colour_by_region():
    image, lesion = picture(16, 16, 6.0)
    stats = np.asarray(appearance.statistics(image, lesion)).reshape(appearance.REGIONS, 3 + appearance.LEVELS)
    np.testing.assert_allclose(stats[0, :3] / 2, -0.2, atol=0.05)  # lesion
    np.testing.assert_allclose(stats[1, :3] / 2, 0.3, atol=0.05)  # background


def test_statistics_see_grain_and_blur():
    image, lesion = picture(16, 16, 6.0)
    grainy = image + 0.3 * jax.random.normal(jax.random.key(0), image.shape)
    level = lambda x: np.asarray(appearance.statistics(x, lesion)).reshape(3, -1)
    assert level(grainy)[1, 3] > level(image)[1, 3] + 0.5  # finest band of the background
    assert level(appearance.blur(image, 2))[2, 3] < level(image)[2, 3] - 0.2  # of the boundary


def test_empty_and_full_masks_are_finite():
    image, lesion = picture(16, 16)
    for mask in (jnp.zeros_like(lesion), jnp.ones_like(lesion)):
        chex.assert_tree_all_finite(appearance.statistics(image, mask))


def test_restyling_keeps_geometry_and_changes_style():
    image, _ = picture(16, 16)
    x = jnp.repeat(image, 8, axis=0)
    y = restyle(jax.random.key(0), x)
    chex.assert_equal_shape([x, y])
    assert np.std(y.mean((1, 2)), axis=0).min() > 0.05
    centre, corner = y[:, 14:18, 14:18].mean((1, 2, 3)), y[:, :4, :4].mean((1, 2, 3))
    assert (centre < corner).all()


def test_mirroring_turns_picture_and_mask_alike_every_way():
    image, lesion = picture(6, 20, grain=0.0)
    x, y = mirror(jax.random.key(0), jnp.repeat(image, 64, axis=0), jnp.repeat(lesion, 64, axis=0))
    np.testing.assert_allclose(x[..., 0], 0.3 - 0.5 * y, atol=1e-6)
    places = {tuple(int(v) for v in np.round(np.argwhere(m).mean(0))) for m in np.asarray(y)}
    assert places == {(6, 20), (25, 20), (6, 11), (25, 11)}


def test_factor_statistics():
    rng = np.random.default_rng(0)
    anatomy, modality = rng.normal(3.0, 2.0, (500, 2, 2, 3)), rng.normal(-1.0, 0.5, (500, 4))
    anatomy[..., 2] = 0.0
    stats = factor_statistics(anatomy, modality)
    np.testing.assert_allclose(stats["anatomy_scale"], [2.0, 2.0, 1e-3], atol=0.1)
    np.testing.assert_allclose(stats["modality_mean"], -1.0, atol=0.1)
