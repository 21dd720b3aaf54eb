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
FIELDS = ("anatomy", "modality", "mask")


def make(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes "anatomy" (g, g, K), "modality" (Z,), "mask" (the lesion's coverage), and the scales, `STATISTICS`."""
    config = context.config
    prior = build.Model(build.prior(config), context.variables("prior"))
    size, intensity, cells = build.prior_size(config), config.data.intensity, build.mask_cells(config)
    extract = jax.jit(lambda image: pipeline.raw_factors(pipeline.encode(prior, image), config.prior.grid))

    def compute(rows):
        images, masks = (jnp.asarray(pictures(rows, EXTRACT_BATCH, name)) for name in ("image", "mask"))
        found = extract(pipeline.prior_input(images, size, intensity))
        covered = pipeline.mask_coverage(masks, cells).astype(jnp.float16)
        columns = jax.device_get((found.anatomy_BggK, found.modality_BZ, covered))
        return [dict(zip(FIELDS, fields, strict=True)) for fields in zip(*columns, strict=True)][: len(rows)]

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
    return {**row, "anatomy": factors.anatomy_BggK[0], "modality": factors.modality_BZ[0]}


FACTORS = Producer(
    "factors",
    make,
    keys=("prior.*", "-prior.train.*", "data.intensity", "data.image_size"),
    needs=("pictures", "prior"),
)
