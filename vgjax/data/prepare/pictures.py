"""Source pictures -> records: decode, group, split, caption, embed. Everything after this reads records only.

index (names and tables) -> parts (decoded in parallel, resumable) -> groups -> splits -> captions
-> <source>/<version> (tfds, ArrayRecord), text-<split>.array_record, splits/, manifest.json, prepare_report.json
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vgjax.config import Config, ConfigError
from vgjax.data import records
from vgjax.data.caption.measure import SIDED
from vgjax.data.entries import Plan
from vgjax.data.prepare import builder
from vgjax.data.prepare.splits import number
from vgjax.data.records import write_json
from vgjax.data.sources import SOURCES
from vgjax.text import load_text_encoder
from vgjax.types import SPLITS

EMBED_BATCH = 256
DAMAGED = "damaged.json"
LIBRARIES = ("array-record", "numpy", "pillow", "scikit-image", "tensorflow-datasets")


def check(config: Config) -> None:
    """Raises ConfigError where the source or the text encoder cannot be read; looks at the layout only."""
    SOURCES[config.data.source].check(config.data.root)
    load_text_encoder(config.text_encoder)


def prepare(config: Config, folder: pathlib.Path) -> dict[str, int]:
    """Writes the pictures' records, their texts' embeddings, manifest.json and prepare_report.json into `folder`.

    A finished folder is left alone, and a stopped preparation goes on with the chunks that are not decoded yet.

    Returns:
      How many pictures each split has.

    Raises:
      ConfigError: nothing usable, too many damaged files, or captions that contradict mirroring.
    """
    manifest = folder / "manifest.json"
    if manifest.exists():
        logging.info("records: prepared before, skipped")
        return json.loads(manifest.read_text())["counts"]
    folder.mkdir(parents=True, exist_ok=True)
    made = SOURCES[config.data.source].plan(config, folder)
    _check_mirroring(config, made)
    if config.data.shuffle_captions:
        _shuffle(made, config.seed)
    builder.write(folder, config.data.source, {split: _rows(made, split, config) for split in SPLITS})
    _embed(made, config, folder)
    counts = {split: len(made.rows[split]) for split in SPLITS}
    write_json(folder / "prepare_report.json", _report(made, counts))
    content = {
        "counts": counts,
        "skipped": len(made.skipped),
        "thresholds": made.thresholds,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "config": json.loads(config.to_json()),
        "sha256": {str(p.relative_to(folder)): _hash(p) for p in sorted(folder.rglob("*.array_record*"))},
    }
    write_json(manifest, content)
    made.clean()
    return counts


def verify(config: Config, folder: pathlib.Path) -> dict[str, list[int]]:
    """Reads every record once and notes the damaged ones, which then are left out.

    Returns:
      Split -> rows that cannot be read.

    Raises:
      ConfigError: a file is missing or cut short.
    """
    found = {}
    for split in SPLITS:
        pictures = records.unreadable(builder.shards(folder, config.data.source, split))
        texts = records.unreadable([folder / f"text-{split}.array_record"])
        found[split] = sorted({*pictures, *texts})
        if found[split]:
            logging.warning("%d damaged records of split %s are left out: %s", len(found[split]), split, found[split])
    if not (folder / DAMAGED).exists() or damaged(folder) != found:
        write_json(folder / DAMAGED, found)
    return found


def damaged(folder: pathlib.Path) -> dict[str, list[int]]:
    """What the latest `verify` found."""
    return json.loads((folder / DAMAGED).read_text())


def _check_mirroring(config: Config, made: Plan) -> None:
    """A mirrored picture would contradict a caption that tells the sides apart; ConfigError."""
    captions = [row["caption"] for split in ("train", "validation") for row in made.rows[split].values()]
    sided = sum(bool(SIDED.search(caption)) for caption in captions)
    if config.denoiser.flip and sided:
        raise ConfigError(
            f"config key 'denoiser.flip' is True, but {sided} of {len(captions)} captions say left or right: set it to"
            " False"
        )


def _shuffle(made: Plan, seed: int) -> None:
    """Captions permuted in training and validation; test keeps its own, which say what is wanted."""
    for split in ("train", "validation"):
        rows = list(made.rows[split].values())
        texts = [row["caption"] for row in rows]
        for row, other in zip(rows, np.random.default_rng(seed).permutation(len(rows)), strict=True):
            row["caption"] = texts[other]


def _rows(made: Plan, split: str, config: Config) -> Iterator[dict[str, Any]]:
    """What is written of a split; its ground truth is replaced by noise where the control experiment asks for it."""
    wanted = made.rows[split]
    for item_id, image, mask in made.pictures():
        if item_id in wanted:
            row = {**wanted[item_id], "id": item_id, "image": image, "mask": mask}
            if config.data.noise_factors:
                rng = np.random.default_rng(number(item_id))
                row["factors"] = {name: str(rng.integers(100)) for name in row["factors"]}
                row["label"] = str(rng.integers(100))
            yield row


def _embed(made: Plan, config: Config, folder: pathlib.Path) -> None:
    """Embeds the captions in the order of the pictures."""
    encoder = load_text_encoder(config.text_encoder)
    for split in SPLITS:
        texts = [row["caption"] for row in made.rows[split].values()]
        chunks = (texts[i : i + EMBED_BATCH] for i in range(0, len(texts), EMBED_BATCH))
        embeddings: Iterable[np.ndarray] = (row for chunk in chunks for row in encoder(chunk))
        rows = ({"embedding": row.astype(np.float16)} for row in embeddings)
        records.write(folder / f"text-{split}.array_record", rows)


def _report(made: Plan, counts: dict[str, int]) -> dict[str, Any]:
    """Where every picture of the source went."""
    labels = {split: dict(sorted(Counter(r["label"] for r in made.rows[split].values()).items())) for split in SPLITS}
    return {
        "present": made.present,
        "used": sum(counts.values()),
        "skipped_pictures": sum(skip.picture for skip in made.skipped),
        "skipped_by_reason": dict(Counter(skip.reason for skip in made.skipped).most_common()),
        "counts": counts,
        "labels": labels,
        "groups": made.groups,
        "torn": list(made.torn),
        "leaks": made.leaks,
        "skipped": [skip._asdict() for skip in made.skipped],
    }


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
