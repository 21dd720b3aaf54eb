"""Source pictures -> records: resize, encode, embed captions. Everything after this reads records only."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from vgjax.config import Config, ConfigError
from vgjax.data import records
from vgjax.data.sources import kvasir_seg, phantom
from vgjax.text import load_text_encoder
from vgjax.types import SPLITS, Item

EMBED_BATCH = 256
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def check(config: Config) -> None:
    """Raises ConfigError where the source cannot be read; looks at the layout only."""
    if config.data.source == "kvasir_seg":
        kvasir_seg.check(config.data.root)
    load_text_encoder(config.text_encoder)


def _items(config: Config, skipped: list[tuple[str, str]]) -> Iterator[Item]:
    c = config.data
    if c.source == "kvasir_seg":
        yield from kvasir_seg.items(c.root, config.seed, c.test_fraction, c.validation_fraction, skipped)
        return
    for split in SPLITS:
        yield from phantom.items(split, getattr(c, f"{split}_items"), config.seed, c.image_size)


def resize(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The centre square of image and mask, (size, size); captions are measured on the same square."""
    side = min(mask.shape)
    top, left = ((length - side) // 2 for length in mask.shape)
    image, mask = (a[top : top + side, left : left + side] for a in (image, mask))
    if side == size:
        return image, mask
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    coverage = Image.fromarray(mask * 255).resize((size, size), Image.Resampling.BOX)
    return np.asarray(small), (np.asarray(coverage) > 127).astype(np.uint8)


def prepare(config: Config, folder: pathlib.Path) -> dict[str, int]:
    """Writes images-, text-{split}.array_record and manifest.json into `folder`; a finished folder is left alone.

    Returns:
      How many pictures each split has.
    """
    manifest = folder / "manifest.json"
    if manifest.exists():
        logging.info("records: prepared before, skipped")
        return json.loads(manifest.read_text())["counts"]
    skipped: list[tuple[str, str]] = []
    by_split: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in tqdm(_items(config, skipped), desc="reading pictures", unit="image", mininterval=1.0):
        image, mask = resize(item.image, item.mask, config.data.image_size)
        by_split[item.split].append(_controlled(item, image, mask, config))
    _check_mirroring(config, by_split)
    if config.data.shuffle_captions:
        by_split = {split: _shuffled(items, config.seed) for split, items in by_split.items()}
    counts = {split: _write(split, items, config, folder) for split, items in by_split.items()}
    content = {
        "counts": counts,
        "skipped": skipped,
        "sha256": {p.name: _hash(p) for p in sorted(folder.glob("*.array_record"))},
    }
    if config.data.source == "kvasir_seg":
        c = config.data
        content["thresholds"] = kvasir_seg.thresholds(c.root, config.seed, c.test_fraction, c.validation_fraction)
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(manifest)
    return counts


def _check_mirroring(config: Config, by_split: dict[str, list[Item]]) -> None:
    """A mirrored picture would contradict a caption that tells the sides apart; ConfigError."""
    captions = [item.caption for split in ("train", "validation") for item in by_split[split]]
    sided = sum(bool(SIDES.search(caption)) for caption in captions)
    if config.fusion.flip and sided:
        raise ConfigError(
            f"config key 'fusion.flip' is True, but {sided} of {len(captions)} captions say left or right: set it to"
            " False"
        )


def _controlled(item: Item, image: np.ndarray, mask: np.ndarray, config: Config) -> Item:
    """The item at its final size, its ground truth replaced by noise where the control experiment asks for it."""
    factors, label = item.factors, item.label
    if config.data.noise_factors:
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:8]))
        factors, label = {name: str(rng.integers(100)) for name in factors}, str(rng.integers(100))
    return Item(item.id, item.split, image, mask, item.caption, label, factors, item.said)


def _shuffled(items: list[Item], seed: int) -> list[Item]:
    """Captions permuted in training and validation; test keeps its own, which say what is wanted."""
    if not items or items[0].split == "test":
        return items
    order = np.random.default_rng(seed).permutation(len(items))
    texts = [items[i].caption for i in order]
    return [
        Item(i.id, i.split, i.image, i.mask, text, i.label, i.factors, i.said)
        for i, text in zip(items, texts, strict=True)
    ]


def _write(split: str, items: list[Item], config: Config, folder: pathlib.Path) -> int:
    encoder = load_text_encoder(config.text_encoder)
    rows = (
        {
            "id": item.id,
            "image": records.to_png(item.image),
            "mask": records.to_png(item.mask),
            "caption": item.caption,
            "label": item.label,
            "factors": item.factors,
            "said": list(item.said),
        }
        for item in items
    )
    count = records.write(folder / f"images-{split}.array_record", rows)
    chunks = (items[i : i + EMBED_BATCH] for i in range(0, len(items), EMBED_BATCH))
    embeddings = (row for chunk in chunks for row in encoder([item.caption for item in chunk]))
    records.write(folder / f"text-{split}.array_record", ({"embedding": row.astype(np.float16)} for row in embeddings))
    return count


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
