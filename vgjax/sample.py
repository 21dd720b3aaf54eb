"""Pictures from texts, with everything that decides them written down."""

import dataclasses
import functools
import hashlib
import itertools
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
from vgjax.conditions.base import in_parts
from vgjax.config import Config, ConfigError
from vgjax.context import Context, Run
from vgjax.data.entries import SUFFIXES
from vgjax.data.read.decode import square, to_png
from vgjax.data.read.images import ImageError, read_image, read_mask
from vgjax.data.records import from_png
from vgjax.diffusion import guidance
from vgjax.evaluation import copies
from vgjax.features.latents import views
from vgjax.features.text import encoder_of
from vgjax.models.autoencoder import Autoencoder
from vgjax.models.text_encoder import TextEncoder
from vgjax.stages.denoiser import Trained
from vgjax.types import CHANNELS, Inputs, Request

TRIES = 10  # further ones for a picture that is a copy


class Sampler:
    """A trained run, ready to draw: `sampler(sampler.inputs(requests, seeds), seeds) -> uint8 pictures`.

    `compilations` counts the programs that have been compiled for drawing.
    """

    def __init__(self, context: Context):
        self.config, self._context, self.compilations = context.config, context, 0
        self._trained = Trained(context)
        self._weights = guidance_weights(self.config, self.channels)
        self._process = build.process(self.config)
        variables = (self._trained.variables, build.autoencoder(self.config))
        self._variables = jax.device_put(variables, parallel.replicated(context.mesh))
        self._draw = jax.jit(self._drawn, static_argnums=(4, 5))

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

        `weights` are guidance weights by channel in the place of the config's; others that need the same branches
        recompile nothing.
        """
        columns = {"inputs": inputs, "seeds": seeds.halves(list(picture_seeds))}
        return self._in_batches(columns, weights or self._weights)

    def edit(
        self, inputs: Inputs, requests: Sequence[Request], picture_seeds: Sequence[int], strength: float | None = None
    ) -> tuple[np.ndarray, float | None]:
        """Pictures (B, H, W, 3) uint8 of requests with a source, which all ask of the same channels; and an error.

        They start from the noise of their source: from where the ODE comes to it under its own factors, unguided (Song
        et al. 2021, section 4.3). The error, the mean absolute one a pixel in 8-bit levels, is of coming back so.
        With a strength, they start from the source noised to that share: SDEdit (Meng et al. 2022), without the error.

        Raises:
          ConfigError: an ODE to invert of another objective than flow.
        """
        pictures = np.stack([from_png(request.source) for request in requests])
        noised = {"pictures": pictures, "seeds": seeds.halves(list(picture_seeds))}
        if strength is not None:
            return self._in_batches({"inputs": inputs, **noised}, self._weights, strength), None
        if (objective := self.config.diffusion.objective) != "flow":
            raise ConfigError(f"config key 'diffusion.objective' is '{objective}': edit by --strength, or with 'flow'")
        own = self.inputs([Request(source=request.source) for request in requests], picture_seeds)
        plain = dict.fromkeys(self.channels, 1.0)
        noise = self._in_batches({"inputs": own, **noised}, plain, 0.0)
        back = self._in_batches({"inputs": own, "noise": noise}, plain)
        # The noise keeps a channel that nothing is asked of; guidance, which exaggerates it, starts with the next.
        changed = {c: requests[0].picture(c) != requests[0].source for c in CHANNELS}
        asked = itertools.accumulate((changed.get(c, any(changed.values())) for c in self.channels), max)
        weights = {c: self._weights[c] if so else 1.0 for c, so in zip(self.channels, asked, strict=True)}
        edited = self._in_batches({"inputs": inputs, "noise": noise}, weights)
        return edited, float(np.abs(back.astype(float) - pictures).mean())

    def _in_batches(self, columns: Any, weights: Mapping[str, float], start: float = 1.0) -> np.ndarray:
        """What `_drawn` makes of columns of equal lengths, under guidance weights by channel."""
        columns, size, mesh = jax.tree.map(np.asarray, columns), self.config.sample.batch_size, self._context.mesh
        kept, mine = guidance.branches(weights), parallel.process_rows(size)
        coefficients = jnp.asarray(guidance.coefficients(kept, weights), jnp.float32)

        def draw(rows: Any) -> np.ndarray:
            batch = parallel.to_global(jax.tree.map(lambda a: a[mine], rows), mesh)
            return parallel.gather(self._draw(*self._variables, batch, coefficients, kept, start))

        with jax.set_mesh(mesh):
            return in_parts(draw, columns, len(jax.tree.leaves(columns)[0]), size)

    def _drawn(
        self,
        variables: Any,
        autoencoder: Autoencoder,
        batch: Mapping[str, Any],
        coefficients: jax.Array,
        kept: tuple[int, ...],
        start: float,
    ) -> jax.Array:
        """Pictures from noise, given or of seeds, or from pictures so far noised; from unnoised ones, their noise."""
        self.compilations += 1  # runs while tracing, so once a compiled program
        c, shape = self.config.sample, build.latent_shape(self.config)
        if "noise" in batch:
            x = batch["noise"]
        else:
            x = jax.vmap(lambda halves: jax.random.normal(seeds.key(halves), shape))(batch["seeds"])
        if "pictures" in batch:
            clean = views(autoencoder, batch["pictures"], self.config)[:, 0]
            x = self._process.add_noise(clean, x, jnp.full(len(x), self._process.time(start)))
        sampling = pipeline.Sampling(self._process, c.solver if start else "invert_euler", c.steps, start=start)
        guided = guidance.Guidance(self.channels, kept, coefficients)
        to_tokens = functools.partial(self._trained.to_tokens, variables)
        dit = build.Model(self._trained.dit, variables["dit"])
        latents = pipeline.generate(to_tokens, dit, batch["inputs"], x, sampling, guided)
        if not start:
            return latents
        return jnp.round((pipeline.decode(autoencoder, latents) + 1.0) * 127.5).astype(jnp.uint8)


def guidance_weights(config: Config, channels: Sequence[str]) -> dict[str, float]:
    """The weight of each channel, in the condition's order."""
    return {name: config.sample.guidance[name] for name in channels}


