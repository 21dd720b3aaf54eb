"""Pictures from texts, with everything that decides them written down."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgjax import build, parallel, pipeline
from vgjax.config import Config
from vgjax.context import Run
from vgjax.diffusion import guidance
from vgjax.stages.denoiser import Trained
from vgjax.types import Inputs, Request


class Sampler:
    """A trained run, ready to draw: `sampler(sampler.inputs(requests), seeds) -> uint8 pictures`.

    Attributes:
      compilations: how many programs have been compiled for drawing.
    """

    def __init__(self, run: Run):
        config = run.config
        self._run, self.compilations = run, 0
        self._trained = Trained(run)
        self._weights = guidance_weights(config, self._trained.condition.channels)
        self._kept = guidance.branches(self._weights)
        autoencoder, shape = build.autoencoder(config), build.latent_shape(config)
        sampling = pipeline.Sampling(build.process(config), config.sample.solver, config.sample.steps)

        def draw(variables, autoencoder, inputs: Inputs, seeds_B: jax.Array, coefficients: jax.Array) -> jax.Array:
            self.compilations += 1  # runs while tracing, so once a compiled program
            noise = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds_B)
            guided = guidance.Guidance(self._trained.condition.channels, self._kept, coefficients)
            to_tokens = functools.partial(self._trained.to_tokens, variables)
            dit = build.Model(self._trained.dit, variables["dit"])
            image = pipeline.generate(to_tokens, dit, autoencoder, inputs, noise, sampling, guided)
            return jnp.round((image + 1.0) * 127.5).astype(jnp.uint8)

        self._variables = jax.device_put((self._trained.variables, autoencoder), parallel.replicated(run.mesh))
        self._draw = jax.jit(draw)

    @property
    def channels(self) -> tuple[str, ...]:
        """Of the condition."""
        return self._trained.condition.channels

    def inputs(self, requests: Sequence[Request]) -> Inputs:
        """What requests imply, by channel, with a leading batch axis."""
        return self._trained.condition.from_requests(self._trained.variables["frozen"], requests)

    def __call__(self, inputs: Inputs, seeds: Sequence[int], weights: Mapping[str, float] | None = None) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8; the picture of a seed does not depend on the others in the batch.

        Args:
          weights: guidance weight of each channel in the place of the config's; another value recompiles nothing.

        Raises:
          ValueError: the weights need a branch that the config's weights do not.
        """
        size, count = self._run.config.sample.batch_size, len(seeds)
        coefficients = jnp.asarray(guidance.coefficients(self._kept, weights or self._weights), jnp.float32)
        padded = -(-count // size) * size
        rows = np.minimum(np.arange(padded), count - 1)
        columns = jax.tree.map(np.asarray, {"inputs": inputs, "seeds": np.asarray(seeds, np.uint32)})
        pictures = []
        with jax.set_mesh(self._run.mesh):
            for start in range(0, padded, size):
                taken = jax.tree.map(lambda a, at=rows[start : start + size]: a[at], columns)
                batch = parallel.to_global(taken, self._run.mesh)
                drawn = self._draw(*self._variables, batch["inputs"], batch["seeds"], coefficients)
                pictures.append(np.asarray(drawn))
        return np.concatenate(pictures)[:count]


def guidance_weights(config: Config, channels: Sequence[str]) -> dict[str, float]:
    """The weight of each channel, in the condition's order."""
    return {name: getattr(config.sample, f"guidance_{name}") for name in channels}


def sample_prompt(run: Run, prompt: str) -> list[pathlib.Path]:
    """Draws `sample.count` pictures of one prompt into workdir/samples and writes their settings beside them.

    Returns:
      The PNG files, then the JSON file.
    """
    config = run.config
    sampler = Sampler(run)
    seeds = [config.seed + i for i in range(config.sample.count)]
    pictures = sampler(sampler.inputs([Request(prompt=prompt)] * len(seeds)), seeds)
    name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    folder = run.workdir / "samples"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}-{seed}.png" for seed in seeds]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    settings = {"prompt": prompt, "seeds": seeds, "files": [p.name for p in paths], "config": config.flat()}
    paths.append(folder / f"{name}.json")
    paths[-1].write_text(json.dumps(settings, indent=1, sort_keys=True))
    return paths
