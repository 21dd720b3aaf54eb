"""Distances of sets of pictures equal other formulas for the same, and say what they are to say of planted faults."""

import numpy as np
import pytest
import scipy.linalg
from skimage.metrics import structural_similarity
from sklearn.neighbors import NearestNeighbors

from vgjax.evaluation import distances, fidelity
from vgjax.evaluation.metrics.numbers import bootstrap_interval


@pytest.fixture
def features(monkeypatch):
    """Correlated features of real and drawn pictures; blocks hold a few rows alone."""
    monkeypatch.setattr(distances, "BLOCK", 300)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    return [(rng.normal(size=(n, 6)) @ mix + shift).astype(np.float32) for n, shift in ((90, 0.0), (70, 2.0))]


def test_frechet_equals_the_root_of_the_matrix_product(features):
    real, drawn = (x.astype(np.float64) for x in features)
    root = scipy.linalg.sqrtm(np.cov(real.T) @ np.cov(drawn.T)).real
    apart = np.square(real.mean(0) - drawn.mean(0)).sum()
    expected = apart + np.trace(np.cov(real.T) + np.cov(drawn.T) - 2 * root)
    assert distances.frechet(*features) == pytest.approx(expected, rel=1e-6)
    assert distances.frechet(real, real) == pytest.approx(0, abs=1e-6)
    few = real[:4]  # a covariance without full rank
    assert distances.frechet(few, few) == pytest.approx(0, abs=1e-6)


def test_mmd_equals_the_whole_kernel_matrix(features):
    every = np.concatenate(features).astype(np.float64)
    kernel = (every @ every.T / 6 + 1) ** 3
    n, m = map(len, features)
    sign = np.concatenate([np.full(n, 1.0), np.full(m, -1.0)])
    inside = (kernel[:n, :n].sum() - np.trace(kernel[:n, :n])) / (n * (n - 1))
    inside += (kernel[n:, n:].sum() - np.trace(kernel[n:, n:])) / (m * (m - 1))
    between = kernel[np.ix_(sign > 0, sign < 0)].mean()
    assert distances.mmd(*features) == pytest.approx(inside - 2 * between, rel=1e-6)
    assert distances.kid(*features, seed=1)[0] == distances.mmd(*features)


def test_the_error_of_kid_is_what_it_scatters_by(monkeypatch):
    monkeypatch.setattr(distances, "KID_SIZE", 25)
    rng = np.random.default_rng(1)
    found = [distances.kid(rng.normal(size=(80, 4)), rng.normal(size=(80, 4)) + 0.7, seed) for seed in range(40)]
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_neighbours_equal_those_of_an_exact_search(features):
    real, drawn = (x.astype(np.float64) for x in features)
    reach = lambda x, k: NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x).kneighbors(x)[0][:, k]
    apart = np.linalg.norm(real[:, None] - drawn[None], axis=2)
    found = distances.neighbours(*features)
    assert np.array_equal(found["precision"], (apart <= reach(real, 3)[:, None]).any(0))
    assert np.array_equal(found["recall"], (apart <= reach(drawn, 3)[None]).any(1))
    assert found["density"] == pytest.approx((apart <= reach(real, 5)[:, None]).sum(0) / 5, rel=1e-6)
    assert np.array_equal(found["coverage"], (apart <= reach(real, 5)[:, None]).any(1))
    assert 0 < found["precision"].mean() < 1 and 0 < found["coverage"].mean() < 1


