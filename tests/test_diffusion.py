import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax.diffusion import guidance
from vgjax.diffusion.process import Process
from vgjax.diffusion.samplers import SOLVERS

OBJECTIVES = ("epsilon", "v", "flow")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clean_inverts_target_and_noise(objective):
    process, keys = Process(objective), jax.random.split(jax.random.key(0), 3)
    x0, noise = jax.random.normal(keys[0], (6, 4, 4, 3)), jax.random.normal(keys[1], (6, 4, 4, 3))
    t = process.draw_time(keys[2], 6)
    x_t = process.add_noise(x0, noise, t)
    # epsilon divides by alpha, which is 0.006 at the last step: rounding is amplified as much.
    chex.assert_trees_all_close(process.clean(process.target(x0, noise, t), x_t, t), x0, atol=2e-3)
    assert float(jnp.abs(x_t - x0).max()) > 0.1


def test_linear_schedule_has_the_published_ends():
    alphas_bar = Process("epsilon").alphas_bar
    np.testing.assert_allclose(alphas_bar[0], 1 - 1e-4)
    np.testing.assert_allclose(alphas_bar[-1], 4.0358e-5, rtol=1e-4)


def test_network_time_spans_the_embedding():
    assert float(Process("flow").network_time(jnp.ones(1))[0]) == 1000.0
    assert float(Process("v", timesteps=500).network_time(jnp.array([499.0]))[0]) == 998.0


def exact_denoiser(process: Process, mean: float, std: float):
    """The best network for data N(mean, std^2) at every pixel, in closed form."""

    def denoise(x_t, t_B):
        alpha, sigma = (c[:, None, None, None] for c in process.coefficients(t_B))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x_t - alpha * mean)
        noise = (x_t - alpha * x0) / sigma
        return {"epsilon": noise, "v": alpha * noise - sigma * x0, "flow": noise - x0}[process.objective]

    return denoise


@pytest.mark.parametrize(("objective", "solver"), [("epsilon", "dpmpp_2m"), ("v", "dpmpp_2m"), ("flow", "euler")])
def test_solvers_reach_a_gaussian_whose_network_is_known(objective, solver):
    process = Process(objective)
    noise = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    x = SOLVERS[solver](process, exact_denoiser(process, 0.7, 0.3), noise, 100)
    assert abs(float(x.mean()) - 0.7) < 0.02
    assert abs(float(x.std()) - 0.3) < 0.02


@pytest.mark.parametrize(("objective", "solver"), [("epsilon", "dpmpp_2m"), ("v", "dpmpp_2m"), ("flow", "euler")])
def test_solvers_start_from_pictures_noised_to_a_share(objective, solver):
    process, keys = Process(objective), jax.random.split(jax.random.key(4))
    picture, noise = (jax.random.normal(key, (8, 16, 16, 3)) for key in keys)
    noised = process.add_noise(0.7 + 0.3 * picture, noise, jnp.full(8, process.time(0.5)))
    x = SOLVERS[solver](process, exact_denoiser(process, 0.7, 0.3), noised, 100, start=0.5)
    assert abs(float(x.mean()) - 0.7) < 0.02
    assert abs(float(x.std()) - 0.3) < 0.02


def test_inversion_finds_the_noise_that_a_linear_velocity_brought_here():
    """Where the velocity at the end of a step is not that at its beginning."""
    process, noise = Process("flow"), jax.random.normal(jax.random.key(3), (2, 4, 4, 3))
    velocity = lambda x, t_B: 0.5 - (2.0 + t_B[:, None, None, None]) * x
    x = SOLVERS["euler"](process, velocity, noise, 8)
    assert float(jnp.abs(x - noise).max()) > 1
    found = SOLVERS["invert_euler"](process, velocity, x, 8)
    np.testing.assert_allclose(found, noise, atol=0.002)
    np.testing.assert_allclose(SOLVERS["euler"](process, velocity, found, 8), x, atol=0.02)


def first_order(process, denoise, noise, steps):
    """DDIM on the same times: what DPM-Solver++ 2M is without its multistep term."""
    times = np.linspace(0, process.timesteps - 1, steps + 1).round()[::-1][:-1].astype(int)
    alpha_bar = np.append(process.alphas_bar[times], 1.0)
    x = noise
    for i, t in enumerate(times):
        t_B = jnp.full(len(x), float(t))
        x0 = process.clean(denoise(x, t_B), x, t_B)
        noise_part = (x - np.sqrt(alpha_bar[i]) * x0) / np.sqrt(1 - alpha_bar[i])
        x = np.sqrt(alpha_bar[i + 1]) * x0 + np.sqrt(1 - alpha_bar[i + 1]) * noise_part
    return x


def test_the_multistep_term_helps():
    process = Process("epsilon")
    denoise = exact_denoiser(process, 0.5, 0.2)
    noise = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    alpha_bar = process.alphas_bar[-1]  # the probability flow of a Gaussian in closed form
    limit = 0.5 + 0.2 * (noise - np.sqrt(alpha_bar) * 0.5) / np.sqrt(alpha_bar * 0.2**2 + 1 - alpha_bar)
    error = [float(jnp.abs(f(process, denoise, noise, 50) - limit).mean()) for f in (SOLVERS["dpmpp_2m"], first_order)]
    assert error[0] < 0.7 * error[1]


def weights(anatomy: float, modality: float) -> dict[str, float]:
    return {"anatomy": anatomy, "modality": modality}


def test_only_branches_that_count_are_evaluated():
    assert guidance.branches(weights(1.0, 1.0)) == (2,)
    assert guidance.branches(weights(2.0, 2.0)) == (0, 2)
    assert guidance.branches(weights(0.0, 0.0)) == (0,)
    assert guidance.branches(weights(1.0, 3.0)) == (1, 2)
    assert guidance.branches(weights(3.0, 0.0)) == (0, 1)
    assert guidance.branches(weights(3.0, 2.0)) == (0, 1, 2)
    assert guidance.branches({"class": 4.0}) == (0, 1)
    assert guidance.coefficients((0, 2), weights(2.0, 2.0)) == [-1.0, 2.0]
    for pair in (weights(a, m) for a in (0.0, 1.5, 4.0) for m in (0.0, 2.5)):
        assert sum(guidance.coefficients(guidance.branches(pair), pair)) == 1.0


def test_weights_that_need_another_branch_are_refused():
    assert guidance.coefficients((0, 2), weights(5.0, 5.0)) == [-4.0, 5.0]
    with pytest.raises(ValueError, match=r"keep \[1\] channels, but only \[0, 2\]"):
        guidance.coefficients((0, 2), weights(5.0, 2.0))


def test_each_channel_has_its_own_strength():
    """With outputs linear in the kept channels, guidance scales each channel's contribution by its weight."""
    pair = weights(3.0, 2.0)
    kept = guidance.branches(pair)
    guided = guidance.Guidance(tuple(pair), kept, jnp.asarray(guidance.coefficients(kept, pair)))
    keep = guidance.keep_masks(guided, 5)
    outputs = (10.0 + 1.0 * keep["anatomy"] + 0.1 * keep["modality"])[:, None]
    combined = guidance.combine(outputs, guided.coefficients)
    np.testing.assert_allclose(combined, np.full((5, 1), 10 + 3.0 + 0.2), rtol=1e-6)


def test_dpmpp_2m_from_little_noise_takes_the_times_that_there_are():
    process = Process("epsilon")
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    drawn = SOLVERS["dpmpp_2m"](process, lambda x_t, t_B: jnp.zeros_like(x_t), x, 50, start=0.02)
    assert bool(jnp.isfinite(drawn).all())
