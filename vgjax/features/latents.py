"""Before stage 3: what a frozen autoencoder makes of every picture, computed once and streamed from then on."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vgjax import build, pipeline
from vgjax.config import Config
from vgjax.context import Run
from vgjax.data import records
from vgjax.data.stream import ordered_batches
from vgjax.models.autoencoder import Autoencoder

SPLITS = ("train", "validation")
ENCODE_BATCH = 4


def views(autoencoder: Autoencoder, image_BHWC: jax.Array, config: Config) -> jax.Array:
    """Latents (B, V, h, w, c) of uint8 pictures: as they are (V = 1) and, under `denoiser.flip`, mirrored too (V = 2).

    Mirroring comes before encoding: the mirrored latents of a picture are not the latents of its mirror image.
    """
    image = pipeline.to_unit_range(image_BHWC, config.data.intensity)
    sides = [image, image[:, :, ::-1]] if config.denoiser.flip else [image]
    return jnp.stack([autoencoder.encode(side) for side in sides], axis=1)


def write(run: Run) -> list[pathlib.Path]:
    """Writes latents-{split}.array_record, float16, beside the pictures; a split that is there is left alone.

    Returns:
      The files written now: none where the latents are the pixels.
    """
    if run.config.autoencoder.kind == "pixel":
        return []
    missing = [split for split in SPLITS if not run.records("latents", split).exists()]
    for split in missing:
        records.write(run.records("latents", split), _rows(run, split))
    logging.info("latents: %s", f"wrote {', '.join(missing)}" if missing else "written before, skipped")
    return [run.records("latents", split) for split in missing]


def _rows(run: Run, split: str) -> Iterator[dict[str, np.ndarray]]:
    autoencoder = build.autoencoder(run.config)
    encode = jax.jit(lambda autoencoder, image: views(autoencoder, image, run.config))
    source = run.rows(["images"], split)
    with tqdm(total=len(source), desc=f"latents, {split}", unit="image", mininterval=1.0) as bar:
        for batch, valid in ordered_batches(source, _pixels, ENCODE_BATCH):
            found = np.asarray(encode(autoencoder, batch["image"]), np.float16)[:valid]
            bar.update(valid)
            yield from ({"latents": row} for row in found)


def _pixels(row: dict[str, bytes]) -> dict[str, np.ndarray]:
    return {"image": records.from_png(row["image"])}
