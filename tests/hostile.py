"""Files that a decoder has to survive: pictures in every form, and what only looks like one.

`make` writes them into a folder that serves as the root of a dataset, and one picture beside it, which nothing may
open. tests/test_images.py says what must come out of each.
"""

import gzip
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 24, 40
PALETTE = [[10, 20, 30], [200, 90, 0]]
JPEG_BASELINE, JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80"


def colours() -> np.ndarray:
    """(24, 40, 3) uint8: red grows to the right, green downwards, blue stays at 60; no symmetry."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns * 6, rows * 10, np.full((HEIGHT, WIDTH), 60)], -1).astype(np.uint8)


def greys() -> np.ndarray:
    """(24, 40) uint8, from 0 to 234, growing to the right."""
    return np.tile(np.arange(WIDTH, dtype=np.uint8) * 6, (HEIGHT, 1))


def disc() -> np.ndarray:
    """(24, 40) bool, off the centre."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - 9) ** 2 + (columns - 14) ** 2 < 49


def encoded(image: np.ndarray | Image.Image, form: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG by hand, for what no library writes; `rows` is raw, a filter byte before each row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def indexed(values: np.ndarray, palette: list[list[int]]) -> Image.Image:
    """A picture of palette indices."""
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.ravel(palette).tolist())
    return image


def run_lengths(mask: np.ndarray) -> str:
    """A mask's runs: starts count from 1, rows come one after another."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8).ravel(), [0]])))
    return " ".join(f"{start + 1} {end - start}" for start, end in steps.reshape(-1, 2))


def dicom(pixels: np.ndarray, frames: int = 1, syntax: str = "", frame: bytes = b"", **fields: Any) -> bytes:
    """A DICOM file of (H, W) or (H, W, 3) pixels, or (F, H, W) where there are frames.

    Args:
      pixels: unsigned or signed.
      frames: how many.
      syntax: transfer syntax of `frame`; uncompressed without.
      frame: compressed pixels, in place of `pixels`.
      fields: further elements; None removes one.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    colour = pixels.ndim == 3 and frames == 1
    dataset.Rows, dataset.Columns = pixels.shape[1:] if frames > 1 else pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = encapsulate([frame]) if syntax else pixels.tobytes()
    for name, value in fields.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def nifti(voxels: np.ndarray, affine: np.ndarray | None = None, version: int = 1) -> bytes:
    """A NIfTI file; without affine the axes run to the right, front and head."""
    import nibabel

    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    return kind(voxels, np.eye(4) if affine is None else affine).to_bytes()


def volume() -> np.ndarray:
    """(40, 24, 5) int16, axes to the right, front and head: slice 2 is `greys` seen from the feet, others are noise."""
    voxels = np.random.default_rng(0).integers(0, 999, (WIDTH, HEIGHT, 5)).astype(np.int16)
    voxels[:, :, 2] = greys()[::-1, ::-1].T
    return voxels


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """The bytes with some replaced."""
    return data[:offset] + new + data[offset + len(new) :]


def tiff_header(width: int, height: int, tile: int = 0) -> bytes:
    """A TIFF of 8-bit greys that promises more than it holds."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, 8)] if tile else [(273, 8), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def lookup(values: np.ndarray) -> Any:
    """The item of a VOI LUT sequence that maps 0, 1, ... to these values."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), 0, 16])
    item.add_new("LUTData", "US", values.tolist())
    return item