def read_request(config: Config, asked: Mapping[str, str]) -> Request:
    """The request of `--prompt`, `--anatomy` and `--modality` (a text or a file), `--mask` and `--edit` (files).

    Raises:
      ConfigError: a file is missing or no picture.
    """
    c = config.data
    fields: dict[str, Any] = {"prompt": asked.get("prompt", "")}
    for name, field in (*((c, f"{c}_image") for c in CHANNELS), ("mask", "mask"), ("edit", "source")):
        value = asked.get(name, "")
        path = pathlib.Path(value)
        if name in CHANNELS and not (os.path.isfile(value) or path.suffix.lower() in SUFFIXES):
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
            fields[field] = to_png(mask if name == "mask" else image)
    return Request(**fields)


def sample_request(
    run: Run,
    asked: Mapping[str, str],
    count: int = 0,
    seed: int | None = None,
    strength: float | None = None,
    refuse_copies: bool = False,
) -> list[pathlib.Path]:
    """Draws pictures of what is asked for into workdir/samples: PNG files, then their settings as JSON.

    Words that the training captions never used are told; they change nothing but where they are read as known ones.

    Args:
      asked: as `read_request` takes it; "anatomy_to" and "modality_to" say what that channel goes over to.
      count: how many; 0: `sample.count`.
      seed: of the first, the next ones count on (in 64 bits), unless a channel goes over; None: the config's.
      strength: to edit by SDEdit, in the place of inversion.
      refuse_copies: draw copies of training pictures again, from other seeds; neither edits nor what goes over.
    """
    config, to = run.config, {name: asked[f"{name}_to"] for name in CHANNELS if asked.get(f"{name}_to")}
    ends = [read_request(config, asked)] + ([read_request(config, {**asked, **to})] if to else [])
    sampler, first, count = Sampler(run.context), config.seed if seed is None else seed, count or config.sample.count
    texts = [text for one in ends for text in (one.prompt, one.anatomy, one.modality)]
    unknown = sampler.encoder.unknown(texts) if sampler.encoder else []
    if unknown:
        logging.warning("not in the training captions, and so not followed as they are: %s", ", ".join(unknown))
    picture_seeds = [first if to else (first + i) % (1 << 64) for i in range(count)]
    inputs = _between(sampler, ends, first, count) if to else sampler.inputs(ends * count, picture_seeds)
    told: dict[str, Any] = {name: value for name, value in asked.items() if value}
    told |= {} if strength is None else {"strength": strength}
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    if ends[-1].source:
        pictures, error = sampler.edit(inputs, ends[-1:] * count, picture_seeds, strength)
    else:
        pictures, error = sampler(inputs, picture_seeds), None
    if error is not None:
        logging.info("round trip of the picture: a mean absolute error of %.2f levels of 255", error)
        told["round_trip_error"] = error
    if refuse_copies:
        told["refused"] = _refuse(run, sampler, ends[0], pictures, picture_seeds)
    folder = run.workdir / "samples"
    paths = [folder / f"{name}-{one}{f'-{i}' if to else ''}.png" for i, one in enumerate(picture_seeds)]
    for path, picture in zip(paths, pictures, strict=True):
        with replacing(path) as part:
            Image.fromarray(picture).save(part, "PNG")
    files = [path.name for path in paths]
    settings = {**told, "unknown_words": unknown, "seeds": picture_seeds, "files": files, "config": config.flat()}
    paths.append(folder / f"{name}.json")
    write_json(paths[-1], settings, sort_keys=True)
    return paths


