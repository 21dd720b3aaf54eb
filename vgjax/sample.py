"""Pictures from texts, with everything that decides them written down."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgjax import build, parallel, pipeline, seeds
from vgjax.atomic import replacing, write_json
from vgjax.config import Config
from vgjax.context import Context, Run
from vgjax.diffusion import guidance
from vgjax.stages.denoiser import Trained
from vgjax.types import Inputs, Request


class Sampler:
    """A trained run, ready to draw: `sampler(sampler.inputs(requests), seeds) -> uint8 pictures`.

    `compilations` counts the programs that have been compiled for drawing.
    """

    def __init__(self, context: Context):
        config = context.config
        self._context, self.compilations = context, 0
        self._trained = Trained(context)
        self._weights = guidance_weights(config, self._trained.condition.channels)
        self._kept = guidance.branches(self._weights)
        autoencoder, shape = build.autoencoder(config), build.latent_shape(config)
        sampling = pipeline.Sampling(build.process(config), config.sample.solver, config.sample.steps)

        def draw(variables, autoencoder, inputs: Inputs, seeds_B2: jax.Array, coefficients: jax.Array) -> jax.Array:
            self.compilations += 1  # runs while tracing, so once a compiled program
            noise = jax.vmap(lambda halves: jax.random.normal(seeds.key(halves), shape))(seeds_B2)
            guided = guidance.Guidance(self._trained.condition.channels, self._kept, coefficients)
            to_tokens = functools.partial(self._trained.to_tokens, variables)
            dit = build.Model(self._trained.dit, variables["dit"])
            image = pipeline.decode(autoencoder, pipeline.generate(to_tokens, dit, inputs, noise, sampling, guided))
            return jnp.round((image + 1.0) * 127.5).astype(jnp.uint8)

        self._variables = jax.device_put((self._trained.variables, autoencoder), parallel.replicated(context.mesh))
        self._draw = jax.jit(draw)

    @property
    def channels(self) -> tuple[str, ...]:
        return self._trained.condition.channels

    def inputs(self, requests: Sequence[Request]) -> Inputs:
        """What requests imply, by channel, with a leading batch axis."""
        return self._trained.condition.from_requests(self._trained.variables["frozen"], requests)

    def __call__(
        self, inputs: Inputs, picture_seeds: Sequence[int], weights: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8; the picture of a seed does not depend on the others in the batch.

        `weights` are guidance weights by channel in the place of the config's; other values recompile nothing.

        Raises:
          ValueError: the weights need a branch that the config's weights do not.
        """
        size, count = self._context.config.sample.batch_size, len(picture_seeds)
        coefficients = jnp.asarray(guidance.coefficients(self._kept, weights or self._weights), jnp.float32)
        batches = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)  # filled with the last
        columns = jax.tree.map(np.asarray, {"inputs": inputs, "seeds": seeds.halves(list(picture_seeds))})
        pictures = []
        with jax.set_mesh(self._context.mesh):
            for rows in batches:
                mine = rows[parallel.process_rows(size)]
                taken = jax.tree.map(lambda a, at=mine: a[at], columns)
                batch = parallel.to_global(taken, self._context.mesh)
                drawn = self._draw(*self._variables, batch["inputs"], batch["seeds"], coefficients)
                pictures.append(parallel.gather(drawn))
        return np.concatenate(pictures)[:count]


def guidance_weights(config: Config, channels: Sequence[str]) -> dict[str, float]:
    """The weight of each channel, in the condition's order."""
    return {name: config.sample.guidance[name] for name in channels}


def sample_prompt(run: Run, prompt: str) -> list[pathlib.Path]:
    """Draws `sample.count` pictures of one prompt into workdir/samples: PNG files, then their settings as JSON."""
    config, sampler = run.config, Sampler(run.context)
    picture_seeds = [config.seed + i for i in range(config.sample.count)]
    pictures = sampler(sampler.inputs([Request(prompt=prompt)] * len(picture_seeds)), picture_seeds)
    name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    folder = run.workdir / "samples"
    paths = [folder / f"{name}-{seed}.png" for seed in picture_seeds]
    for path, picture in zip(paths, pictures, strict=True):
        with replacing(path) as part:
            Image.fromarray(picture).save(part, "PNG")
    settings = {"prompt": prompt, "seeds": picture_seeds, "files": [p.name for p in paths], "config": config.flat()}
    paths.append(folder / f"{name}.json")
    write_json(paths[-1], settings, sort_keys=True)
    return paths
