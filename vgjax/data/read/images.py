"""One picture or mask from disk, whatever is in the file: an array of the promised kind, or an `ImageError`.

    JPEG, PNG, BMP, GIF, TIFF, WebP   by their first bytes, never by name; of several frames the first
    DICOM                             first frame; needs the extra vgjax[dicom]
    NIfTI, plain or gzipped           middle axial slice of the first volume; needs the extra vgjax[nifti]

What becomes of values that are not 8-bit RGB:

    alpha                    dropped: the colours stay as they are stored
    grey                     repeated three times
    palette, CMYK, YCCK, LAB converted to RGB
    16-bit colour            upper 8 bits
    integers above 8 bits    divided by 257 if any exceeds 4095, by 4095 / 255 if any exceeds 255, else as they are, so
                             that pictures of one scanner keep their common scale
    floats, integers below 0 or above 65535
                             from minimum..maximum
    DICOM                    the first window; without one the VOI lookup table, if any, then minimum..maximum of the
                             frame; MONOCHROME1 inverted
    NIfTI                    1st..99th percentile of the slice; seen from the feet, front up

A picture is turned by its EXIF orientation. A mask is not (except a TIFF, where the tag is part of the format): tools
that draw masks do not copy EXIF.
"""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vgjax.data.entries import RunLengths
from vgjax.data.read import volumes
from vgjax.data.read.files import MIN_SIDE, ImageError, check_size, opened, words

MAX_PIXELS = 64_000_000

# Nothing else is tried: among Pillow's other readers are some that start programs or follow paths in the file.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
LOSSY = ("JPEG", "MPO", "WEBP")
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: np.ndarray  # (H, W, 3) uint8; read-only where that saves a copy
    full_size: tuple[int, int]  # (H, W) of the file, larger than `pixels` where a JPEG was decoded at a reduced scale