def pictures() -> dict[str, bytes]:
    """What has to be decoded."""
    rgb, grey, shift = colours(), greys(), greys()[:, ::-1].copy()
    first, second = Image.fromarray(grey), Image.fromarray(shift)
    alpha = np.where(disc(), 255, 0).astype(np.uint8)
    rotated, mirrored = Image.Exif(), Image.Exif()
    rotated[274], mirrored[274] = 6, 2
    deep = rgb.astype(">u2") * 257
    frames = {"save_all": True, "append_images": [second]}
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(Image.fromarray(rgb), srgb, lab, outputMode="LAB")
    assert in_lab is not None
    return {
        "grey.png": encoded(grey, "PNG"),
        "one_bit.png": encoded(Image.fromarray(disc()), "PNG"),
        "sixteen_bit.png": encoded(grey.astype(np.uint16) * 257, "PNG"),
        "twelve_bit.png": encoded(np.rint(grey * (4095 / 255)).astype(np.uint16), "PNG"),
        "eight_of_sixteen_bit.png": encoded(grey.astype(np.uint16), "PNG"),
        "sixteen_bit_colour.png": png(WIDTH, HEIGHT, 16, 2, b"".join(b"\0" + row.tobytes() for row in deep)),
        "palette.png": encoded(Image.fromarray(grey).convert("P"), "PNG"),
        "palette_transparent.png": encoded(Image.fromarray(grey).convert("P"), "PNG", transparency=bytes(range(200))),
        "colour_palette.png": encoded(indexed(disc(), PALETTE), "PNG"),
        "grey_alpha.png": encoded(Image.merge("LA", [first, Image.fromarray(alpha)]), "PNG"),
        "rgba.png": encoded(np.dstack([rgb, alpha]), "PNG"),
        "animated.png": encoded(first, "PNG", **frames),
        "mirrored.png": encoded(Image.fromarray(rgb), "PNG", exif=mirrored),
        "long_text.png": png(
            WIDTH, HEIGHT, 8, 0, b"".join(b"\0" + row.tobytes() for row in grey), chunk(b"tEXt", b"k\0" + b"x" * 10**6)
        ),
        "trailing.png": encoded(grey, "PNG") + b"and more" * 100,
        "smallest.png": encoded(grey[:8, :8], "PNG"),
        "constant.png": encoded(np.full((HEIGHT, WIDTH, 3), 77, np.uint8), "PNG"),
        "png_inside.jpg": encoded(rgb, "PNG"),
        "colour.jpg": encoded(rgb, "JPEG", quality=95, subsampling=0),
        "grey.jpg": encoded(grey, "JPEG", quality=95),
        "progressive.jpg": encoded(rgb, "JPEG", quality=95, subsampling=0, progressive=True),
        "cmyk.jpg": encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95),
        "rotated.jpg": encoded(Image.fromarray(rgb), "JPEG", quality=95, subsampling=0, exif=rotated),
        "damaged_exif.jpg": encoded(rgb, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "jpeg_inside.png": encoded(rgb, "JPEG", quality=95, subsampling=0),
        "colour.bmp": encoded(rgb, "BMP"),
        "one_bit.bmp": encoded(Image.fromarray(disc()), "BMP"),
        "animated.gif": encoded(first, "GIF", **frames),
        "animated.webp": encoded(first.convert("RGB"), "WEBP", lossless=True, **frames),
        "pages.tif": encoded(first, "TIFF", **frames),
        "rotated.tif": encoded(Image.fromarray(rgb), "TIFF", tiffinfo={274: 6}),
        "rotated_lzw.tif": encoded(Image.fromarray(rgb), "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
        "sixteen_bit.tif": encoded(grey.astype(np.uint16) * 257, "TIFF"),
        "negative.tif": encoded(grey.astype(np.int32) * 10 - 1000, "TIFF"),
        "float.tif": encoded(grey.astype(np.float32) / 1e3 - 0.1, "TIFF"),
        "wide_float.tif": encoded(np.where(disc(), 3e38, -3e38).astype(np.float32), "TIFF"),
        "lab.tif": encoded(in_lab, "TIFF"),
        "a name (1).png": encoded(grey, "PNG"),
        "line\nbreak.png": encoded(grey, "PNG"),
        os.fsdecode(b"no text \xff.png"): encoded(grey, "PNG"),
        "window.dcm": dicom((grey.astype(np.int16) - 100) * 4, WindowCenter=[0, 9], WindowWidth=[401, 9]),
        "sigmoid.dcm": dicom(grey, WindowCenter=117, WindowWidth=80, VOILUTFunction="SIGMOID"),
        "exact.dcm": dicom(grey, WindowCenter=100, WindowWidth=100, VOILUTFunction="LINEAR_EXACT"),
        "window_of_zero.dcm": dicom(grey, WindowCenter=100, WindowWidth=0),
        "full_range.dcm": dicom(grey.astype(np.uint16) + 700),
        "rescaled.dcm": dicom(
            grey.astype(np.uint16), RescaleSlope=2, RescaleIntercept=-200, WindowCenter=100.5, WindowWidth=201
        ),
        "falling.dcm": dicom(
            grey, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-100, WindowWidth=100, VOILUTFunction="LINEAR_EXACT"
        ),
        "lookup.dcm": dicom(grey, VOILUTSequence=[lookup(np.arange(256).clip(50, 150))]),
        "half_a_window.dcm": dicom(grey, WindowCenter=100),
        "window_of_nothing.dcm": dicom(grey, WindowCenter="777", WindowWidth=100).replace(b"777", b"NaN"),
        "inverted.dcm": dicom(grey, PhotometricInterpretation="MONOCHROME1"),
        "colour.dcm": dicom(rgb),
        "frames.dcm": dicom(np.stack([grey, shift]), frames=2),
        "dicom_inside.png": dicom(grey),
        "jpeg.dcm": dicom(grey, syntax=JPEG_BASELINE, frame=encoded(grey, "JPEG", quality=95)),
        "jpeg_colour.dcm": dicom(
            rgb,
            syntax=JPEG_BASELINE,
            frame=encoded(rgb, "JPEG", quality=95, subsampling=0),
            PhotometricInterpretation="YBR_FULL",
        ),
        "volume.nii": nifti(volume()),
        "volume.nii.gz": gzip.compress(nifti(volume())),
        "version_two.nii": nifti(volume(), version=2),
        "series.nii": nifti(np.stack([volume(), volume()[::-1]], -1)),
        "left_behind.nii": nifti(volume()[::-1, ::-1], np.diag([-1.0, -1, 1, 1])),
        "standing.nii": nifti(volume().transpose(2, 0, 1), np.eye(4)[[1, 2, 0, 3]]),
        "wide.nii": nifti(np.where(disc()[::-1, ::-1].T, 1.7e308, -1.7e308)),
        "flat.nii": nifti(volume()[:, :, 2]),
    }


def refused() -> dict[str, bytes]:
    """What has to be refused, for its bytes."""
    rgb, grey = colours(), greys()
    whole = {form: encoded(rgb, form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    hole = grey.astype(np.float32)
    hole[3, 4] = np.nan
    infinite = np.where(np.isnan(hole), np.inf, hole).astype(np.float32)
    frame, slices = dicom(grey), nifti(volume())
    jpeg = whole["JPEG"]
    start = jpeg.index(b"\xff\xc0") + 5
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 10**8))
    offset = patched(slices, 108, struct.pack("<f", 3e9))
    return {
        "empty.png": b"",
        "text.png": b"no picture at all\n" * 20,
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n(x) run showpage\n%%EOF\n",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="secret.png"/></svg>',
        "archive.png": b"PK\x03\x04" + b"\0" * 100,
        "pickled.npy": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n\x80\x04N.",
        "gzipped.png": gzip.compress(whole["PNG"]),
        "truncated.png": whole["PNG"][:-40],
        "no_end.png": whole["PNG"][:-12],
        "header_only.png": whole["PNG"][:33],
        "half_header.png": whole["PNG"][:20],
        "flipped_byte.png": patched(whole["PNG"], 60, bytes([whole["PNG"][60] ^ 1])),
        "text_bomb.png": png(WIDTH, HEIGHT, 8, 0, b"".join(b"\0" + row.tobytes() for row in grey), bomb),
        "few_rows.png": png(WIDTH, HEIGHT, 8, 0, b"\0" * 100),
        "forbidden_depth.png": png(WIDTH, HEIGHT, 7, 2, b"\0" * 10_000),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:3],
        "truncated.gif": whole["GIF"][:-300],
        "truncated.bmp": whole["BMP"][:-300],
        "truncated.tif": whole["TIFF"][:600],
        "truncated_lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw")[:300],
        "truncated.webp": whole["WEBP"][:-60],
        "huge.png": png(20_000, 20_000, 8, 2),
        "huge.jpg": patched(jpeg, start, struct.pack(">HH", 65_000, 65_000)),
        "huge.gif": patched(whole["GIF"], 6, struct.pack("<HH", 65_535, 65_535)),
        "huge.bmp": patched(whole["BMP"], 18, struct.pack("<ii", 20_000, 20_000)),
        "huge.tif": tiff_header(20_000, 20_000),
        "huge_tile.tif": tiff_header(40, 24, tile=2**17),
        "above_limit.png": png(8_001, 8_000, 8, 0),
        "beyond_pillow.png": png(2**31 - 1, 2**31 - 1, 8, 0),
        "one_pixel.png": encoded(grey[:1, :1], "PNG"),
        "thin.png": encoded(np.zeros((7, 100), np.uint8), "PNG"),
        "no_width.bmp": patched(whole["BMP"], 18, struct.pack("<i", 0)),
        "nan.tif": encoded(hole, "TIFF"),
        "infinite.tif": encoded(infinite, "TIFF"),
        "truncated.dcm": frame[:-300],
        "no_pixels.dcm": dicom(grey, PixelData=None),
        "no_rows.dcm": dicom(grey, Rows=None),
        "huge.dcm": dicom(grey, Rows=60_000, Columns=60_000),
        "thin.dcm": dicom(grey, Rows=2, Columns=480),
        "nan_slope.dcm": dicom(grey, RescaleSlope="777", RescaleIntercept=0).replace(b"777", b"NaN"),
        "deflated.dcm": frame.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
        "no_preamble.dcm": frame[132:],
        "no_decoder.dcm": dicom(grey, syntax=JPEG_LS, frame=b"\xff\xd8\xff\xf7" + b"\0" * 60),
        "damaged_jpeg.dcm": dicom(grey, syntax=JPEG_BASELINE, frame=jpeg[:200]),
        "truncated.nii": slices[:2000],
        "truncated.nii.gz": gzip.compress(slices)[:2000],
        "corrupt.nii.gz": patched(gzip.compress(slices), 300, b"\xff" * 40),
        "nan.nii": nifti(np.full((40, 24, 3), np.nan, np.float32)),
        "complex.nii": nifti(np.zeros((40, 24, 3), np.complex64)),
        "line.nii": nifti(np.zeros(40, np.int16)),
        "huge.nii": patched(slices, 40, struct.pack("<4h", 3, 32_000, 32_000, 32_000)),
        "long.nii": patched(slices, 40, struct.pack("<4h", 3, 1000, 1000, 32_000)),
        "negative.nii": patched(slices, 42, struct.pack("<h", -40)),
        "far_offset.nii": offset,
        "far_offset.nii.gz": gzip.compress(offset),
        "thin.nii": nifti(np.zeros((40, 3, 5), np.int16)),
    }


