import ast
import inspect

import numpy as np
import pytest
from scipy import ndimage

from vgjax.data.sources import phantom, phantom_reading
from vgjax.data.sources.phantom_reading import measure

GLOBAL = ("colour", "brightness", "texture")


def _accuracy(images: list[np.ndarray], items: list) -> dict[str, float]:
    read = [measure(image) for image in images]
    return {
        name: float(np.mean([one[name] == item.factors[name] for one, item in zip(read, items, strict=True)]))
        for name in phantom.FACTORS
    }


@pytest.fixture(scope="module")
def items() -> list:
    return list(phantom.items("test", 600, seed=101))


def test_every_factor_is_read_back_from_rendered_images(items):
    accuracy = _accuracy([item.image for item in items], items)
    assert min(accuracy.values()) >= 0.98, accuracy


def test_every_factor_is_read_back_at_twice_the_size():
    large = list(phantom.items("test", 150, seed=102, size=64))
    accuracy = _accuracy([item.image for item in large], large)
    assert min(accuracy.values()) >= 0.97, accuracy


@pytest.mark.parametrize("flaw", ["noise", "smoothing"])
def test_small_flaws_do_not_move_the_reading(items, flaw):
    rng = np.random.default_rng(0)
    flawed = []
    for item in items[:250]:
        image = item.image / 127.5 - 1.0
        image = (
            image + rng.normal(0.0, 0.04, image.shape)
            if flaw == "noise"
            else ndimage.gaussian_filter(image, (0.5, 0.5, 0))
        )
        flawed.append(np.clip(image, -1.0, 1.0).astype(np.float32))
    accuracy = _accuracy(flawed, items[:250])
    assert min(accuracy.values()) >= 0.96, accuracy


def _wobbled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random warp of 0.6 pixels, contrast off by up to 8 % and pixel noise: (H, W, 3) in [-1, 1]."""
    shift = ndimage.gaussian_filter(rng.standard_normal((2, *image.shape[:2])), (0, 3, 3))
    where = np.mgrid[: image.shape[0], : image.shape[1]] + 0.6 * shift / shift.std()
    channels = [
        ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in np.moveaxis(image / 127.5 - 1, 2, 0)
    ]
    warped = np.stack(channels, axis=-1)
    middle = np.median(warped, axis=(0, 1))
    warped = middle + (warped - middle) * rng.uniform(0.92, 1.08) + rng.normal(0.0, 0.06, image.shape)
    return np.clip(warped, -1.0, 1.0).astype(np.float32)


def test_an_imperfect_drawing_is_still_read(items):
    rng = np.random.default_rng(0)
    accuracy = _accuracy([_wobbled(item.image, rng) for item in items], items)
    assert min(accuracy.values()) >= 0.95, accuracy


def test_changing_one_factor_changes_its_reading_alone():
    base = {name: levels[1] for name, levels in phantom.FACTORS.items()} | {"texture": "smooth"}
    for name, levels in phantom.FACTORS.items():
        for level in levels:
            factors = base | {name: level}
            assert measure(phantom.render(factors, np.random.default_rng(4))[0]) == factors


def test_bytes_and_floats_read_alike(items):
    for item in items[:20]:
        assert measure(item.image) == measure((item.image / 127.5 - 1.0).astype(np.float32))


@pytest.mark.parametrize("grain", [0.0, 0.04])
def test_without_a_lesion_only_the_style_is_read(grain):
    noise = np.random.default_rng(0).standard_normal((32, 32))
    noise -= ndimage.gaussian_filter(noise, 1.0)
    luminance = 0.55 + grain * noise
    rgb = luminance[..., None] * np.array([1.24, 0.88, 0.88])
    read = measure(np.round(255 * rgb).astype(np.uint8))
    assert {name: read[name] for name in GLOBAL} == {
        "colour": "red",
        "brightness": "normal",
        "texture": "grainy" if grain else "smooth",
    }
    assert all(read[name] is None for name in phantom.FACTORS if name not in GLOBAL)


def test_what_lies_outside_every_level_is_unreadable():
    assert measure(np.zeros((32, 32, 3), np.uint8))["brightness"] is None
    magenta = np.tile(np.array([200, 20, 200], np.uint8), (32, 32, 1))
    assert measure(magenta)["colour"] is None
    speck = np.full((32, 32, 3), 140, np.uint8)
    speck[14:18, 14:18] = 40
    assert measure(speck)["size"] is None
    crowd = np.full((32, 32, 3), 140, np.uint8)
    crowd[10:20, 10:20] = 40
    for y, x in ((2, 2), (2, 26), (26, 2), (26, 26)):
        crowd[y : y + 4, x : x + 4] = 40
    assert measure(crowd)["count"] is None


def test_garbage_does_not_crash():
    rng = np.random.default_rng(0)
    garbage = [rng.uniform(-1, 1, (32, 32, 3)), np.full((32, 32, 3), np.nan), rng.normal(0, 5, (40, 50, 3))]
    garbage += [np.ones((33, 47, 3)), np.zeros((1, 1, 3)), np.eye(32)[..., None].repeat(3, axis=-1)]
    for image in garbage:
        assert set(measure(image)) == set(phantom.FACTORS)


def test_the_source_reads_pixels_whatever_the_lesion_mask_says(items):
    reader = phantom.SOURCE.reader({})
    images = np.stack([item.image for item in items[:5]])
    for lesion in (np.zeros(images.shape[:3]), np.ones(images.shape[:3])):
        assert reader.read(images, lesion) == [measure(image) for image in images]
    assert {f for f, channel in reader.channels.items() if channel == "anatomy"} == set(phantom.ANATOMY)
    assert [reader.chance([], factor) for factor in ("position", "size")] == [1 / 9, 1 / 3]


def test_levels_are_those_of_the_data_set(items):
    for read in [measure(item.image) for item in items[:100]]:
        assert list(read) == list(phantom.FACTORS)
        assert all(level is None or level in phantom.FACTORS[name] for name, level in read.items())


@pytest.mark.parametrize(
    "image", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3), np.int64)]
)
def test_other_shapes_and_types_are_refused(image):
    with pytest.raises(ValueError, match=r"the image (has shape|is int64)"):
        measure(image)


def test_it_imports_nothing_of_the_renderer():
    tree = ast.parse(inspect.getsource(phantom_reading))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    assert names and not any("data" in name.split(".") or "phantom" in name for name in names)
    assert "import_module" not in inspect.getsource(phantom_reading)
