import copy
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests import hostile
from vgjax.config import ConfigError
from vgjax.data.entries import RunLengths
from vgjax.data.read import files, images
from vgjax.data.read.images import ImageError, read_image, read_mask

SHAPE = (hostile.HEIGHT, hostile.WIDTH)
COLOURS, GREYS, DISC = hostile.colours(), hostile.greys(), hostile.disc()
FULL = np.rint(GREYS / 234 * 255)  # the grey ramp ends at 234
LYING = np.rot90(COLOURS, -1)


def linear(low: float, high: float) -> np.ndarray:
    return np.rint(((GREYS.astype(float) - low) / (high - low)).clip(0, 1) * 255)


# Name -> what its pixels must be (grey ones in all three channels), and by how much they may be off.
PICTURES: dict[str, tuple[np.ndarray, int]] = {
    "grey.png": (GREYS, 0),
    "one_bit.png": (DISC * 255, 0),
    "sixteen_bit.png": (GREYS, 0),
    "twelve_bit.png": (GREYS, 0),
    "eight_of_sixteen_bit.png": (GREYS, 0),
    "sixteen_bit_colour.png": (COLOURS, 0),
    "palette.png": (GREYS, 0),
    "palette_transparent.png": (GREYS, 0),
    "colour_palette.png": (np.array(hostile.PALETTE)[DISC.astype(int)], 0),
    "grey_alpha.png": (GREYS, 0),
    "rgba.png": (COLOURS, 0),
    "animated.png": (GREYS, 0),
    "mirrored.png": (COLOURS[:, ::-1], 0),
    "long_text.png": (GREYS, 0),
    "trailing.png": (GREYS, 0),
    "smallest.png": (GREYS[:8, :8], 0),
    "constant.png": (np.full(SHAPE, 77), 0),
    "png_inside.jpg": (COLOURS, 0),
    "colour.jpg": (COLOURS, 4),
    "grey.jpg": (GREYS, 2),
    "progressive.jpg": (COLOURS, 4),
    "cmyk.jpg": (COLOURS, 4),
    "rotated.jpg": (LYING, 4),
    "damaged_exif.jpg": (COLOURS, 4),
    "jpeg_inside.png": (COLOURS, 4),
    "colour.bmp": (COLOURS, 0),
    "one_bit.bmp": (DISC * 255, 0),
    "animated.gif": (GREYS, 0),
    "animated.webp": (GREYS, 0),
    "pages.tif": (GREYS, 0),
    "rotated.tif": (LYING, 0),
    "rotated_lzw.tif": (LYING, 0),
    "sixteen_bit.tif": (GREYS, 0),
    "negative.tif": (FULL, 0),
    "float.tif": (FULL, 0),
    "wide_float.tif": (DISC * 255, 0),
    "lab.tif": (COLOURS, 30),  # LAB cannot hold all of these colours
    "a name (1).png": (GREYS, 0),
    "line\nbreak.png": (GREYS, 0),
    os.fsdecode(b"no text \xff.png"): (GREYS, 0),
    "window.dcm": (linear(49.875, 149.875), 1),  # stored as (grey - 100) * 4, shown from -200.5 to 199.5
    "sigmoid.dcm": (255 / (1 + np.exp(-4 * (GREYS - 117.0) / 80)), 1),
    "exact.dcm": (linear(50, 150), 1),
    "window_of_zero.dcm": (FULL, 0),
    "full_range.dcm": (FULL, 0),
    "rescaled.dcm": (linear(100, 200), 1),
    "falling.dcm": (255 - linear(50, 150), 1),
    "lookup.dcm": (linear(50, 150), 0),
    "half_a_window.dcm": (FULL, 0),
    "window_of_nothing.dcm": (FULL, 0),
    "inverted.dcm": (255 - FULL, 0),
    "colour.dcm": (COLOURS, 0),
    "frames.dcm": (FULL, 0),
    "dicom_inside.png": (FULL, 0),
    "jpeg.dcm": (FULL, 3),
    "jpeg_colour.dcm": (COLOURS, 4),
    "volume.nii": (FULL, 0),
    "volume.nii.gz": (FULL, 0),
    "version_two.nii": (FULL, 0),
    "series.nii": (FULL, 0),
    "left_behind.nii": (FULL, 0),
    "standing.nii": (FULL, 0),
    "wide.nii": (DISC * 255, 0),
    "flat.nii": (FULL, 0),
    "within/": (GREYS, 0),
    "there and back/": (GREYS, 0),
}

