"""The column "latents": what a frozen autoencoder makes of each picture that stage 3 trains on."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.config import Config
from vgjax.context import Context, Producer
from vgjax.features.base import TRAINING_SPLITS, pictures, write_column
from vgjax.models.autoencoder import Autoencoder

ENCODE_BATCH = 4


def views(autoencoder: Autoencoder, image_BHWC: jax.Array, config: Config) -> jax.Array:
    """Latents (B, V, h, w, c) of uint8 pictures: as they are (V = 1) and, under `denoiser.flip`, mirrored too (V = 2).

    Mirroring comes before encoding: the mirrored latents of a picture are not the latents of its mirror image.
    """
    image = pipeline.to_unit_range(image_BHWC, config.data.intensity)
    sides = [image, image[:, :, ::-1]] if config.denoiser.flip else [image]
    return jnp.stack([autoencoder.encode(side) for side in sides], axis=1)


def make(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes "latents" (V, h, w, c) float16 for training and validation."""
    autoencoder = build.autoencoder(context.config)
    encode = jax.jit(lambda autoencoder, image: views(autoencoder, image, context.config))

    def compute(rows):
        found = np.asarray(encode(autoencoder, pictures(rows, ENCODE_BATCH)), np.float16)
        return ({"latents": latents} for latents in found[: len(rows)])

    sources = {split: context.rows(["pictures"], split) for split in TRAINING_SPLITS}
    return write_column(folder, "latents", sources, compute, ENCODE_BATCH)


LATENTS = Producer(
    "latents",
    make,
    keys=("autoencoder.*", "denoiser.flip", "data.intensity"),
    needs=("pictures",),
    files=lambda c: [c.autoencoder.path],
)
