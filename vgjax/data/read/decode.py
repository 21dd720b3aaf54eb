"""One picture decoded, squared and measured: what worker processes do, so nothing heavy is imported here."""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vgjax.data.caption import measure as captions
from vgjax.data.caption.words import Vocabulary
from vgjax.data.entries import Entry, Skip
from vgjax.data.prepare import duplicates
from vgjax.data.prepare.splits import number
from vgjax.data.read.images import ImageError, read_image, read_mask

CROP = 0.8  # least share of each side that a cropped view keeps
MASK_SIDE_THRESHOLD = 127  # a pixel of the smaller mask is inside where half of what it covers is


@dataclasses.dataclass(frozen=True)
class Settings:
    """How pictures become records."""

    root: str  # no file outside it is read
    image_size: int  # pixels a side of the result
    aspect: str  # crop (the centre square), pad (black bars) or stretch
    max_pixels: int  # larger pictures are refused unread
    vocabulary: Vocabulary  # of masks and pixels; without words for an empty mask, such pictures are skipped
    symmetries: int = 1  # 1: none, 2: left-right, 8: left-right and quarter turns


def square(image: np.ndarray, mask: np.ndarray, size: int, aspect: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 image and (H, W) mask of 0 and 1 at `size` pixels a side; `aspect` is that of `Settings`."""
    height, width = mask.shape
    if aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image, mask = (a[top : top + side, left : left + side] for a in (image, mask))
    elif aspect == "pad":
        side = max(height, width)
        around = [((side - n) // 2, side - n - (side - n) // 2) for n in (height, width)]
        image, mask = np.pad(image, [*around, (0, 0)]), np.pad(mask, around)
    if mask.shape == (size, size):
        return image, mask
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    coverage = Image.fromarray(mask * 255).resize((size, size), Image.Resampling.BOX)
    return np.asarray(small), (np.asarray(coverage) > MASK_SIDE_THRESHOLD).astype(np.uint8)


def cropped(name: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """One window of arrays (H, W, ...), `CROP` to all of each side, wherever in the picture the name says."""
    height, width = arrays[0].shape[:2]
    scale, down, right = np.random.default_rng(number(f"crop:{name}")).uniform((CROP, 0, 0), 1)
    h, w = (max(1, round(scale * n)) for n in (height, width))
    top, left = round(down * (height - h)), round(right * (width - w))
    return [a[top : top + h, left : left + w] for a in arrays]


def symmetric(a: np.ndarray, element: int) -> np.ndarray:
    """A square array (n, n, ...) under one of the eight symmetries: quarter turns, odd ones mirrored besides."""
    turned = np.rot90(a, element // 2)
    return np.ascontiguousarray(turned[:, ::-1] if element % 2 else turned)


def viewed(image: np.ndarray, mask: np.ndarray, entry: Entry, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The square of a view: first come the symmetries, of which 0 changes nothing, then those of crops of the whole."""
    if entry.view >= settings.symmetries:
        image, mask = cropped(entry.id, image, mask)
    image, mask = square(image, mask, settings.image_size, settings.aspect)
    element = entry.view % settings.symmetries
    return symmetric(image, element), symmetric(mask, element)


def to_png(pixels: np.ndarray) -> bytes:
    """Encodes (H, W) or (H, W, 3) uint8 pixels without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode(entry: Entry, settings: Settings) -> dict[str, Any] | Skip:
    """The picture's row (image and mask as PNG, hashes, measured attributes), or why there is none."""
    root = pathlib.Path(settings.root)
    where = str(entry.image.relative_to(root)) if entry.image.is_relative_to(root) else str(entry.image)
    try:
        hint = settings.image_size if settings.aspect != "pad" else None
        picture = read_image(entry.image, root, settings.max_pixels, min_side=hint)
        mask = read_mask(entry.masks, root, picture.pixels.shape[:2], settings.max_pixels, picture.full_size)
    except ImageError as error:
        return Skip(where, error.reason, error.detail)
    image, mask = viewed(picture.pixels, mask, entry, settings)
    try:
        attributes = captions.measure_attributes(image, mask, settings.vocabulary)
    except ValueError as error:
        return Skip(where, "empty mask", str(error))
    thumb = duplicates.thumbnail(image)
    return {
        "id": entry.id,
        "image": to_png(image),
        "mask": to_png(mask),
        "sha256": duplicates.pixel_hash(image),
        "hash": duplicates.perceptual_hash(thumb),
        "thumb": thumb.tobytes(),
        "attributes": attributes,
    }
