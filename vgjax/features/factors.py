"""The column "factors": what the trained visual prior finds in each picture, standardised over the training split."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, checkpoint, pipeline
from vgjax.context import Context, Producer
from vgjax.data.records import Records, SkippedRows
from vgjax.features.base import TRAINING_SPLITS, pictures, write_column
from vgjax.types import Factors

EXTRACT_BATCH = 64
STATISTICS = "statistics.safetensors"


def make(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes "anatomy" (g, g, K) and "modality" (Z,), and `STATISTICS`: mean and scale of either."""
    config = context.config
    prior = build.Model(build.prior(config), context.variables("prior"))
    size, intensity = build.prior_size(config), config.data.intensity
    extract = jax.jit(lambda image: pipeline.raw_factors(pipeline.encode(prior, image), config.prior.grid))

    def compute(rows):
        images = jnp.asarray(pictures(rows, EXTRACT_BATCH))
        found = jax.device_get(extract(pipeline.prior_input(images, size, intensity)))
        pairs = zip(found.anatomy_BggK, found.modality_BZ, strict=True)
        return [{"anatomy": anatomy, "modality": modality} for anatomy, modality in pairs][: len(rows)]

    sources = {split: context.rows(["pictures"], split) for split in TRAINING_SPLITS}
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    info = write_column(raw, "factors", sources, compute, EXTRACT_BATCH)
    lost = {split: set(numbers) for split, numbers in info["absent"].items()}
    found = {split: SkippedRows(Records(sorted(raw.glob(f"{split}-*"))), lost[split]) for split in TRAINING_SPLITS}
    stats = statistics(found["train"], config.prior.standardise)
    checkpoint.save_export(folder / STATISTICS, stats)
    write_column(folder, "standardised factors", found, lambda rows: [_standardised(row, stats) for row in rows], 1)
    shutil.rmtree(raw)
    return info


def statistics(rows: SkippedRows, standardise: bool) -> dict[str, np.ndarray]:
    """Those of `pipeline.factor_statistics`, or ones and zeros, which leave factors as they are."""
    columns = [(row["anatomy"], row["modality"]) for row in (rows[i] for i in range(len(rows)))]
    stats = pipeline.factor_statistics(*(np.stack(column) for column in zip(*columns, strict=True)))
    if standardise:
        return stats
    return {name: np.full_like(value, name.endswith("scale")) for name, value in stats.items()}


def _standardised(row: dict[str, np.ndarray], stats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raw = Factors(anatomy_BggK=row["anatomy"][None], modality_BZ=row["modality"][None])
    factors = pipeline.standardise(raw, stats)
    return {"anatomy": factors.anatomy_BggK[0], "modality": factors.modality_BZ[0]}


FACTORS = Producer(
    "factors",
    make,
    keys=("prior.*", "-prior.train.*", "data.intensity", "data.image_size"),
    needs=("pictures", "prior"),
)
