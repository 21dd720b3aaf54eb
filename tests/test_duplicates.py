import itertools
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgjax.data.prepare import duplicates


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Thumbnails with the falling spectrum of real pictures."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32)[None]) * 32
    frequency[0, 0] = 1
    spectrum = (rng.normal(size=(count, 32, 17)) + 1j * rng.normal(size=(count, 32, 17))) / frequency**1.5
    raw = np.fft.irfft2(spectrum, s=(32, 32))
    raw = raw / raw.std(axis=(1, 2), keepdims=True) * 45 + 128
    return raw.clip(0, 255).astype(np.uint8)


def noisy(thumbs: np.ndarray, deviation: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, thumbs.shape)
    return (thumbs + noise).clip(0, 255).astype(np.uint8)


def grouped(thumbs: np.ndarray) -> np.ndarray:
    return duplicates.group([duplicates.perceptual_hash(thumb) for thumb in thumbs], thumbs)


def correlation(thumbs: np.ndarray) -> np.ndarray:
    return np.corrcoef(thumbs.reshape(len(thumbs), -1))


def components(linked: np.ndarray) -> np.ndarray:
    """Smallest member of each row's connected component, by brute force."""
    label = np.arange(len(linked))
    while True:
        least = np.where(linked, label[None, :], len(linked)).min(axis=1)
        if (least == label).all():
            return label
        label = least


def test_a_thumbnail_is_the_mean_of_what_each_pixel_covers():
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 1), dtype=np.uint8).repeat(3, axis=2)
    expected = picture[..., 0].reshape(32, 2, 32, 3).mean(axis=(1, 3))
    thumb = duplicates.thumbnail(picture)
    assert thumb.shape == (32, 32) and thumb.dtype == np.uint8
    np.testing.assert_allclose(thumb, expected, atol=1)
    assert duplicates.thumbnail(picture[:1, :1]).shape == (32, 32)
    np.testing.assert_array_equal(duplicates.thumbnail(picture[..., 0]), thumb)


def test_the_hash_sees_content_and_neither_brightness_nor_contrast():
    thumb = pictures(1)[0]
    code = duplicates.perceptual_hash(thumb)
    assert 0 <= code < 2**64
    halved = np.rint(thumb * 0.5 + 40).astype(np.uint8)
    assert (code ^ duplicates.perceptual_hash(halved)).bit_count() <= 2
    assert (code ^ duplicates.perceptual_hash(255 - thumb)).bit_count() >= 62
    # A pin: hashes that were stored must still mean the same.
    ramp = np.add.outer(np.arange(32) * 3, np.arange(32)).astype(np.uint8)
    assert duplicates.perceptual_hash(ramp) == 7260538776177028732


def test_differing_bits_grow_with_the_angle():
    base = pictures(200)
    for deviation, low, high in ((5, 0, 4), (12, 1, 9)):
        changed = noisy(base, deviation)
        pairs = zip(base, changed, strict=True)
        bits = [(duplicates.perceptual_hash(a) ^ duplicates.perceptual_hash(b)).bit_count() for a, b in pairs]
        assert low <= np.mean(bits) <= high
    codes = [duplicates.perceptual_hash(thumb) for thumb in base]
    strangers = [(a ^ b).bit_count() for a, b in itertools.pairwise(codes)]
    assert np.mean(strangers) == pytest.approx(32, abs=2)


def test_any_six_bits_may_differ():
    """Every pair within six bits shares a bucket, whichever bits they are."""
    rng = np.random.default_rng(0)
    masks = [int(mask) for mask in duplicates._masks()]
    assert all(mask.bit_count() == 16 for mask in masks) and len(set(masks)) == 28
    for _ in range(500):
        flipped = sum(1 << int(bit) for bit in rng.choice(64, 6, replace=False))
        assert any(not flipped & mask for mask in masks)


def test_groups_are_those_of_brute_force():
    base = pictures(300)
    thumbs = np.concatenate([base, noisy(base[:60], 8, 1), noisy(base[:20], 8, 2)])
    found = grouped(thumbs)
    expected = components(correlation(thumbs) > duplicates.THRESHOLD)
    np.testing.assert_array_equal(found, np.unique(expected, return_inverse=True)[1])
    assert found.max() + 1 == 300 and np.bincount(found).tolist() == [3] * 20 + [2] * 40 + [1] * 240


