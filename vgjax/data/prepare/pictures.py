"""Source pictures -> records: decode, group, split, caption. Everything after this reads records only.

index (names and tables) -> parts (decoded in parallel, resumable) -> groups -> splits -> captions
-> <source>/<version> (tfds, ArrayRecord), splits/, prepare_report.json
"""

import importlib.metadata
import logging
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from vgjax.atomic import write_json
from vgjax.config import Config
from vgjax.context import Producer
from vgjax.data.caption.measure import SIDED
from vgjax.data.entries import Plan
from vgjax.data.prepare import builder, splits
from vgjax.data.prepare.splits import number
from vgjax.data.read.tables import read_captions
from vgjax.data.sources import SOURCES
from vgjax.types import SPLITS

REPORT = "prepare_report.json"
LIBRARIES = ("array-record", "numpy", "pillow", "scikit-image", "tensorflow-datasets")


def check(config: Config) -> None:
    """Raises ConfigError where source, captions file or lists of splits cannot be read; looks at no picture."""
    SOURCES[config.data.source].check(config.data.root)
    if config.data.captions_file:
        read_captions(config.data.captions_file)
    if config.data.splits:
        splits.read(config.data.splits)


def prepare(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the pictures' records and prepare_report.json into `folder`.

    A stopped preparation goes on with the chunks that are not decoded yet.

    Returns:
      What later steps ask: the source's name, how many records each split has and how many of those of training are
      further views, how many files were skipped, how many training and validation captions tell left from right,
      thresholds of measured captions, versions of libraries.

    Raises:
      ConfigError: nothing usable, or too many damaged files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = SOURCES[config.data.source].plan(config, folder)
    if config.data.shuffle_captions:
        _shuffle(made, config.seed)
    builder.write(folder, config.data.source, {split: _rows(made, split, config) for split in SPLITS})
    counts = {split: len(made.rows[split]) for split in SPLITS}
    report = _report(made, counts)
    write_json(folder / REPORT, report)
    if made.skipped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in report["skipped_by_reason"].items())
        logging.warning("left out, as %s tells one by one: %s", REPORT, reasons)
    if same := _same(made):
        logging.warning("all training pictures have the same %s: nothing can be learned of it", ", ".join(same))
    captions = [row["caption"] for split in ("train", "validation") for row in made.rows[split].values()]
    for scratch in made.scratch:
        shutil.rmtree(scratch)
    return {
        "source": config.data.source,
        "counts": counts,
        "views": made.views,
        "skipped": len(made.skipped),
        "sided": sum(bool(SIDED.search(caption)) for caption in captions),
        "thresholds": made.thresholds,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _same(made: Plan) -> list[str]:
    """In what the training pictures do not differ."""
    told = [{"caption": r["caption"], "class": r["label"], **r["factors"]} for r in made.rows["train"].values()]
    same = [name for name, value in told[0].items() if value and all(one.get(name) == value for one in told)]
    return same + ["empty mask"] * bool(made.thresholds and "area_fraction" not in made.thresholds)


def _shuffle(made: Plan, seed: int) -> None:
    """Captions permuted in training and validation; test keeps its own, which say what is wanted."""
    for split in ("train", "validation"):
        rows = list(made.rows[split].values())
        told = [(row["caption"], item_id) for item_id, row in made.rows[split].items()]
        for row, other in zip(rows, np.random.default_rng(seed).permutation(len(rows)), strict=True):
            row["caption"], row["worded_as"] = told[other]


def _rows(made: Plan, split: str, config: Config) -> Iterator[dict[str, Any]]:
    """What is written of a split; its ground truth is replaced by noise where the control experiment asks for it."""
    wanted = made.rows[split]
    for item_id, image, mask in made.pictures():
        if item_id in wanted:
            row = {**wanted[item_id], "id": item_id, "image": image, "mask": mask, "wordings": {}}
            worded_as = row.pop("worded_as", item_id)
            if split == "train":
                rng = np.random.default_rng(number(f"wordings:{config.seed}:{worded_as}"))
                row["wordings"] = made.wordings(worded_as, rng)
            if config.data.noise_factors:
                rng = np.random.default_rng(number(item_id))
                row["factors"] = {name: str(rng.integers(100)) for name in row["factors"]}
                row["label"] = str(rng.integers(100))
            yield row


def _report(made: Plan, counts: dict[str, int]) -> dict[str, Any]:
    """Where every picture of the source went."""
    labels = {split: dict(sorted(Counter(r["label"] for r in made.rows[split].values()).items())) for split in SPLITS}
    return {
        "present": made.present,
        "used": sum(counts.values()) - made.views,
        "views": made.views,
        "skipped_pictures": sum(skip.picture for skip in made.skipped),
        "skipped_by_reason": dict(Counter(skip.reason for skip in made.skipped).most_common()),
        "counts": counts,
        "labels": labels,
        "groups": made.groups,
        "torn": list(made.torn),
        "leaks": made.leaks,
        "skipped": [skip._asdict() for skip in made.skipped],
    }


PICTURES = Producer(
    "pictures",
    lambda context, folder: prepare(context.config, folder),
    keys=("seed", "data.*", "-data.workers", "-data.max_bad_fraction", "-data.intensity"),
    free=("data.workers", "data.max_bad_fraction"),
    later={"data.views": 1, "data.rare_every": 1},
    files=lambda c: [c.data.root, c.data.captions_file, c.data.splits],
    version=2,
)
