import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import losses
from vgjax.models import layers
from vgjax.models.sdnet import PriorOutput, SDNet

BATCH, SIZE, K, Z = 2, 16, 3, 4


@pytest.fixture(scope="module")
def sdnet() -> SDNet:
    return SDNet(
        anatomy_factors=K,
        modality_factors=Z,
        unet_widths=(4, 6),
        modality_widths=(4, 5),
        modality_hidden_dim=6,
        segmentor_features=5,
        decoder_widths=(7, 5),
    )


@pytest.fixture(scope="module")
def image() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (BATCH, SIZE, SIZE, 3), minval=-1.0, maxval=1.0)


@pytest.fixture(scope="module")
def variables(sdnet: SDNet, image: jax.Array) -> dict:
    # Drawn by numpy: compiling `init` would take most of this file's time.
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(sdnet.init, jax.random.key(1), image)
    draw = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(generator.normal(0.0, 0.2, leaf.shape), leaf.dtype))
    return {"params": draw(shapes["params"]), "batch_stats": jax.tree.map(jnp.square, draw(shapes["batch_stats"]))}


def training_pass(sdnet: SDNet, variables: dict, image: jax.Array) -> tuple[PriorOutput, dict]:
    keys = jax.random.split(jax.random.key(2), 3)
    gumbel_1, gumbel_2 = (jax.random.gumbel(key, (BATCH, SIZE, SIZE, K)) for key in keys[:2])
    eps_1 = jax.random.normal(keys[2], (BATCH, Z))
    return sdnet.apply(variables, image, gumbel_1, gumbel_2, eps_1, method="training_pass", mutable="batch_stats")


def prior_terms(sdnet: SDNet, variables: dict, image: jax.Array) -> dict[str, jax.Array]:
    output, _ = training_pass(sdnet, variables, image)
    return losses.prior_terms(output, image, (image[..., 0] > 0).astype(image.dtype))


def test_conv_pads_both_sides_at_stride_two() -> None:
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    module = layers.conv(1, stride=2)
    params = {"kernel": jnp.zeros((3, 3, 1, 1)).at[0, 0, 0, 0].set(1.0), "bias": jnp.zeros(1)}
    out = module.apply({"params": params}, image)
    # The top left tap sees the padding first; "SAME" padding would read pixel 0 there.
    np.testing.assert_array_equal(out[0, :, :, 0], [[0, 0], [0, 5]])


def test_weights_start_xavier_normal_with_zero_bias() -> None:
    params = layers.conv(96).init(jax.random.key(0), jnp.zeros((1, 3, 3, 32)))["params"]
    np.testing.assert_allclose(params["kernel"].std(), (2 / (9 * (32 + 96))) ** 0.5, rtol=0.02)
    # The normal is whole: torch's is not cut off at two standard deviations.
    assert jnp.abs(params["kernel"]).max() > 3 * params["kernel"].std()
    np.testing.assert_array_equal(params["bias"], 0.0)


def test_max_pool_and_upsample() -> None:
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    pooled = layers.max_pool_2x2(image)
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[5, 7], [13, 15]])
    upsampled = layers.upsample_nearest(pooled)
    np.testing.assert_array_equal(upsampled[0, :2, :, 0], [[5, 5, 7, 7]] * 2)
    np.testing.assert_array_equal(layers.max_pool_2x2(upsampled), pooled)


def test_batch_norm_accumulates_the_unbiased_variance() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (3, 2, 2, 5)).astype(np.float32)
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    out, updates = module.apply(variables, x, train=True, mutable="batch_stats")
    columns = x.reshape(-1, 5).astype(np.float64)
    expected = (columns - columns.mean(0)) / np.sqrt(columns.var(0) + 1e-5)
    np.testing.assert_allclose(out.reshape(-1, 5), expected, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * columns.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * columns.var(0, ddof=1), rtol=1e-5)

    running = {**variables, **updates}
    evaluated = module.apply(running, x, train=False)
    mean, var = (np.asarray(running["batch_stats"][name], np.float64) for name in ("mean", "var"))
    np.testing.assert_allclose(evaluated, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-5, atol=1e-5)


def test_batch_norm_refuses_a_single_value_in_training() -> None:
    module = layers.BatchNorm()
    x = jnp.ones((1, 5))
    variables = module.init(jax.random.key(0), x, train=True)
    with pytest.raises(ValueError, match="one value a channel"):
        module.apply(variables, x, train=True, mutable="batch_stats")


def test_adain_gives_each_sample_the_moments_of_its_style() -> None:
    content = jax.random.normal(jax.random.key(0), (2, 9, 7, 3)) * 5.0 + 1.0
    style = jnp.array([[0.0, 2.0, 4.0], [-1.0, -1.0, 2.0]])
    out = layers.adain(content, style)
    np.testing.assert_allclose(out.mean((1, 2)), [[2.0] * 3, [0.0] * 3], atol=1e-5)
    np.testing.assert_allclose(out.std((1, 2), ddof=1), [[2.0] * 3, [3**0.5] * 3], rtol=1e-4)


def test_straight_through_sample_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    logits, noise, weight = (jax.random.normal(key, (50, 4)) for key in keys)
    sample = layers.straight_through_gumbel_softmax(logits, noise)
    np.testing.assert_array_equal(sample, np.eye(4)[np.argmax(logits + noise, -1)])

    hard = jax.grad(lambda x: (layers.straight_through_gumbel_softmax(x, noise, tau=0.7) * weight).sum())(logits)
    soft = jax.grad(lambda x: (jax.nn.softmax((x + noise) / 0.7) * weight).sum())(logits)
    np.testing.assert_allclose(hard, soft, rtol=1e-6)
    assert jnp.abs(soft).max() > 0.1


