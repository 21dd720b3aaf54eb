"""Solvers that turn noise (B, H, W, C) into pictures; each scans over precomputed coefficients.

With `last`, gradients flow through that many last steps alone: what came before counts as constant.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.diffusion.process import Process

FIXED_POINT_ITERATIONS = 8  # as many as bring the noise of pictures to unit variance
Denoise = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t, t_B) -> what the objective predicts, already guided


def _integrate(step: Callable[[Any, Any], Any], carry: Any, rows: dict[str, jax.Array], last: int | None) -> Any:
    """Scans `step` over the rows; differentiated, the `last` ones compute their activations anew."""
    if last is not None:
        first = len(rows["t"]) - last
        early, rows = [{name: a[part] for name, a in rows.items()} for part in (np.s_[:first], np.s_[first:])]
        carry, _ = jax.lax.scan(lambda *given: jax.lax.stop_gradient(step(*given)), carry, early)
        step = jax.checkpoint(step, prevent_cse=False)
    return jax.lax.scan(step, carry, rows)[0]


def euler(
    process: Process, denoise: Denoise, noise: jax.Array, steps: int, last: int | None = None, start: float = 1.0
) -> jax.Array:
    """Integrates dx/dt = velocity from t = start to 0 in equal Euler steps (flow objective)."""
    times = np.linspace(start, 0.0, steps + 1, dtype=np.float32)

    def step(x, row):
        velocity = denoise(x, jnp.full(x.shape[0], row["t"]))
        return x + (row["t_next"] - row["t"]) * velocity.astype(x.dtype), None

    rows = {"t": jnp.asarray(times[:-1]), "t_next": jnp.asarray(times[1:])}
    return _integrate(step, noise, rows, last)


def invert_euler(
    process: Process, denoise: Denoise, x: jax.Array, steps: int, last: int | None = None, start: float = 0.0
) -> jax.Array:
    """From t = start up to 1: the noise from which `euler` comes to x.

    Each step x' = x + (t' - t) velocity(x, t) is solved for x by fixed-point iteration (Pan et al. 2023), since the
    velocity at x', which plain inversion takes, leads elsewhere.
    """
    times = np.linspace(start, 1.0, steps + 1, dtype=np.float32)

    def step(x_next, row):
        velocity = lambda x: denoise(x, jnp.full(x.shape[0], row["t"])).astype(x.dtype)
        closer = lambda _, x: x_next - (row["t_next"] - row["t"]) * velocity(x)
        return jax.lax.fori_loop(0, FIXED_POINT_ITERATIONS, closer, x_next), None

    return _integrate(step, x, {"t": jnp.asarray(times[1:]), "t_next": jnp.asarray(times[:-1])}, last)


def dpmpp_2m(
    process: Process, denoise: Denoise, noise: jax.Array, steps: int, last: int | None = None, start: float = 1.0
) -> jax.Array:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): equally spaced times, the last step of first order to sigma 0.

    For the objectives epsilon and v.
    """
    # Fewer steps where there are fewer times to visit.
    times = np.unique(np.linspace(0, process.time(start), steps + 1).round())[::-1][:-1].astype(np.int64)
    alphas_bar = process.alphas_bar[times]
    alpha, sigma = np.append(np.sqrt(alphas_bar), 1.0), np.append(np.sqrt(1 - alphas_bar), 0.0)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha) - np.log(sigma)  # lambda in the paper; infinite at the end
    h = np.diff(log_snr)
    # Weight of the previous x_0 prediction, 1 / (2 r) with r = h_{i-1} / h_i: 0 in the first and in the last step.
    previous = np.append(0.0, h[1:] / (2 * h[:-1]))
    previous[-1] = 0.0
    table = dict(t=times, decay=sigma[1:] / sigma[:-1], gain=-alpha[1:] * np.expm1(-h), previous=previous)

    def step(carry, row):
        x, x0_before = carry
        t_B = jnp.full(x.shape[0], row["t"])
        x0 = process.clean(denoise(x, t_B).astype(x.dtype), x, t_B)
        mixed = x0 + row["previous"] * (x0 - x0_before)
        return (row["decay"] * x + row["gain"] * mixed, x0), None

    rows = {name: jnp.asarray(column, noise.dtype) for name, column in table.items()}
    return _integrate(step, (noise, jnp.zeros_like(noise)), rows, last)[0]


SOLVERS: dict[str, Callable[..., jax.Array]] = {
    "euler": euler,
    "dpmpp_2m": dpmpp_2m,
    "invert_euler": invert_euler,
}