def read_image(
    path: str | pathlib.Path, root: str | pathlib.Path, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> Picture:
    """Decodes one picture; links are followed as long as they stay within the root, outside of which nothing is opened.

    Args:
      max_pixels: larger pictures are refused by their header; above 178 million Pillow's own limit holds.
      min_side: what the picture will be reduced to, shorter side in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8
        while twice that remains, which costs a fraction of the time.

    Raises:
      ImageError: for whatever is wrong with the file.
      ConfigError: it is DICOM or NIfTI and the reader for it is not installed.
    """
    name = str(path)
    with opened(path, root) as (stream, head):
        if volumes.is_dicom(head):
            values, dataset = volumes.dicom_frame(stream, head, name, max_pixels)
            grey = volumes.window_dicom(values, dataset, name) if values.ndim == 2 else _eight_bits(values, name)
            return Picture(_rgb(grey), (values.shape[0], values.shape[1]))
        if volumes.is_nifti(head):
            values = volumes.nifti_slice(stream, head, name, max_pixels)
            return Picture(_rgb(volumes.window_nifti(values)), (values.shape[0], values.shape[1]))
        file = _pillow(stream, head, name, max_pixels)
        width, height = file.size
        if min_side is not None:
            file.draft(file.mode, (2 * min_side, 2 * min_side))
        upright, lying = _upright(file)
        return Picture(_rgb(_eight_bits(_values(upright), name)), (width, height) if lying else (height, width))


def read_mask(
    masks: Sequence[str | pathlib.Path | RunLengths],
    root: str | pathlib.Path,
    shape: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    full_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The union of masks, (H, W) uint8 of 0 and 1; none at all give an empty mask.

    A pixel is inside where

        JPEG, WebP            the largest channel is above 127
        colour                it is not black (labels are told apart by colour)
        few, distant levels   it is not 0: 0 and 1, 0 and 255, 0 128 255 and other labels at least an eighth apart
        all in the lower half it is not 0: labels 0 1 2 3 ...
        else                  it is above half of what its depth can hold: an edge that was smoothed

    Args:
      masks: files, or run lengths.
      root, max_pixels: as for pictures.
      shape: (H, W) of the result, to which masks are resampled, nearest neighbour.
      full_size: (H, W) of the picture's file, whose aspect ratio a mask must have within 1 %; by default `shape`. That
        of a picture decoded at a reduced scale is rounded, which in a small one is more than 1 %.

    Raises:
      ImageError: a mask cannot be used, or is of another size.
      ConfigError: as `read_image`.
    """
    union = np.zeros(shape, bool)
    for mask in masks:
        if isinstance(mask, RunLengths):
            name, inside = "run lengths", _runs(mask, max_pixels)
        else:
            with opened(mask, root) as (stream, head):
                name, inside = str(mask), _mask_file(stream, head, str(mask), max_pixels)
        union |= _fitted(inside, shape, full_size or shape, name)
    return union.astype(np.uint8)


def _pillow(stream: BinaryIO, head: bytes, name: str, max_pixels: int) -> Image.Image:
    """The file with its header read and checked, pixels not yet decoded."""
    try:
        file = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        if head.startswith(MAGIC):
            raise ImageError(name, "damaged", "the header cannot be read") from error
        raise ImageError(name, "not an image", f"its first bytes are {head[:8]!r}") from error
    check_size(name, file.width, file.height, max_pixels)
    if file.format == "PNG":
        file.verify()  # checksums of the pixels, which decoding ignores
        stream.seek(0)
        file = Image.open(stream, formats=FORMATS)
    tags = getattr(file, "tag_v2", {})
    # A tile is decoded whole, even where the picture is smaller.
    tile_width, tile_length = (max(tags.get(tag, 0), MIN_SIDE) for tag in (TILE_WIDTH, TILE_LENGTH))
    check_size(name, tile_width, tile_length, max_pixels)
    return file


def _values(file: Image.Image) -> np.ndarray:
    """(H, W) of a grey picture, as deep as it is stored; else (H, W, 3) uint8."""
    file.load()
    if file.mode.startswith(("I", "F")):
        return np.asarray(file)
    return np.asarray(file.convert("L" if file.mode in ("1", "L", "LA") else "RGB"))


def _upright(file: Image.Image) -> tuple[Image.Image, bool]:
    """The picture turned by its EXIF orientation, and whether it was lying: rows and columns have changed places."""
    file.load()
    with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        lying = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return ImageOps.exif_transpose(file), lying
    return file, False


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Any values as uint8, by the rules at the top of this file."""
    if values.dtype == np.uint8:
        return values
    volumes.check_finite(values, name)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        return volumes.spread(values, low, high)
    divisor = 257 if high > 4095 else 4095 / 255 if high > 255 else 1
    return np.rint(values / np.float32(divisor)).astype(np.uint8)


def _rgb(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values if values.ndim == 3 else np.repeat(values[..., None], 3, 2))


def _mask_file(stream: BinaryIO, head: bytes, name: str, max_pixels: int) -> np.ndarray:
    """(H, W) bool."""
    if volumes.is_dicom(head):
        values = volumes.dicom_frame(stream, head, name, max_pixels)[0]
    elif volumes.is_nifti(head):
        values = volumes.nifti_slice(stream, head, name, max_pixels)
    else:
        file = _pillow(stream, head, name, max_pixels)
        lossy = file.format in LOSSY or file.info.get("compression") == "jpeg"
        values = _values(file)
        if lossy and values.dtype == np.uint8:
            return _brightest(values) > 127
    volumes.check_finite(values, name)
    brightest = _brightest(values)
    if values.ndim == 3 and np.any(brightest - _brightest(values, np.minimum) > 32):
        return brightest > 0
    return _inside(brightest)


def _brightest(values: np.ndarray, among: np.ufunc = np.maximum) -> np.ndarray:
    """The largest channel (or what else among them); by pairs, which is far faster than along so short an axis."""
    return among(among(values[..., 0], values[..., 1]), values[..., 2]) if values.ndim == 3 else values


def _inside(values: np.ndarray) -> np.ndarray:
    """Which grey levels of a lossless mask are inside; see `read_mask`."""
    values = values.clip(0)
    top = values.max()
    possible = next((limit for limit in (1, 255, 4095, 65535) if top <= limit), top)
    whole = values.dtype.kind != "f" or np.array_equal(values, np.rint(values))
    gap = np.diff(np.unique(values).astype(np.float64)).min(initial=possible)
    if (whole and top <= possible / 2) or gap >= possible / 8:
        return values > 0
    return values > possible / 2


def _runs(runs: RunLengths, max_pixels: int) -> np.ndarray:
    """(H, W) bool of run lengths: starts count from 1, rows come one after another."""
    check_size("run lengths", runs.width, runs.height, max_pixels)
    pixels = runs.height * runs.width
    try:
        numbers = np.array(runs.text.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise ImageError("run lengths", "malformed run lengths", words(error)) from error
    if len(numbers) % 2:
        raise ImageError("run lengths", "malformed run lengths", f"{len(numbers)} numbers, which are no pairs")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    if np.any((starts < 0) | (starts >= pixels) | (lengths < 1) | (lengths > pixels - starts)):
        raise ImageError("run lengths", "malformed run lengths", f"a run leaves the {pixels} pixels")
    steps = np.zeros(pixels + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (np.cumsum(steps[:-1]) > 0).reshape(runs.height, runs.width)


def _fitted(mask: np.ndarray, shape: tuple[int, int], full_size: tuple[int, int], name: str) -> np.ndarray:
    """The mask at another shape, where it has the aspect ratio of the full size."""
    height, width = full_size
    if not 1 / 1.01 <= (mask.shape[1] * height) / (mask.shape[0] * width) <= 1.01:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} for a picture of {width}x{height}"
        raise ImageError(name, "mask of another size", sizes)
    if mask.shape == shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))
