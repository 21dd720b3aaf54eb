"""The diffusion process: one object that training and every sampler share, so that they cannot disagree.

All objectives use x_t = alpha(t) x_0 + sigma(t) eps:
  epsilon, v   discrete variance-preserving schedule with linear betas (Ho et al. 2020, eq. 4); the network predicts
               eps (their eq. 14) or v = alpha eps - sigma x_0 (Salimans & Ho 2022, appendix D).
  flow         alpha = 1 - t, sigma = t; the network predicts the velocity eps - x_0 (Lipman et al. 2023; t is
               drawn uniformly, as the solver visits it, or logit-normal as in Esser et al. 2024, eq. 19).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

TIME_SCALE = 1000.0  # the network's time embedding expects times in [0, 1000)


@dataclasses.dataclass(frozen=True)
class Process:
    """A forward process and the meaning of the network's output.

    All but `objective` and `times` is of the discrete schedule; `times` is of flow: "uniform" or "logit_normal".
    """

    objective: str
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    times: str = "uniform"

    @property
    def alphas_bar(self) -> np.ndarray:
        """Cumulative products of 1 - beta, (timesteps,) float64."""
        return np.cumprod(1.0 - np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64))

    def draw_time(self, key: jax.Array, batch: int) -> jax.Array:
        """Training times (B,): in (0, 1) for flow, integers as float32 in [0, timesteps) otherwise."""
        if self.objective == "flow":
            if self.times == "logit_normal":
                return jax.nn.sigmoid(jax.random.normal(key, (batch,)))
            # One in each of `batch` equal parts of (0, 1): as uniform as the solver's steps, and a steadier gradient.
            return (jnp.arange(batch) + jax.random.uniform(key, (batch,))) / batch
        return jax.random.randint(key, (batch,), 0, self.timesteps).astype(jnp.float32)

    def time(self, share: float) -> float:
        """The time at a share of the way from pictures, 0, to noise, 1."""
        return share if self.objective == "flow" else float(round(share * (self.timesteps - 1)))

    def coefficients(self, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma at times t, each (B,)."""
        if self.objective == "flow":
            return 1.0 - t_B, t_B
        alpha_bar = jnp.asarray(self.alphas_bar, t_B.dtype)[t_B.astype(jnp.int32)]
        return jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar)

    def _scales(self, t_B: jax.Array, like: jax.Array) -> list[jax.Array]:
        return [jnp.expand_dims(c.astype(like.dtype), range(1, like.ndim)) for c in self.coefficients(t_B)]

    def network_time(self, t_B: jax.Array) -> jax.Array:
        """Times in the units of the network's embedding, (B,) in [0, 1000]."""
        return t_B * TIME_SCALE if self.objective == "flow" else t_B * (TIME_SCALE / self.timesteps)

    def add_noise(self, x0: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
        alpha, sigma = self._scales(t_B, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
        """What the network should output for `add_noise(x0, noise, t)`."""
        if self.objective == "flow":
            return noise - x0
        if self.objective == "epsilon":
            return noise
        alpha, sigma = self._scales(t_B, x0)
        return alpha * noise - sigma * x0

    def clean(self, output: jax.Array, x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        """x_0 implied by the network's output at x_t."""
        alpha, sigma = self._scales(t_B, x_t)
        if self.objective == "flow":
            return x_t - sigma * output
        if self.objective == "epsilon":
            return (x_t - sigma * output) / alpha
        return alpha * x_t - sigma * output
