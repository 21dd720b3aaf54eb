"""The nearest pictures: as brute force in float64 finds them, whatever float32 makes of it."""

import numpy as np
import pytest

from vgjax.evaluation import neighbours
from vgjax.evaluation.neighbours import nearest

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of either side, the last of them not full."""
    monkeypatch.setattr(neighbours, "BLOCK", 4)


def brute_force(queries, references, k):
    distances = np.sqrt(np.square(queries[:, None].astype(np.float64) - references[None]).sum(2))
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, 1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("count", [5, 150])
def test_the_nearest_of_all_are_found(k, count):
    queries, references = RNG.normal(size=(41, 7)).astype(np.float32), RNG.normal(size=(count, 7)).astype(np.float32)
    found = nearest(queries, references, k)
    rows, distances = brute_force(queries, references, k)
    assert (found.rows == rows).all() and np.allclose(found.distances, distances, rtol=1e-12, atol=0)


def test_of_equal_ones_the_first_is_found_even_among_more_than_are_compared_again():
    """One hundred twins far from zero, where float32 rounds them apart; the nearest by a hair lies among them."""
    references = np.tile(RNG.normal(size=(1, 5)) + 100, (100, 1)).astype(np.float32)
    references[37, 2] += 2e-5
    queries = np.stack([references[0], references[37]])
    found = nearest(queries, references, 2)
    assert found.rows.tolist() == [[0, 1], [37, 0]] and found.distances[:, 0].tolist() == [0.0, 0.0]


def test_features_may_lie_in_a_file(tmp_path):
    references = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (90, 6))
    references[:] = RNG.normal(size=references.shape)
    assert nearest(references[[80, 3]], references).rows.ravel().tolist() == [80, 3]
