"""Copies of training pictures are found, altered too, and other pictures are not taken for copies."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vgjax.data.sources import phantom
from vgjax.evaluation import copies


def blots(count: int, seed: int, size: int = 48) -> np.ndarray:
    """(N, size, size, 3) uint8 pictures of coloured blots, no two alike."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((count, size, size, 3)), (0, 3, 3, 0))
    return np.clip(128 + 45 * smooth / smooth.std((1, 2, 3), keepdims=True), 0, 255).astype(np.uint8)


def altered(pictures, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [copies.altered(picture, rng) for picture in pictures]


@pytest.fixture(scope="module")
def trained():
    return blots(40, seed=0)


@pytest.fixture(scope="module")
def known(trained):
    return copies.known(trained)


def test_a_copy_is_found_whatever_was_done_to_it(trained, known):
    copied = trained[3:15]
    exact, changed = known.nearest(copied), known.nearest(altered(copied, 1))
    others, others_changed = known.nearest(blots(12, seed=2)), known.nearest(altered(blots(12, seed=2), 3))
    assert exact.rows.tolist() == changed.rows.tolist() == list(range(3, 15))
    assert exact.distances.max() < 0.05 and changed.distances.max() < 0.5 * others.distances.min()
    assert others_changed.distances.min() > 2 * changed.distances.max()


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (1, 1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_each_alteration_alone_leaves_little(trained, known, shift, mirrored):
    """Of 32 pixels, a shift of one is 3 %."""
    picture = np.roll(trained[5, 8:40, 8:40], shift, (0, 1))[:, :: -1 if mirrored else 1]
    alone = copies.known(trained[:, 8:40, 8:40])
    found = alone.nearest([picture])
    assert found.rows.tolist() == [5] and found.distances[0] < 1.0 < alone.nearest(blots(12, 2)).distances.min()


def test_what_goes_beyond_a_copy_is_none(trained, known):
    """Upside down, or of another brightness than a tenth."""
    copied, dark = trained[:6], [(0.5 * picture).astype(np.uint8) for picture in trained[:6]]
    limit = 2 * known.nearest(altered(copied, 1)).distances.max()
    assert known.nearest(copied[:, ::-1]).distances.min() > limit and known.nearest(dark).distances.min() > limit


def test_the_threshold_is_the_lower_of_what_both_sides_allow():
    held_out, copied = np.linspace(1, 3, 1001), np.linspace(0, 0.5, 101)
    assert copies.threshold(held_out, copied) == pytest.approx(0.495)
    assert copies.threshold(held_out, copied + 2) == pytest.approx(1.015)


def test_alterations_are_of_the_sizes_that_they_are_said_to_be():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[40:60, 30:50] = 200
    rng = np.random.default_rng(0)
    centres, areas = [], []
    for _ in range(60):
        inside = copies.altered(picture, rng)[..., 1] > 90
        centres.append(ndimage.center_of_mass(inside))
        areas.append(inside.sum())
    y, x = np.array(centres).T
    assert 3 < np.abs(y - 49.5).max() < 5.5 and {True, False} == set((x < 50).tolist())
    assert 350 < min(areas) < 385 and 415 < max(areas) < 460


# ---------------------------------------------------------------- planted among pictures of the phantom and real ones


def planted(train: np.ndarray, validation: np.ndarray, others: np.ndarray, told: dict) -> dict:
    """Recall and false alarms of a threshold fixed by validation pictures, of copies planted among others."""
    known, own = copies.known(train), copies.known(validation)
    false = known.nearest(validation).distances
    both = copies.Known(*map(np.concatenate, zip(known, own, strict=True)))
    bound = copies.threshold(false, both.nearest(altered(validation, 4)).distances)
    count = max(1, len(others) // 20)
    places = np.random.default_rng(5).choice(len(train), (2, count), replace=False)
    mixed = [*train[places[0]], *altered(train[places[1]], 6), *others]
    caught = known.nearest(mixed).distances < bound
    shares = {
        "threshold": bound,
        "exact": caught[:count].mean(),
        "altered": caught[count : 2 * count].mean(),
        "false_alarms": caught[2 * count :].mean(),
    }
    found = {**told, "training": len(train), "pictures": len(mixed), "planted": 2 * count}
    return found | {name: float(share) for name, share in shares.items()}


@pytest.mark.slow
def test_planted_copies_are_found_among_phantoms():
    """Among phantoms of their own, some of which differ from one of training by less than an altered copy does."""
    sets = {"train": 8000, "validation": 500, "test": 920}
    found = planted(*(np.stack([item.image for item in phantom.items(*one, seed=0)]) for one in sets.items()), {})
    print(json.dumps(found))
    assert found["exact"] >= 0.99 and found["altered"] >= 0.6 and found["false_alarms"] <= 0.015


@pytest.mark.slow
def test_planted_copies_are_found_among_real_pictures(data_root):
    paths = sorted((data_root / "kvasir-seg" / "Kvasir-SEG" / "images").iterdir())
    order = np.random.default_rng(0).permutation(len(paths))
    read = lambda i: np.asarray(Image.open(paths[i]).convert("RGB").resize((128, 128), Image.Resampling.BOX))
    train, validation, others = np.split(np.stack([read(i) for i in order]), [500, 650])
    found = planted(train, validation, others, {})
    print(json.dumps(found))
    assert found["exact"] >= 0.99 and found["altered"] >= 0.95 and found["false_alarms"] <= 0.02
