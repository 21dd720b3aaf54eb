"""Kvasir-SEG (Jha et al., MMM 2020): endoscopy pictures of polyps with masks, in the layout of the published archive.

    root/images/<id>.jpg   RGB
    root/masks/<id>.jpg    0 and 255 with JPEG noise, hence the threshold

The dataset has no text: captions are written from attributes measured on mask and pixels (`vgjax.data.captions`), with
levels fitted to the training split alone. It has no official split either: each id falls into one by its own hash, so
that adding or losing a file moves no other. About one picture in a hundred has a near duplicate, which may fall into
another split.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vgjax.config import ConfigError
from vgjax.data import captions
from vgjax.types import Item

LABEL = "polyp"
MASK_THRESHOLD = 127  # 0..255

Skipped = list[tuple[str, str]]


def check(root: str) -> None:
    """Validates the layout without reading any picture.

    Raises:
      ConfigError: the folder is missing, has another layout, is empty, or a link leads out of it.
    """
    _layout(root)


def items(
    root: str, seed: int, test_fraction: float, validation_fraction: float, skipped: Skipped | None = None
) -> Iterator[Item]:
    """All pictures, sorted by id.

    Args:
      root: the folder that holds images/ and masks/.
      seed: of the split and of the captions' wording.
      test_fraction: expected share of the pictures, 0..1.
      validation_fraction: likewise.
      skipped: receives (path, reason) of each picture or mask that cannot be used; a warning counts them in any case.

    Raises:
      ConfigError: see `check`; or the fractions leave nothing to train on; or no picture can be used.
    """
    _check_fractions(test_fraction, validation_fraction)
    images, masks = _layout(root)
    return _items(root, images, masks, (seed, test_fraction, validation_fraction), [] if skipped is None else skipped)


def thresholds(root: str, seed: int, test_fraction: float, validation_fraction: float) -> dict[str, tuple[float, ...]]:
    """The caption thresholds that `items` uses with the same arguments; reads every picture once.

    Raises:
      ConfigError: as `items`.
    """
    _check_fractions(test_fraction, validation_fraction)
    images, masks = _layout(root)
    return _fit(root, _measure(images, masks, []), (seed, test_fraction, validation_fraction))


def split_of(item_id: str, seed: int, test_fraction: float, validation_fraction: float) -> str:
    """The split an id falls into: its hash is a uniform number in 0..1, cut at the fractions."""
    uniform = _hash(f"split:{seed}:{item_id}") / 2**64
    if uniform < test_fraction:
        return "test"
    return "validation" if uniform < test_fraction + validation_fraction else "train"


def _items(
    root: str,
    images: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    split: tuple[int, float, float],
    skipped: Skipped,
) -> Iterator[Item]:
    # Two passes, because levels need the thresholds of the whole training split before the first caption; reading twice
    # is cheaper than holding a thousand pictures.
    attributes = _measure(images, masks, skipped)
    bounds = _fit(root, attributes, split)
    for item_id, measured in attributes.items():
        levels = captions.attribute_levels(measured, bounds)
        rng = np.random.default_rng(_hash(f"caption:{split[0]}:{item_id}"))
        said = captions.choose_said(levels, rng)
        image, mask = _read(images[item_id], masks[item_id])
        yield Item(
            id=item_id,
            split=split_of(item_id, *split),
            image=image,
            mask=mask,
            caption=captions.describe(levels, rng, said),
            label=LABEL,
            factors=levels,
            said=said,
        )


def _measure(
    images: dict[str, pathlib.Path], masks: dict[str, pathlib.Path], skipped: Skipped
) -> dict[str, dict[str, float]]:
    """Attributes of each usable picture by id; what is unusable goes to `skipped` and is counted in a warning."""
    found: Skipped = [(str(masks[name]), "mask without image") for name in sorted(masks.keys() - images.keys())]
    attributes = {}
    for item_id, path in images.items():
        if item_id not in masks:
            found.append((str(path), "image without mask"))
            continue
        try:
            attributes[item_id] = captions.measure_attributes(*_read(path, masks[item_id]))
        # Pillow reports damaged files by any of these, depending on where the damage lies.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            found.append((str(path), str(error)))
    if found:
        logging.warning("%d files of Kvasir-SEG left out, the first: %s: %s", len(found), *found[0])
    skipped += found
    return attributes


def _fit(
    root: str, attributes: dict[str, dict[str, float]], split: tuple[int, float, float]
) -> dict[str, tuple[float, ...]]:
    training = [measured for item_id, measured in attributes.items() if split_of(item_id, *split) == "train"]
    if not training:
        raise ConfigError(
            f"config key 'data.root': of the {len(attributes)} usable pictures in '{root}' none falls into the training"
            " split: give a fuller folder or lower data.test_fraction"
        )
    return captions.fit_thresholds(training)


def _read(image_path: pathlib.Path, mask_path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and mask (H, W) uint8 of 0 and 1.

    Raises:
      OSError, SyntaxError, Image.DecompressionBombError: a file is unreadable.
      ValueError: the two differ in size.
    """
    with Image.open(image_path) as file:
        image = np.asarray(file.convert("RGB"))
    with Image.open(mask_path) as file:
        mask = np.asarray(file.convert("L"))
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise ValueError(f"image is {width}x{height} but its mask is {mask_width}x{mask_height}")
    return image, (mask > MASK_THRESHOLD).astype(np.uint8)


def _layout(root: str) -> tuple[dict[str, pathlib.Path], dict[str, pathlib.Path]]:
    """Image and mask files by id, sorted by id."""
    if not root:
        raise ConfigError("config key 'data.root' is empty: name the folder that holds images/ and masks/")
    base = pathlib.Path(root)
    if not base.is_dir():
        raise ConfigError(
            f"config key 'data.root': no folder '{root}': unpack Kvasir-SEG and name the folder inside it"
        )
    absent = [name for name in ("images", "masks") if not (base / name).is_dir()]
    if absent:
        # The archive unpacks into a folder of its own; naming the one above is the likeliest slip.
        inner = next((path for path in sorted(base.iterdir()) if (path / "images").is_dir()), None)
        remedy = f"did you mean '{inner}'?" if inner else "name the folder that holds images/ and masks/"
        raise ConfigError(f"config key 'data.root': folder '{root}' has no {' and no '.join(absent)} folder: {remedy}")
    return _jpegs(base, "images"), _jpegs(base, "masks")


def _jpegs(base: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
    home = base.resolve()
    folder = base / name
    with os.scandir(folder) as entries:
        paths = sorted(pathlib.Path(entry.path) for entry in entries if entry.name.lower().endswith(".jpg"))
    if not paths:
        raise ConfigError(f"config key 'data.root': folder '{folder}' holds no .jpg file: unpack Kvasir-SEG again")
    for path in (folder, *paths):
        if not path.resolve().is_relative_to(home):
            raise ConfigError(f"config key 'data.root': '{path}' links out of '{base}': replace it by the file itself")
    return {path.stem: path for path in paths}


def _check_fractions(test_fraction: float, validation_fraction: float) -> None:
    if min(test_fraction, validation_fraction) < 0 or test_fraction + validation_fraction >= 1:
        raise ConfigError(
            f"config keys 'data.test_fraction' and 'data.validation_fraction' are {test_fraction} and"
            f" {validation_fraction}: both must be at least 0 and their sum below 1"
        )


def _hash(text: str) -> int:
    """A number in 0..2**64 - 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