def test_gumbel_noise_samples_the_softmax_distribution() -> None:
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.2])), (20_000, 3))
    sample = layers.straight_through_gumbel_softmax(logits, jax.random.gumbel(jax.random.key(0), logits.shape))
    np.testing.assert_allclose(sample.mean(0), [0.5, 0.3, 0.2], atol=0.015)


def test_shapes_and_ranges(sdnet: SDNet, variables: dict, image: jax.Array) -> None:
    trained, updates = jax.jit(training_pass, static_argnums=0)(sdnet, variables, image)
    evaluated = jax.jit(sdnet.apply)(variables, image)
    for output in (trained, evaluated):
        chex.assert_shape([output.anatomy_BHWK, output.anatomy_tilde_BHWK], (BATCH, SIZE, SIZE, K))
        chex.assert_shape(output.segmentation_BHWS, (BATCH, SIZE, SIZE, 2))
        chex.assert_shape([output.mu_BZ, output.logvar_BZ, output.z_BZ, output.mu_tilde_BZ], (BATCH, Z))
        chex.assert_shape(output.reconstruction_BHWC, (BATCH, SIZE, SIZE, 3))
        np.testing.assert_allclose(output.segmentation_BHWS.sum(-1), 1.0, rtol=1e-6)
        assert jnp.abs(output.reconstruction_BHWC).max() <= 1.0
        np.testing.assert_array_equal(output.anatomy_BHWK.sum(-1), 1.0)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates["batch_stats"], variables["batch_stats"])


def test_the_evaluation_pass_is_the_composition_of_the_parts(sdnet: SDNet, variables: dict, image: jax.Array) -> None:
    def bound(image: jax.Array) -> tuple[jax.Array, ...]:
        prior = sdnet.bind(variables)
        anatomy = layers.straight_through_gumbel_softmax(prior.anatomy_encoder(image, False))
        mu, logvar = prior.modality_encoder(anatomy, image, False)
        return anatomy, mu, logvar, prior.segmentor(anatomy, False), prior.decoder(anatomy, mu)

    output = jax.jit(sdnet.apply)(variables, image)
    expected = (output.anatomy_BHWK, output.mu_BZ, output.logvar_BZ, output.segmentation_BHWS)
    chex.assert_trees_all_close(jax.jit(bound)(image), (*expected, output.reconstruction_BHWC), atol=1e-4)


def test_every_parameter_learns(sdnet: SDNet, variables: dict, image: jax.Array) -> None:
    def total(params: dict) -> jax.Array:
        terms = prior_terms(sdnet, {**variables, "params": params}, image)
        return sum(term.mean() for term in terms.values())

    grads = jax.jit(jax.grad(total))(variables["params"])
    # A bias before a batch norm is cancelled by it, so only the kernels, scales and remaining biases can move.
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if path[-1].key != "bias" and not jnp.abs(leaf).max() > 1e-7
    ]
    assert not dead


def test_image_size_that_the_levels_cannot_halve_is_refused(sdnet: SDNet) -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        sdnet.init(jax.random.key(0), jnp.zeros((2, 18, 16, 3)))


def test_a_batch_of_one_is_refused_in_training(sdnet: SDNet, variables: dict) -> None:
    image = jnp.zeros((1, SIZE, SIZE, 3))
    noise = jnp.zeros((1, SIZE, SIZE, K))
    with pytest.raises(ValueError, match="one value a channel"):
        sdnet.apply(variables, image, noise, noise, jnp.zeros((1, Z)), method="training_pass", mutable="batch_stats")


def test_l1_and_mse_are_means_of_each_example() -> None:
    prediction = jnp.array([[1.0, -1.0], [3.0, 0.0]])
    np.testing.assert_allclose(losses.l1(prediction, jnp.zeros((2, 2))), [1.0, 1.5])
    np.testing.assert_allclose(losses.mse(prediction, jnp.zeros((2, 2))), [1.0, 4.5])


def test_kl_equals_its_monte_carlo_estimate() -> None:
    mu, logvar = np.array([[0.5, -1.0], [0.0, 0.0]]), np.array([[0.3, -0.7], [0.0, 0.0]])
    noise = np.random.default_rng(0).standard_normal((100_000, 2, 2))
    z = mu + np.exp(0.5 * logvar) * noise
    log_ratio = 0.5 * (z**2 - noise**2 - logvar)
    np.testing.assert_allclose(losses.kl(jnp.asarray(mu), jnp.asarray(logvar)), log_ratio.sum(-1).mean(0), atol=0.02)


def test_dice_runs_over_the_whole_batch() -> None:
    mask = jnp.array([[[1.0, 1.0]], [[0.0, 0.0]]])
    prediction = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    np.testing.assert_allclose(losses.dice(prediction, mask), 1.0 - 2.1 / 4.1, rtol=1e-6)
    np.testing.assert_allclose(losses.dice(mask, mask), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses.dice(jnp.zeros_like(mask), jnp.zeros_like(mask)), 0.0, atol=1e-6)


def test_regression_does_not_pull_the_first_modality_towards_the_second(
    sdnet: SDNet, variables: dict, image: jax.Array
) -> None:
    output, _ = jax.jit(training_pass, static_argnums=0)(sdnet, variables, image)

    def regression(z: jax.Array, mu_tilde: jax.Array) -> jax.Array:
        return losses.prior_terms(output.replace(z_BZ=z, mu_tilde_BZ=mu_tilde), image, image[..., 0])[
            "regression"
        ].sum()

    z_grad, mu_tilde_grad = jax.grad(regression, argnums=(0, 1))(output.z_BZ, output.mu_tilde_BZ)
    np.testing.assert_array_equal(z_grad, 0.0)
    assert jnp.abs(mu_tilde_grad).min() > 0