def test_ms_ssim_equals_that_of_skimage_at_one_scale_and_explicit_windows_at_more():
    rng = np.random.default_rng(2)
    one = rng.integers(0, 256, (3, 46, 47, 3), dtype=np.uint8)
    other = np.clip(one + rng.normal(0, 40, one.shape), 0, 255).astype(np.uint8)
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1)
    small = [structural_similarity(a, b, **settings) for a, b in zip(one[:, :21, :21], other[:, :21, :21], strict=True)]
    assert distances.ms_ssim(one[:, :21, :21], other[:, :21, :21]) == pytest.approx(small, rel=1e-6)
    line = np.exp(-np.square(np.arange(-5, 6)) / 4.5)
    window = np.outer(line, line) / np.outer(line, line).sum()
    weights = np.array([0.0448, 0.2856, 0.3001]) / (0.0448 + 0.2856 + 0.3001)
    expected = np.ones((3, 3))
    for picture, colour in np.ndindex(3, 3):
        x, y = (a[picture, :, :, colour] / 255 for a in (one, other))
        for scale, weight in enumerate(weights):
            total = []
            for row, column in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
                a, b = (z[row : row + 11, column : column + 11] for z in (x, y))
                ma, mb = (a * window).sum(), (b * window).sum()
                va, vb, ab = (
                    (p * q * window).sum() - s * t for p, q, s, t in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
                )
                light = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4) if scale == 2 else 1.0
                total.append(light * (2 * ab + 9e-4) / (va + vb + 9e-4))
            expected[picture, colour] *= np.mean(total) ** weight
            x, y = (
                (z[0:-1:2, 0:-1:2] + z[1::2, 0:-1:2] + z[0:-1:2, 1::2] + z[1::2, 1::2]) / 4
                for z in (x[:, : x.shape[1] // 2 * 2], y[:, : y.shape[1] // 2 * 2])
            )
    assert distances.scales(46) == 3 and distances.scales(176) == distances.scales(999) == 5
    assert distances.ms_ssim(one, other) == pytest.approx(expected.mean(1), rel=1e-6)


def test_pairs_are_of_one_class_and_never_of_a_picture_with_itself():
    labels = np.array(["a", "b", "a", "c", "b", "a"])
    one, other = distances.pairs(labels, seed=3, most=100)
    assert sorted(one) == sorted(other) == [0, 1, 2, 4, 5]  # the only c has no other
    assert all(labels[one] == labels[other]) and all(one != other)
    assert len(distances.pairs(labels, seed=3, most=2).one) == 2
    assert len(distances.pairs(["a", "b"], seed=3, most=2).one) == 0


def numbers(real, drawn, labels):
    how = fidelity.Intervals(seed=4, resamples=100)
    return dict(fidelity.compared(real, drawn, labels, how))


def test_collapse_and_swapped_classes_are_seen_beside_the_floor():
    rng = np.random.default_rng(5)
    labels = np.repeat(["a", "b"], 100)
    sample = lambda: rng.normal(size=(200, 4)) + 6.0 * (labels == "b")[:, None]
    real, good = sample(), sample()
    found = numbers(real, good, labels)
    assert found["fidelity/coverage/*"]["value"] > 0.9 < found["fidelity/coverage/*/a"]["value"]
    assert found["fidelity/coverage/*"]["n"] == 200 and found["fidelity_real/coverage/*"]["n"] == 100
    assert abs(found["fidelity_halves/frechet/*"]["value"]) < 3 * found["fidelity_real/frechet/*"]["value"]
    low, high = found["fidelity/kid/*"]["interval"]
    assert low < 0 < high and found["fidelity/kid/*"]["standard_error"] == pytest.approx((high - low) / 3.92)
    collapsed = numbers(real, good[[0] * 100 + [100] * 100], labels)
    assert collapsed["fidelity/coverage/*"]["value"] < 0.3 and collapsed["fidelity/recall/*"]["value"] < 0.1
    swapped = numbers(real, np.roll(good, 100, axis=0), labels)
    assert swapped["fidelity/coverage/*"]["value"] > 0.9 and swapped["fidelity/coverage/*/a"]["value"] < 0.1


def test_too_few_pictures_are_told_and_classes_of_few_have_no_numbers():
    rng = np.random.default_rng(6)
    labels = np.array(["a"] * 50 + ["b"] * 20)
    found = numbers(rng.normal(size=(70, 40)), rng.normal(size=(140, 40)), labels)
    assert "too few" in found["fidelity/frechet/*"]["note"] and found["fidelity/frechet/*"]["interval"] is None
    assert found["fidelity/frechet/*/a"]["n"] == 100 and "fidelity/frechet/*/b" not in found
    few = numbers(rng.normal(size=(70, 30)), rng.normal(size=(70, 30)), labels)
    assert "too few" not in few["fidelity/frechet/*"]["note"]
    none = numbers(rng.normal(size=(8, 3)), rng.normal(size=(8, 3)), labels[:8])
    assert none["fidelity/kid/*"]["value"] is not None and none["fidelity_real/kid/*"]["value"] is None


def test_intervals_of_many_values_take_no_more_memory_and_stay_the_same(monkeypatch):
    values = np.random.default_rng(7).normal(size=50)
    whole = bootstrap_interval(values, seed=8, n=200)
    monkeypatch.setattr("vgjax.evaluation.metrics.numbers.RESAMPLED", 350)
    assert bootstrap_interval(values, seed=8, n=200) == whole