REFUSED = {
    "empty.png": "empty file",
    "text.png": "not an image",
    "page.jpg": "not an image",
    "script.eps": "not an image",
    "drawing.svg": "not an image",
    "archive.png": "not an image",
    "pickled.npy": "not an image",
    "gzipped.png": "not an image",
    "truncated.png": "truncated",
    "no_end.png": "truncated",
    "header_only.png": "damaged",
    "half_header.png": "truncated",
    "flipped_byte.png": "damaged",
    "text_bomb.png": "damaged",
    "few_rows.png": "truncated",
    "forbidden_depth.png": "damaged",
    "truncated.jpg": "truncated",
    "header_only.jpg": "damaged",
    "truncated.gif": "truncated",
    "truncated.bmp": "truncated",
    "truncated.tif": "truncated",
    "truncated_lzw.tif": "damaged",
    "truncated.webp": "damaged",
    "huge.png": "too large",
    "huge.jpg": "too large",
    "huge.gif": "too large",
    "huge.bmp": "too large",
    "huge.tif": "too large",
    "huge_tile.tif": "too large",
    "above_limit.png": "too large",
    "beyond_pillow.png": "too large",
    "one_pixel.png": "too small",
    "thin.png": "too small",
    "no_width.bmp": "damaged",
    "nan.tif": "not finite",
    "infinite.tif": "not finite",
    "truncated.dcm": "truncated",
    "no_pixels.dcm": "not an image",
    "no_rows.dcm": "damaged",
    "huge.dcm": "too large",
    "thin.dcm": "too small",
    "nan_slope.dcm": "not finite",
    "deflated.dcm": "not supported",
    "no_preamble.dcm": "not an image",
    "no_decoder.dcm": "not supported",
    "damaged_jpeg.dcm": "truncated",
    "truncated.nii": "truncated",
    "truncated.nii.gz": "truncated",
    "corrupt.nii.gz": "damaged",
    "nan.nii": "not finite",
    "complex.nii": "not supported",
    "line.nii": "not supported",
    "huge.nii": "too large",
    "long.nii": "too large",
    "negative.nii": "too small",
    "far_offset.nii": "too large",
    "far_offset.nii.gz": "too large",
    "thin.nii": "too small",
    "folder/": "not a file",
    "pipe/": "not a file",
    "socket/": "not a file",
    "sparse/": "too large",
    "circle/": "circle of links",
    "one/": "circle of links",
    "dangling/": "missing",
    "leaving/": "outside the root",
    "device/": "outside the root",
    "missing/": "missing",
    "below a file/": "missing",
    "traversal/": "outside the root",
    "traversal through a link/": "outside the root",
    "absolute/": "outside the root",
    "long name/": "impossible name",
    "zero in the name/": "impossible name",
}

