"""One plane of a DICOM or NIfTI file; pydicom and nibabel are optional and imported when such a file turns up."""

import contextlib
import gzip
import io
import logging
import math
from typing import Any, BinaryIO

import numpy as np

from vgjax.config import ConfigError
from vgjax.data.read.files import HEAD, MIN_SIDE, ImageError, check_size

MAX_VOLUME = 2**31  # bytes of one NIfTI volume
MAX_OFFSET = 2**24  # bytes before its first voxel
DEFLATED = b"1.2.840.10008.1.2.1.99"  # the DICOM transfer syntax that is inflated as a whole, however large
GZIP = b"\x1f\x8b"


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM, from its first 132 bytes."""
    return head[128:132] == b"DICM"


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins so is NIfTI in a single file, or gzipped and thus worth a closer look."""
    return head.startswith(GZIP) or head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def dicom_frame(stream: BinaryIO, head: bytes, name: str, max_pixels: int) -> tuple[np.ndarray, Any]:
    """The first frame as stored, (H, W) or (H, W, 3) for colour in RGB, and the pydicom Dataset.

    ConfigError where pydicom is not installed, ImageError for what it cannot use; on damage it raises much else.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError as error:
        raise ConfigError(f"reading the DICOM file '{name}' needs pydicom: pip install vgjax[dicom]") from error
    if DEFLATED in head:
        raise ImageError(name, "not supported", "a deflated DICOM file")
    dataset = pydicom.dcmread(stream)
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise ImageError(name, "not an image", "a DICOM file without pixels")
    check_size(name, int(dataset.Columns), int(dataset.Rows), max_pixels)
    try:
        values = pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError) as error:
        if "Unable to decompress" in str(error) or isinstance(error, NotImplementedError):
            raise ImageError(name, "not supported", f"compressed as {dataset.file_meta.TransferSyntaxUID}") from error
        raise
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    return values, dataset


def window_dicom(values: np.ndarray, dataset: Any, name: str) -> np.ndarray:
    """A grey frame as (H, W) uint8: rescaled, its first window or else its full range spread, MONOCHROME1 inverted."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(values, dataset)
    check_finite(values, name)
    black = white = math.nan
    with contextlib.suppress(ValueError, KeyError, AttributeError):  # a window of no width, or half of one
        black, white = apply_windowing(np.array([-np.inf, np.inf]), dataset)
    if 0 < abs(white - black) < math.inf:
        values = apply_windowing(values, dataset)
    else:
        values = apply_voi(values, dataset)
        black, white = values.min(), values.max()
    grey = spread(values, black, white)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def nifti_slice(stream: BinaryIO, head: bytes, name: str, max_pixels: int) -> np.ndarray:
    """The middle axial slice of the first volume, (H, W), rescaled: seen from the feet, front up, right side left.

    ConfigError where nibabel is not installed, ImageError for what it cannot use; on damage it raises much else.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ConfigError(f"reading the NIfTI file '{name}' needs nibabel: pip install vgjax[nifti]") from error
    if head.startswith(GZIP):
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
        head = stream.read(HEAD)
        if head.startswith(GZIP) or not is_nifti(head):
            raise ImageError(name, "not an image", "gzipped, but not NIfTI")
    kind, length = (nibabel.Nifti2Header, 540) if head[4:8] == b"n+2\0" else (nibabel.Nifti1Header, 348)
    # The header alone: extensions may be as long as they like to say.
    header = kind.from_fileobj(io.BytesIO(head[:length]), check=False)
    header.check_fix(logging.Logger("silent", logging.CRITICAL + 1))
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if dtype.kind not in "uif" or len(shape) < 2:
        raise ImageError(name, "not supported", f"values of type {dtype} in {len(shape)} dimensions")
    if not 0 <= header["vox_offset"] <= MAX_OFFSET or math.prod(shape[:3]) * dtype.itemsize > MAX_VOLUME:
        raise ImageError(name, "too large", f"{'x'.join(map(str, shape))} values of type {dtype}")
    if min(shape) < 1:
        raise ImageError(name, "too small", f"{'x'.join(map(str, shape))} voxels, each side needs {MIN_SIDE}")
    orientation = nibabel.io_orientation(header.get_best_affine())
    if not np.isfinite(orientation).all():  # a degenerate affine
        orientation = nibabel.io_orientation(np.eye(4))
    across, down, along = np.argsort(orientation[:, 0])  # the voxel axes left to right, back to front, foot to head
    shape = (*shape, 1)[: max(3, len(shape))]
    check_size(name, shape[across], shape[down], max_pixels)
    where = [slice(None)] * 3 + [0] * (len(shape) - 3)
    where[along] = slice(shape[along] // 2, shape[along] // 2 + 1)
    values = np.asarray(nibabel.arrayproxy.ArrayProxy(stream, header).reshape(shape)[tuple(where)])
    check_finite(values, name)
    return nibabel.apply_orientation(values, orientation)[::-1, ::-1, 0].T


def window_nifti(values: np.ndarray) -> np.ndarray:
    """1st..99th percentile onto 0..255; the full range where the two are equal."""
    low, high = np.percentile(values, (1, 99))
    return spread(values, low, high) if low < high else spread(values, values.min(), values.max())


def check_finite(values: np.ndarray, name: str) -> None:
    """ImageError where a value is infinite or not a number."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(name, "not finite", "some values are infinite or not a number")


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """low..high onto 0..255; all 0 where they are equal."""
    values, low, high = values.astype(np.float64), float(low), float(high)
    # Halves: the difference of two finite numbers may be infinite.
    unit = (values / 2 - low / 2) / (high / 2 - low / 2 or 1)
    return np.rint(unit.clip(0, 1) * 255).astype(np.uint8)