def masks() -> dict[str, bytes]:
    """Masks of the disc in every form, and some that have to be refused."""
    inside = disc()
    noise = np.random.default_rng(0).integers(0, 9, inside.shape)
    large = Image.fromarray(inside).resize((4 * WIDTH, 4 * HEIGHT), Image.Resampling.NEAREST)
    soft = large.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    labels = np.where(inside, np.where(np.arange(WIDTH) < 14, 1, 2), 0).astype(np.uint8)
    red = np.zeros((*inside.shape, 3), np.uint8)
    red[..., 0] = inside * 40
    hole = inside.astype(np.float32)
    hole[0, 0] = np.nan
    return {
        "mask_0_1.png": encoded(inside.astype(np.uint8), "PNG"),
        "mask_0_255.png": encoded(inside * np.uint8(255), "PNG"),
        "mask_0_128_255.png": encoded(labels * np.uint8(127), "PNG"),
        "mask_labels.png": encoded(labels, "PNG"),
        "mask_one_bit.png": encoded(Image.fromarray(inside), "PNG"),
        "mask_indexed.png": encoded(indexed(labels, [[0, 0, 0], [128, 0, 0], [0, 64, 0]]), "PNG"),
        "mask_swapped_palette.png": encoded(indexed(1 - inside, [[255] * 3, [0] * 3]), "PNG"),
        "mask_red.png": encoded(red, "PNG"),
        "mask_soft.png": encoded(soft, "PNG"),
        "mask_noisy.png": encoded(np.where(inside, 255 - noise, noise).astype(np.uint8), "PNG"),
        "mask_alpha.png": encoded(np.dstack([inside * np.uint8(255)] * 3 + [np.full_like(inside, 9, np.uint8)]), "PNG"),
        "mask_sixteen_bit_1.png": encoded(inside.astype(np.uint16), "PNG"),
        "mask_sixteen_bit_65535.png": encoded(inside * np.uint16(65535), "PNG"),
        "mask_float.tif": encoded(inside.astype(np.float32), "TIFF"),
        "mask_probability.tif": encoded((np.where(inside, 0.99, 0.01) - noise / 1e3).astype(np.float32), "TIFF"),
        "mask_faint_probability.tif": encoded((noise / 20).astype(np.float32), "TIFF"),
        "mask_jpeg.jpg": encoded(np.where(inside, 255 - noise, noise).astype(np.uint8), "JPEG", quality=95),
        "mask_red.jpg": encoded(np.minimum(red, 1) * np.uint8(255), "JPEG", quality=95, subsampling=0),
        "mask_jpeg.tif": encoded(np.where(inside, 255 - noise, noise).astype(np.uint8), "TIFF", compression="jpeg"),
        "mask_animated.gif": encoded(
            Image.fromarray(inside * np.uint8(255)),
            "GIF",
            save_all=True,
            append_images=[Image.new("L", (WIDTH, HEIGHT), 255)],
        ),
        "mask_large.png": encoded(large, "PNG"),
        "mask_frame.dcm": dicom(inside.astype(np.uint8)),
        "mask_volume.nii.gz": gzip.compress(
            nifti(np.repeat(inside[::-1, ::-1].T[..., None], 3, 2).astype(np.uint8), None)
        ),
        "mask_black.png": encoded(np.zeros(inside.shape, np.uint8), "PNG"),
        "mask_black.jpg": encoded(noise.astype(np.uint8), "JPEG"),
        "mask_black_jpeg.tif": encoded(noise.astype(np.uint8), "TIFF", compression="jpeg"),
        "mask_white.png": encoded(np.full(inside.shape, 255, np.uint8), "PNG"),
        "mask_other_size.png": encoded(np.zeros((HEIGHT, WIDTH + 1), np.uint8), "PNG"),
        "mask_rotated.png": encoded(np.zeros((WIDTH, HEIGHT), np.uint8), "PNG"),
        "mask_tiny.png": encoded(np.zeros((3, 5), np.uint8), "PNG"),
        "mask_nan.tif": encoded(hole, "TIFF"),
        "mask_truncated.png": encoded(inside * np.uint8(255), "PNG")[:-20],
    }