MASKS_REFUSED = {
    "mask_other_size.png": "mask of another size",
    "mask_rotated.png": "mask of another size",
    "mask_tiny.png": "too small",
    "mask_nan.tif": "not finite",
    "mask_truncated.png": "truncated",
}
MASKS: dict[str, np.ndarray] = {
    **dict.fromkeys(hostile.masks().keys() - MASKS_REFUSED.keys(), DISC),
    "mask_black.png": np.zeros(SHAPE),
    "mask_black.jpg": np.zeros(SHAPE),
    "mask_black_jpeg.tif": np.zeros(SHAPE),
    "mask_faint_probability.tif": np.zeros(SHAPE),
    "mask_white.png": np.ones(SHAPE),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "root"


@pytest.fixture(scope="module")
def paths(root) -> dict[str, Path]:
    return hostile.make(root)


def refusal(path: Path, root: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path, root)
    return caught.value


def test_every_file_has_its_expectation(paths):
    assert paths.keys() == PICTURES.keys() | REFUSED.keys() | MASKS.keys() | MASKS_REFUSED.keys()


@pytest.mark.parametrize("name", PICTURES, ids=repr)
def test_a_picture_is_decoded(paths, root, name):
    expected, tolerance = PICTURES[name]
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    picture = read_image(paths[name], root)
    assert picture.pixels.dtype == np.uint8 and picture.full_size == expected.shape[:2]
    np.testing.assert_allclose(picture.pixels, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_is_refused(paths, root, name):
    error = refusal(paths[name], root)
    assert error.reason == REFUSED[name]
    assert error.path == str(paths[name]) and error.reason in str(error) and error.detail in str(error)


@pytest.mark.parametrize("name", sorted(MASKS))
def test_a_mask_is_decoded(paths, root, name):
    mask = read_mask([paths[name]], root, SHAPE)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, MASKS[name])


@pytest.mark.parametrize("name", MASKS_REFUSED)
def test_a_mask_is_refused(paths, root, name):
    with pytest.raises(ImageError) as caught:
        read_mask([paths["mask_0_1.png"], paths[name]], root, SHAPE)
    assert caught.value.reason == MASKS_REFUSED[name] and caught.value.path == str(paths[name])


def test_masks_are_united_and_none_is_an_empty_mask(paths, root):
    runs = RunLengths("1 3", *SHAPE)
    union = read_mask([paths["mask_0_255.png"], runs, paths["mask_black.png"]], root, SHAPE)
    expected = DISC.copy()
    expected[0, :3] = True
    np.testing.assert_array_equal(union, expected)
    np.testing.assert_array_equal(read_mask([], root, SHAPE), np.zeros(SHAPE))


def test_a_mask_never_turns_by_its_exif_and_a_picture_does_by_all_eight(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.png"
        path.write_bytes(hostile.encoded(Image.fromarray(COLOURS), "PNG", exif=exif))
        with Image.open(path) as file:
            turned = np.asarray(ImageOps.exif_transpose(file))
        picture = read_image(path, tmp_path)
        np.testing.assert_array_equal(picture.pixels, turned)
        assert picture.full_size == turned.shape[:2]
        path.write_bytes(hostile.encoded(Image.fromarray(DISC * np.uint8(255)), "PNG", exif=exif))
        np.testing.assert_array_equal(read_mask([path], tmp_path, SHAPE), DISC)


def test_nothing_outside_the_root_is_opened(paths, root, monkeypatch):
    opened: list[tuple[str, int]] = []
    really = os.open

    def recorded(path, flags, *rest, **more):
        opened.append((str(path), flags))
        return really(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", recorded)
    for name, path in paths.items():
        if REFUSED.get(name) in ("outside the root", "not a file", "missing", "impossible name"):
            refusal(path, root)
            with pytest.raises(ImageError):
                read_mask([path], root, SHAPE)
    assert opened == []
    read_image(paths["within/"], root)
    (path, flags), *_ = opened
    assert path == str(root.resolve() / "grey.png")
    # Were a pipe or a link put there in the meantime, it would neither block nor be followed.
    assert flags & os.O_NONBLOCK and flags & os.O_NOFOLLOW


def test_a_file_without_permission_is_refused(paths, root, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    assert refusal(paths["grey.png"], root).reason == "no permission"


@pytest.mark.parametrize("name", [name for name, reason in REFUSED.items() if reason == "too large"])
def test_what_is_too_large_is_not_decoded(paths, root, name, monkeypatch):
    def decoded(*_, **__):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    monkeypatch.setattr("pydicom.pixels.pixel_array", decoded)
    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy.__getitem__", decoded)
    assert refusal(paths[name], root).reason == "too large"


def test_the_limit_of_pixels_is_exact(paths, root):
    pixels = SHAPE[0] * SHAPE[1]
    for name in ("grey.png", "exact.dcm", "volume.nii"):
        assert read_image(paths[name], root, max_pixels=pixels).full_size == SHAPE
        with pytest.raises(ImageError, match="too large"):
            read_image(paths[name], root, max_pixels=pixels - 1)
    with pytest.raises(ImageError, match="too large"):
        read_mask([RunLengths("1 1", *SHAPE)], root, SHAPE, max_pixels=pixels - 1)


def test_a_large_jpeg_is_decoded_smaller_when_little_is_wanted(tmp_path):
    rows, columns = np.mgrid[:800, :1208]
    smooth = np.stack([rows * 0.3, columns * 0.2, (rows + columns) * 0.1], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    path, mask = tmp_path / "large.jpg", tmp_path / "mask.png"
    path.write_bytes(hostile.encoded(smooth, "JPEG", quality=95))
    mask.write_bytes(hostile.encoded((columns > rows).astype(np.uint8), "PNG"))
    for min_side, scale in ((50, 8), (100, 4), (101, 2), (200, 2), (201, 1), (5000, 1)):
        picture = read_image(path, tmp_path, min_side=min_side)
        assert picture.full_size == (800, 1208) and picture.pixels.shape == (800 // scale, 1208 // scale, 3)
        blocks = smooth.reshape(800 // scale, scale, 1208 // scale, scale, 3).mean((1, 3))
        assert np.abs(picture.pixels - blocks).max() < 4
        small = read_mask([mask], tmp_path, picture.pixels.shape[:2])
        assert small.shape == picture.pixels.shape[:2] and abs(small.mean() - (columns > rows).mean()) < 0.01
    path.write_bytes(hostile.encoded(Image.fromarray(smooth), "JPEG", quality=95, exif=exif))
    turned = read_image(path, tmp_path, min_side=100)
    assert turned.full_size == (1208, 800) and turned.pixels.shape == (302, 200, 3)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_come_back(tmp_path, density):
    mask = np.random.default_rng(1).random((30, 50)) < density
    text = hostile.run_lengths(mask)
    np.testing.assert_array_equal(read_mask([RunLengths(text, 30, 50)], tmp_path, (30, 50)), mask)
    half = read_mask([RunLengths(text, 30, 50)], tmp_path, (15, 25))
    np.testing.assert_array_equal(half, mask[1::2, 1::2])


def test_run_lengths_count_from_one_along_rows(tmp_path):
    mask = read_mask([RunLengths("2 1 21 2  21 1 200 1", 10, 20)], tmp_path, (10, 20))
    assert np.argwhere(mask).tolist() == [[0, 1], [1, 0], [1, 1], [9, 19]]


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1 2 3",
        "0 5",
        "-4 2",
        "1 0",
        "1 -1",
        "201 1",
        "200 2",
        "1 201",
        f"2 {2**63 - 1}",
        f"{2**70} 1",
        "1.5 2",
        "nan",
        "one two",
        "1,5",
        "\0 1",
        "1 2; rm",
        "\udcff 1",
    ],
)
def test_malformed_run_lengths_are_refused(tmp_path, text):
    with pytest.raises(ImageError) as caught:
        read_mask([RunLengths(text, 10, 20)], tmp_path, (10, 20))
    assert caught.value.reason == "malformed run lengths"
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((0, 20), "too small"),
        ((-9, 20), "too small"),
        ((10, 21), "mask of another size"),
        ((10**6, 10**6), "too large"),
    ],
)
def test_run_lengths_of_an_impossible_size_are_refused(tmp_path, size, reason):
    with pytest.raises(ImageError) as caught:
        read_mask([RunLengths("1 1", *size)], tmp_path, (10, 20))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("name", "extra"), [("exact.dcm", "dicom"), ("volume.nii.gz", "nifti")])
def test_a_missing_reader_is_named_with_its_remedy(paths, root, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, {"dicom": "pydicom", "nifti": "nibabel"}[extra], None)
    with pytest.raises(ConfigError, match=rf"pip install vgjax\[{extra}\]"):
        read_image(paths[name], root)


def test_an_error_crosses_from_one_process_to_another(paths, root):
    error = refusal(paths["truncated.png"], root)
    again = copy.copy(error)  # by the same protocol
    assert (str(again), again.path, again.reason, again.detail) == (str(error), error.path, error.reason, error.detail)


def test_an_error_is_one_printable_line_whatever_the_name_and_the_decoder_say(tmp_path):
    path = tmp_path / os.fsdecode(b"line\nbreak \xff.png")
    path.touch()
    for text in (str(refusal(path, tmp_path)), files.words(ValueError("two\n lines \udcff"))):
        assert len(text.splitlines()) == 1
        text.encode()


def test_warning_filters_come_back_in_whatever_order_threads_leave():
    before = list(warnings.filters)
    files.silence.__enter__()
    files.silence.__enter__()
    files.silence.__exit__()
    warnings.warn("still within", UserWarning, stacklevel=1)
    files.silence.__exit__()
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)


def seeds() -> dict[str, bytes]:
    """Small files of every format, for damaging."""
    rgb = COLOURS
    whole = {form: hostile.encoded(rgb, form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    known = hostile.pictures()
    names = ("animated.webp", "animated.gif", "animated.png", "rotated_lzw.tif", "progressive.jpg", "rotated.jpg")
    return whole | {n: known[n] for n in (*names, "window.dcm", "jpeg.dcm", "volume.nii", "volume.nii.gz", "lab.tif")}


@pytest.mark.parametrize("name", seeds())
def test_damage_ends_in_a_picture_or_a_refusal(tmp_path, name):
    rng = np.random.default_rng(7)
    path, whole, refused = tmp_path / "damaged", seeds()[name], 0
    for _ in range(40):
        data = bytearray(whole)
        # Half of the damage goes to the header, where the lies are.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
        for position in rng.integers(0, reach, rng.integers(1, 9)):
            data[position] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        try:
            picture = read_image(path, tmp_path)
            assert picture.pixels.dtype == np.uint8 and picture.pixels.shape == (*picture.full_size, 3)
        except ImageError as error:
            refused += 1
            assert error.reason and error.detail
        try:
            mask = read_mask([path], tmp_path, SHAPE)
            assert mask.shape == SHAPE and set(np.unique(mask)) <= {0, 1}
        except ImageError:
            pass
    assert refused >= 5


def test_decoders_that_start_programs_are_not_reachable(paths, root):
    assert set(images.FORMATS) == {"JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"}
    with Image.open(paths["script.eps"]) as file:  # Pillow itself would take it, and start Ghostscript
        assert file.format == "EPS"
    assert refusal(paths["script.eps"], root).reason == "not an image"
