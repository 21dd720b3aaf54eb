"""How far drawn pictures are from real ones: functions of features (N, F), or of pictures, in float64.

Blocks keep the memory of what compares all with all independent of N.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage

BLOCK = 1 << 22  # entries of a matrix of pairs at a time
KID_SUBSETS, KID_SIZE = 50, 1000
# Of MS-SSIM (Wang et al. 2003): weights of the scales, Gaussian window, constants at a dynamic range of 1.
SCALES = np.array((0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
WINDOW, SIGMA, C1, C2 = 11, 1.5, 0.01**2, 0.03**2


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix that is made a few rows at a time."""
    step = max(1, BLOCK // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Euclidean, of each of (N, F) to each of (M, F), (N, M)."""
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T
    return np.sqrt(np.maximum(squares, 0.0))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and unbiased covariance (F, F)."""
    mean, total = features.mean(0, dtype=np.float64), np.zeros((features.shape[1],) * 2)
    for rows in _blocks(*features.shape):
        centred = features[rows] - mean
        total += centred.T @ centred
    return mean, total / (len(features) - 1)


def frechet(real: np.ndarray, drawn: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions of two sets (Heusel et al. 2017, eq. 6).

    The trace of (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.
    """
    (mean, cov), (other_mean, other_cov) = moments(real), moments(drawn)
    values, vectors = scipy.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ other_cov @ root), 0.0)).sum()
    return float(np.square(mean - other_mean).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross)


def mmd(real: np.ndarray, drawn: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy under k(x, y) = (x.y / F + 1)^3 (Binkowski et al. 2018, eq. 4)."""
    x, y = np.asarray(real, np.float64), np.asarray(drawn, np.float64)
    kernel = lambda products: (products / x.shape[1] + 1.0) ** 3
    total = lambda a, b: sum(kernel(a[rows] @ b.T).sum() for rows in _blocks(len(a), len(b)))
    inside = lambda a: (total(a, a) - kernel(np.square(a).sum(1)).sum()) / (len(a) * (len(a) - 1))
    return float(inside(x) + inside(y) - 2 * total(x, y) / (len(x) * len(y)))


def kid(real: np.ndarray, drawn: np.ndarray, seed: int) -> tuple[float, float]:
    """`mmd` of all pictures and its standard error, from subsets of m of n drawn without replacement.

    What subsets of half the pictures scatter by is the error itself; in general it is that times (m / (n - m))^(1/2).
    """
    rng, n = np.random.default_rng(seed), min(len(real), len(drawn))
    size = min(KID_SIZE, n // 2)
    pick = lambda features: features[rng.choice(len(features), size, replace=False)]
    found = [mmd(pick(real), pick(drawn)) for _ in range(KID_SUBSETS)]
    return mmd(real, drawn), float(np.std(found, ddof=1) * np.sqrt(size / (n - size)))


def radii(features: np.ndarray, *ranks: int) -> np.ndarray:
    """Distances of each to its k-th nearest among the others, (ranks, N)."""
    found = [
        np.partition(distances(features[at], features), ranks, 1)[:, ranks] for at in _blocks(*[len(features)] * 2)
    ]
    return np.concatenate(found).T  # rank 0 is the picture itself


def neighbours(real: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """A value a picture, whose means are the numbers of these names.

    precision (M,): whether a drawn picture lies among real ones: in the ball around one that reaches to its third
    neighbour; recall (N,): the reverse (Kynkäänniemi et al. 2019, eq. 1 and 2). density (M,): in how many balls that
    reach to fifth neighbours, over five; coverage (N,): whether such a ball holds a drawn one (Naeem et al. 2020, eq. 3
    and 5).
    """
    real, drawn = np.asarray(real, np.float64), np.asarray(drawn, np.float64)
    (third, fifth), (own,) = radii(real, 3, 5), radii(drawn, 3)
    precision, density = np.zeros(len(drawn)), np.zeros(len(drawn))
    recall, nearest = np.zeros(len(real)), np.full(len(real), np.inf)
    for rows in _blocks(len(drawn), len(real)):
        apart = distances(drawn[rows], real)
        precision[rows], density[rows] = (apart <= third).any(1), (apart <= fifth).sum(1) / 5
        recall = np.maximum(recall, (apart <= own[rows, None]).any(0))
        nearest = np.minimum(nearest, apart.min(0))
    return {"precision": precision, "recall": recall, "density": density, "coverage": (nearest <= fifth).astype(float)}


class Pairs(NamedTuple):
    """Places of pictures of one class, by two."""

    one: np.ndarray
    other: np.ndarray


def pairs(labels: Sequence[str] | np.ndarray, seed: int, most: int) -> Pairs:
    """Each picture with the next of its class in a random cycle, at most so many, of all classes alike."""
    rng, classes, found = np.random.default_rng(seed), np.asarray(labels), []
    for label in np.unique(classes):
        order = rng.permutation(np.flatnonzero(classes == label))
        if len(order) > 1:
            found.append(np.stack([order, np.roll(order, 1)], 1))
    chosen = rng.permutation(np.concatenate(found or [np.zeros((0, 2), int)]))[:most]
    return Pairs(chosen[:, 0], chosen[:, 1])


def scales(side: int) -> int:
    """At how many scales the window fits into pictures whose shorter side has so many pixels, at most five."""
    return min(len(SCALES), (side // WINDOW).bit_length())


def ms_ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Multi-scale structural similarity (B,) of uint8 pictures (B, H, W, C), a mean over colours (Wang et al. 2003).

    At fewer than five `scales` in pictures under 176 pixels, whose weights are then brought to a sum of one.
    """
    x, y = (np.asarray(pictures, np.float64) / 255.0 for pictures in (one, other))
    weights = SCALES[: scales(min(x.shape[1:3]))]
    window = np.exp(-0.5 * np.square(np.arange(WINDOW) - WINDOW // 2) / SIGMA**2)
    half, found = WINDOW // 2, np.ones((len(x), x.shape[3]))
    blur = lambda a: scipy.ndimage.correlate1d(scipy.ndimage.correlate1d(a, window, 1), window, 2)[
        :, half:-half, half:-half
    ]
    window /= window.sum()
    for place, weight in enumerate(weights / weights.sum()):
        mx, my = blur(x), blur(y)
        spread, covariance = blur(x * x) + blur(y * y) - mx * mx - my * my, blur(x * y) - mx * my
        factor = (2 * covariance + C2) / (spread + C2)
        if place == len(weights) - 1:
            factor = factor * (2 * mx * my + C1) / (mx * mx + my * my + C1)
        found *= np.maximum(factor.mean((1, 2)), 0.0) ** weight
        x, y = (_halved(a) for a in (x, y))
    return found.mean(1)


def _halved(x_BHWC: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    b, h, w, c = x_BHWC.shape
    return x_BHWC[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
