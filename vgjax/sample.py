"""Pictures from texts, with everything that decides them written down."""

import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgjax import build, parallel, pipeline, seeds
from vgjax.atomic import replacing, write_json
from vgjax.config import Config, ConfigError
from vgjax.context import Context, Run
from vgjax.data.entries import SUFFIXES
from vgjax.data.read.decode import square, to_png
from vgjax.data.read.images import ImageError, read_image, read_mask
from vgjax.diffusion import guidance
from vgjax.features.text import encoder_of
from vgjax.models.text_encoder import TextEncoder
from vgjax.stages.denoiser import Trained
from vgjax.types import CHANNELS, Inputs, Request


class Sampler:
    """A trained run, ready to draw: `sampler(sampler.inputs(requests, seeds), seeds) -> uint8 pictures`.

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

    @functools.cached_property
    def encoder(self) -> TextEncoder | None:
        """What reads the texts of requests; None where the condition reads none."""
        return encoder_of(self._context) if self._trained.condition.reads_text else None

    def inputs(self, requests: Sequence[Request], picture_seeds: Sequence[int]) -> Inputs:
        """What requests imply, by channel, (B, ...) each; what they leave open is drawn with their seeds."""
        frozen, encoder = self._trained.variables["frozen"], cast(TextEncoder, self.encoder)
        return self._trained.condition.from_requests(frozen, requests, picture_seeds, encoder)

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


def read_request(config: Config, asked: Mapping[str, str]) -> Request:
    """The request of `--prompt`, `--anatomy` and `--modality` (a text or a picture's file) and `--mask` (a file).

    Raises:
      ConfigError: a file is missing or no picture.
    """
    c = config.data
    fields: dict[str, Any] = {"prompt": asked.get("prompt", "")}
    for name in (*CHANNELS, "mask"):
        value = asked.get(name, "")
        path = pathlib.Path(value)
        if name != "mask" and not (os.path.isfile(value) or path.suffix.lower() in SUFFIXES):
            fields[name] = value
        elif value:
            try:
                picture = read_image(path, path.resolve().parent, c.max_pixels).pixels
                shape = picture.shape[:2]
                mask = read_mask([path], path.resolve().parent, shape) if name == "mask" else np.zeros(shape, np.uint8)
            except ImageError as error:
                fault = f"{error.reason}: {error.detail}"
                raise ConfigError(f"--{name}: '{value}' cannot be used ({fault}): name the file of a picture") from None
            image, mask = square(picture, mask, c.image_size, c.aspect)
            fields["mask" if name == "mask" else f"{name}_image"] = to_png(mask if name == "mask" else image)
    return Request(**fields)


def sample_request(run: Run, asked: Mapping[str, str], count: int = 0, seed: int | None = None) -> list[pathlib.Path]:
    """Draws pictures of what is asked for into workdir/samples: PNG files, then their settings as JSON.

    Words that the training captions never used are told; they change nothing but where they are read as known ones.

    Args:
      asked: as `read_request` takes it.
      count: how many; 0: `sample.count`.
      seed: of the first, the next ones count on; None: the config's.
    """
    config, request, sampler = run.config, read_request(run.config, asked), Sampler(run.context)
    first = config.seed if seed is None else seed
    picture_seeds = [first + i for i in range(count or config.sample.count)]
    encoder, texts = sampler.encoder, (request.prompt, request.anatomy, request.modality)
    unknown = encoder.unknown(texts) if encoder else []
    if unknown:
        logging.warning("not in the training captions, and so not followed as they are: %s", ", ".join(unknown))
    pictures = sampler(sampler.inputs([request] * len(picture_seeds), picture_seeds), picture_seeds)
    told = {name: value for name, value in asked.items() if value}
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    folder = run.workdir / "samples"
    paths = [folder / f"{name}-{picture_seed}.png" for picture_seed in picture_seeds]
    for path, picture in zip(paths, pictures, strict=True):
        with replacing(path) as part:
            Image.fromarray(picture).save(part, "PNG")
    files = [path.name for path in paths]
    settings = {**told, "unknown_words": unknown, "seeds": picture_seeds, "files": files, "config": config.flat()}
    paths.append(folder / f"{name}.json")
    write_json(paths[-1], settings, sort_keys=True)
    return paths