def make(folder: Path) -> dict[str, Path]:
    """Writes every file into `folder`, which becomes the root, and one picture beside it; their paths by name.

    Names of what is no plain file end in "/": what must not be opened, followed or waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, data in (pictures() | refused() | masks()).items():
        paths[name] = folder / name
        paths[name].write_bytes(data)
    outside = folder.parent / f"{folder.name}_outside.png"
    outside.write_bytes(encoded(colours(), "PNG"))
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    with (folder / "sparse.png").open("wb") as file:
        file.write(encoded(greys(), "PNG"))
        file.truncate(500_000_001)
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "within.png").symlink_to("grey.png")
    (folder / "leaving.png").symlink_to(outside)
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "up").symlink_to(folder.parent, target_is_directory=True)
    for name in ("folder", "pipe", "socket", "sparse", "circle", "one", "dangling", "within", "leaving", "device"):
        paths[f"{name}/"] = folder / f"{name}.png"
    paths |= {
        "missing/": folder / "nowhere.png",
        "below a file/": folder / "grey.png" / "inner.png",
        "traversal/": folder / ".." / outside.name,
        "traversal through a link/": folder / "up" / outside.name,
        "absolute/": outside,
        "long name/": folder / ("x" * 5000 + ".png"),
        "zero in the name/": folder / "a\0b.png",
        "there and back/": folder / ".." / folder.name / "grey.png",
    }
    return paths


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


# What is no file: how to make it. Opening one may wait for ever, and reading one may never end.
SPECIAL = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
