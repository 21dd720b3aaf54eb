"""Pictures from texts, with everything that decides them written down."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgjax import checkpoint, parallel, pipeline
from vgjax.stages import denoiser
from vgjax.stages.stage import Run
from vgjax.text import load_text_encoder
from vgjax.types import Factors


class Sampler:
    """A trained run, ready to draw: `sampler(texts, seeds) -> uint8 pictures`."""

    def __init__(self, run: Run):
        config = run.config
        self._run = run
        self._encode = load_text_encoder(config.text_encoder)
        self._disentangler = pipeline.Model(
            pipeline.make_disentangler(config), checkpoint.load_export(run.export("disentangler"))
        )
        hffm, dit = denoiser.load_models(run)
        autoencoder = pipeline.load_autoencoder(config)
        shape = pipeline.latent_shape(config)

        def draw(variables, factors: Factors, seeds_B: jax.Array) -> jax.Array:
            noise = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds_B)
            models = (pipeline.Model(hffm.module, variables[0]), pipeline.Model(dit.module, variables[1]))
            image = pipeline.generate(*models, variables[2], factors, noise, config)
            return jnp.round((image + 1.0) * 127.5).astype(jnp.uint8)

        self._variables = jax.device_put((hffm.variables, dit.variables, autoencoder), parallel.replicated(run.mesh))
        self._draw = jax.jit(draw)

    def factors(self, texts: Sequence[str]) -> Factors:
        """The factors that texts imply, (B, g, g, K) and (B, Z)."""
        embedding = jnp.asarray(self._encode(list(texts)), jnp.float32)
        return pipeline.text_factors(self._disentangler, embedding, self._run.config.prior.grid)

    def __call__(self, factors: Factors, seeds: Sequence[int]) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8; the picture of a seed does not depend on the others in the batch."""
        size, count = self._run.config.sample.batch_size, len(seeds)
        padded = -(-count // size) * size
        rows = np.minimum(np.arange(padded), count - 1)
        pictures = []
        with jax.set_mesh(self._run.mesh):
            for start in range(0, padded, size):
                take = rows[start : start + size]
                batch = parallel.to_global(
                    {
                        "anatomy": np.asarray(factors.anatomy_BggK)[take],
                        "modality": np.asarray(factors.modality_BZ)[take],
                        "seeds": np.asarray(seeds, np.uint32)[take],
                    },
                    self._run.mesh,
                )
                given = Factors(anatomy_BggK=batch["anatomy"], modality_BZ=batch["modality"])
                pictures.append(np.asarray(self._draw(self._variables, given, batch["seeds"])))
        return np.concatenate(pictures)[:count]


def sample_prompt(run: Run, prompt: str) -> list[pathlib.Path]:
    """Draws `sample.count` pictures of one prompt into workdir/samples and writes their settings beside them.

    Returns:
      The PNG files, then the JSON file.
    """
    config = run.config
    sampler = Sampler(run)
    seeds = [config.seed + i for i in range(config.sample.count)]
    factors = sampler.factors([prompt])
    repeated = jax.tree.map(lambda a: jnp.repeat(a, len(seeds), axis=0), factors)
    pictures = sampler(repeated, seeds)
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