def _refuse(
    run: Run, sampler: Sampler, request: Request, pictures: np.ndarray, picture_seeds: list[int]
) -> list[dict[str, Any]]:
    """Draws copies of training pictures again, in place, with seeds derived from theirs; tells each that was refused.

    Raises:
      ConfigError: one seed has led to copies alone.
    """
    # What training pictures are known by is made here, where no evaluation has.
    own = dataclasses.replace(run, producers={**run.producers, copies.COPIES.name: copies.COPIES})
    training, threshold = copies.load(own.artefact(copies.COPIES.name))
    places, first, refused = list(range(len(pictures))), list(picture_seeds), []
    for attempt in range(TRIES + 1):
        apart = training.nearest(pictures[places]).distances
        caught = [(i, float(distance)) for i, distance in zip(places, apart, strict=True) if distance < threshold]
        refused += [{"seed": picture_seeds[i], "distance": distance} for i, distance in caught]
        if not (places := [i for i, _ in caught]):
            break
        if attempt == TRIES:
            raise ConfigError(
                f"--refuse-copies: seed {first[places[0]]} led to {TRIES + 1} copies of training pictures: ask for"
                " something else, or train on more pictures or for fewer steps"
            )
        for i in places:
            picture_seeds[i] = seeds.derive(first[i], "refused", attempt)
        again = [picture_seeds[i] for i in places]
        pictures[places] = sampler(sampler.inputs([request] * len(again), again), again)
    if refused:
        logging.warning("%d copies of training pictures were refused and drawn again from other seeds", len(refused))
    return refused


def _between(sampler: Sampler, ends: Sequence[Request], seed: int, count: int) -> Inputs:
    """Inputs on the way from one request to another, of one seed."""
    found, shares = sampler.inputs(ends, [seed] * len(ends)), np.linspace(0.0, 1.0, count)
    if set(found) != set(CHANNELS):
        told = f"the condition of this config has {', '.join(found)}"
        raise ConfigError(f"--anatomy_to and --modality_to need a condition on anatomy and modality, but {told}")
    return {name: pipeline.between(np.asarray(x), shares) for name, x in found.items()}
