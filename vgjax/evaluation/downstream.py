"""Usefulness: whether drawn pictures, in the place of real training ones or beside them, make a better classifier.

Every arm takes the same number of steps and is tested on the same real pictures:
  real            real training pictures alone: those that the denoiser was trained on
  synthetic       pictures drawn from their captions alone
  real_synthetic  both in every batch, at the share of drawn ones that is best on validation
  pretrained      drawn ones in the first half of the steps, real ones in the second (RoentGen-v2, arXiv 2508.16783)
"""

import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vgjax import checkpoint, seeds
from vgjax.atomic import write_json
from vgjax.config import Config, ConfigError
from vgjax.context import Context, Producer
from vgjax.data.records import Rows
from vgjax.data.sources import SOURCES
from vgjax.evaluation import draw, scores
from vgjax.evaluation.classifier import Classifier, Pool
from vgjax.provenance import peak_rss_mb

SHARES = (0.25, 0.5, 0.75)  # of drawn pictures beside real ones, of which validation chooses
REAL, BOTH = "real", "real_synthetic"
SPLITS = ("validation", "test")


def producers(config: Config) -> dict[str, Producer]:
    """The evaluation "downstream", where `evaluate.metrics` names it."""
    if "downstream" not in config.evaluate.metrics:
        return {}
    keys, needs = ("seed", "downstream.*", "evaluate.resamples"), ("pictures", f"drawn_{draw.DOWNSTREAM}")
    return {"downstream": Producer("downstream", _measure, keys, needs)}


def _measure(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    c, side = context.config, context.config.downstream.image_size
    found = {split: labelled(context.rows(["pictures"], split)) for split in ("train", *SPLITS)}
    classes = sorted({label for label, _ in found["train"]})
    known = {split: {label for label, _ in rows if label in classes} for split, rows in found.items()}
    if min(map(len, known.values())) < 2:
        told = "pictures of each split are to be of at least two classes that training pictures show"
        raise ConfigError(f"config key 'evaluate.metrics' names 'downstream': {told}, so leave it out")
    pools = {split: pool_of(rows, classes, side) for split, rows in found.items()}
    drawn = draw.drawn_rows(context, draw.DOWNSTREAM)
    asked = [(row["request"]["label"], row["image"]) for row in (drawn[i] for i in range(len(drawn)))]
    pools["drawn"] = pool_of(asked, classes, side)
    source = SOURCES[context.artefact("pictures").manifest["info"]["source"]]
    estimates = measure(c, pools, classes, getattr(source, "symmetries", 1), folder)
    write_json(folder / "metrics.json", estimates)
    return {"peak_rss_mb": peak_rss_mb()}


def labelled(rows: Rows) -> list[tuple[str, bytes]]:
    """Class and PNG of the rows that have a class."""
    return [(row["label"], row["image"]) for row in (rows[i] for i in range(len(rows))) if row["label"]]


def pool_of(pictures: Iterable[tuple[str, bytes]], classes: Sequence[str], side: int) -> Pool:
    """Pictures of known classes, at side x side pixels."""
    places = {name: i for i, name in enumerate(classes)}
    resized = lambda png: np.asarray(Image.open(io.BytesIO(png)).resize((side, side), Image.Resampling.BILINEAR))
    kept = [(places[label], resized(png)) for label, png in pictures if label in places]
    return Pool(np.stack([picture for _, picture in kept]), np.array([label for label, _ in kept]))


def measure(
    config: Config, pools: Mapping[str, Pool], classes: Sequence[str], symmetries: int, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Estimates by name; the predictions of each arm are kept in `folder`, where those that are there already serve.

    Args:
      pools: train, validation, test (real) and drawn.
    """
    c, classifier = config.downstream, Classifier(config.downstream, len(classes), symmetries)
    of_split = lambda split: scores.Truth(pools[split].labels, classes, config.seed, config.evaluate.resamples)

    def predictions(name: str, shares: np.ndarray) -> dict[str, np.ndarray]:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            seen = [pools[split] for split in SPLITS]
            of_seed = lambda one: seeds.derive(config.seed, "downstream", one)
            runs = [classifier(pools["train"], pools["drawn"], shares, of_seed(i), seen) for i in range(c.seeds)]
            checkpoint.save_export(path, dict(zip(SPLITS, map(np.stack, zip(*runs, strict=True)), strict=True)))
        return checkpoint.load_export(path)

    steps = np.arange(c.steps)
    arms = {REAL: predictions(REAL, np.zeros(c.steps)), "synthetic": predictions("synthetic", np.ones(c.steps))}
    mixed = {share: predictions(f"{BOTH}_{share}", np.full(c.steps, share)) for share in SHARES}
    balanced = lambda share: scores.means(of_split("validation"), mixed[share]["validation"])["balanced_accuracy"]
    best = max(mixed, key=balanced)
    arms |= {BOTH: mixed[best], "pretrained": predictions("pretrained", (steps < c.steps // 2).astype(float))}
    told = {"split": "test", "net": f"ResNet-18 of width {c.width} at {c.image_size} pixels"}
    tested = scores.estimates(of_split("test"), {name: arm["test"] for name, arm in arms.items()}, REAL)
    found = {f"downstream/{name}": row | told for name, row in tested}
    chosen = {"value": best, "interval": None, "n": len(pools["validation"].labels), "note": f"of {list(SHARES)}"}
    return {**found, f"downstream/{BOTH}/share": {**chosen, "net": told["net"], "split": "validation"}}