def test_a_chain_is_one_group_and_strangers_with_one_hash_are_not():
    one, other = pictures(2).astype(float)
    steps = np.stack([one * (1 - t) + other * t for t in np.linspace(0, 1, 12)]).round().astype(np.uint8)
    assert correlation(steps)[0, -1] < 0.5
    assert grouped(steps).tolist() == [0] * 12
    assert duplicates.group([7, 7], np.stack([steps[0], steps[-1]])).tolist() == [0, 1]


def test_blank_pictures_are_one_group():
    thumbs = np.concatenate([np.full((3, 32, 32), 9, np.uint8), pictures(2), np.full((2, 32, 32), 250, np.uint8)])
    assert grouped(thumbs).tolist() == [0, 0, 0, 1, 2, 0, 0]
    assert duplicates.group([], np.zeros((0, 32, 32), np.uint8)).tolist() == []
    assert grouped(thumbs[:1]).tolist() == [0]


def test_groups_are_named_by_their_smallest_id():
    assert duplicates.names(["b", "c", "a", "aa", "d"], np.array([0, 1, 0, 0, 2])) == ["a", "c", "a", "a", "d"]


def test_the_pixel_hash_tells_pictures_apart_by_pixels_and_shape():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert duplicates.pixel_hash(picture) == duplicates.pixel_hash(np.asfortranarray(picture))
    assert duplicates.pixel_hash(picture) != duplicates.pixel_hash(picture.reshape(4, 2, 3))
    assert duplicates.pixel_hash(picture) != duplicates.pixel_hash(picture[::-1])


@pytest.mark.parametrize(("deviation", "groups"), [(0, 1), (5, 1), (16, 4000)])
def test_crowded_buckets_stay_cheap(monkeypatch, deviation, groups):
    """All pictures alike, duplicates or not: the work is bounded by the budgets, not by the number of pairs."""
    monkeypatch.setattr(duplicates, "MEETINGS", 0)
    monkeypatch.setattr(duplicates, "FAILURES", 0)
    compared = []
    correlation = duplicates._correlation
    monkeypatch.setattr(duplicates, "_correlation", lambda p, a, b: compared.append(len(a)) or correlation(p, a, b))
    found = grouped(noisy(np.repeat(pictures(1), 4000, axis=0), deviation))
    assert found.max() + 1 == groups
    assert sum(compared) < 4000 * 40  # of 8 million pairs


def test_representatives_join_what_lies_far_apart_in_a_crowded_bucket(monkeypatch):
    monkeypatch.setattr(duplicates, "MEETINGS", 0)
    monkeypatch.setattr(duplicates, "LEAST_MEETINGS", 1)
    base = pictures(8)
    thumbs = np.concatenate([base, base[:1]])  # one hash for all: only representatives can find the pair
    assert duplicates.group([5] * 9, thumbs).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]


def test_meetings_in_one_large_bucket_are_bounded(monkeypatch):
    monkeypatch.setattr(duplicates, "MEETINGS", 0)
    met = sum(len(left) for left, _ in duplicates._meetings(np.zeros(4000, np.uint64)))
    assert met <= 4000 * (duplicates.LEAST_MEETINGS + duplicates.REPRESENTATIVES)
    everyone = [
        (int(a), int(b)) for pair in duplicates._meetings(np.array([1, 1, 1, 2])) for a, b in zip(*pair, strict=True)
    ]
    assert sorted(everyone) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.slow
def test_a_hundred_thousand_take_less_than_two_minutes_and_two_gigabytes():
    base = np.concatenate([pictures(5000, seed) for seed in range(15)])
    thumbs = np.concatenate([base, noisy(base[:25_000], 8)])
    codes = [duplicates.perceptual_hash(thumb) for thumb in thumbs]
    tracemalloc.start()
    start = time.monotonic()
    found = duplicates.group(codes, thumbs)
    seconds, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 120 and peak < 2e9, (seconds, peak)
    assert (found[:25_000] == found[75_000:]).mean() > 0.99


def test_ultrasound_is_grouped_as_by_brute_force(data_root: Path):
    folder = data_root / "busi" / "Dataset_BUSI_with_GT"
    paths = [path for path in sorted(folder.glob("*/*.png")) if "_mask" not in path.name]
    thumbs = np.stack([duplicates.thumbnail(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    linked = np.triu(correlation(thumbs) > duplicates.THRESHOLD, 1)
    found = grouped(thumbs)
    together = (found[:, None] == found[None])[linked]
    assert together.mean() >= 0.98 and linked.sum() > 100
    brute = components(linked | linked.T | np.eye(len(paths), dtype=bool))
    assert all(len(set(brute[found == number])) == 1 for number in range(found.max() + 1))
