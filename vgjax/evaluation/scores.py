"""How good predicted classes are: scores over test pictures, their intervals, and the test of a difference.

k seeds of a classifier, N pictures, C classes, R resamples. Scores are means over the seeds.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15  # of confidence, of equal width
TOGETHER = 1 << 22  # weights that lie in memory at a time
Named = Iterator[tuple[str, dict[str, Any]]]


class Truth(NamedTuple):
    """What test pictures show, places in `classes` (N,), and how intervals and tests resample them."""

    labels: np.ndarray
    classes: Sequence[str]
    seed: int
    resamples: int


def weighted(truth: Truth, probabilities_kNC: np.ndarray, weights_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Scores by name, each (R, k), of pictures that count as often as their weights say.

    recall/<class>; balanced_accuracy, their mean; macro_f1 and auroc (one against the rest), means over the classes of
    the test pictures; calibration_error of the likeliest class (Guo et al. 2017, eq. 3).
    """
    of_seeds = [_of_seed(truth, probabilities_NC, weights_RN) for probabilities_NC in probabilities_kNC]
    return {name: np.stack([one[name] for one in of_seeds], axis=1) for name in of_seeds[0]}


def _of_seed(truth: Truth, p_NC: np.ndarray, weights_RN: np.ndarray) -> dict[str, np.ndarray]:
    count = p_NC.shape[1]
    present, predicted, confidence = np.unique(truth.labels), p_NC.argmax(1), p_NC.max(1).astype(np.float64)
    confused_RCC = (weights_RN @ np.eye(count**2)[truth.labels * count + predicted]).reshape(-1, count, count)
    hits_RC, true_RC, told_RC = (
        x[:, present] for x in (np.diagonal(confused_RCC, 0, 1, 2), confused_RCC.sum(2), confused_RCC.sum(1))
    )
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (low, high]
    off_NB = np.eye(BINS)[bins] * ((predicted == truth.labels) - confidence)[:, None]
    areas = [_area(truth.labels == one, p_NC[:, one], weights_RN) for one in present]
    recalls = {f"recall/{truth.classes[one]}": hits_RC[:, i] / true_RC[:, i] for i, one in enumerate(present)}
    return {
        "balanced_accuracy": (hits_RC / true_RC).mean(1),
        "macro_f1": (2 * hits_RC / (true_RC + told_RC)).mean(1),
        "auroc": np.mean(areas, axis=0),
        "calibration_error": np.abs(weights_RN @ off_NB).sum(1) / weights_RN.sum(1),
        **recalls,
    }


def _area(positive_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the curve (R,): how often a positive scores above a negative, ties counting half."""
    order = np.argsort(score_N)
    score, positive, weights = score_N[order], positive_N[order], weights_RN[:, order]
    negatives = np.pad(np.cumsum(weights * ~positive, axis=1), ((0, 0), (1, 0)))
    below, upto = (negatives[:, np.searchsorted(score, score[positive], side)] for side in ("left", "right"))
    of_positives = weights[:, positive]
    return (of_positives * (below + upto)).sum(1) / 2 / of_positives.sum(1) / negatives[:, -1]


def means(truth: Truth, probabilities_kNC: np.ndarray) -> dict[str, float]:
    """Scores of the pictures as they are."""
    found = weighted(truth, probabilities_kNC, np.ones((1, len(truth.labels))))
    return {name: float(values.mean()) for name, values in found.items()}


def resampled(truth: Truth, arms: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Scores of each arm, (R,), with pictures of each class and seeds drawn with replacement, the same for all arms."""
    rng, k, found = np.random.default_rng(truth.seed), len(arms[0]), []
    for count in _portions(truth):
        weights_RN = np.empty((count, len(truth.labels)))
        for one in np.unique(truth.labels):
            places = np.flatnonzero(truth.labels == one)
            weights_RN[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), count)
        seeds_Rk = rng.multinomial(k, np.full(k, 1 / k), count) / k
        scored = [weighted(truth, arm, weights_RN) for arm in arms]
        found.append([{name: (x * seeds_Rk).sum(1) for name, x in one.items()} for one in scored])
    return [{name: np.concatenate([one[i][name] for one in found]) for name in found[0][i]} for i in range(len(arms))]


def _portions(truth: Truth) -> Iterator[int]:
    """How many resamples to make at a time, one after another."""
    together = max(1, TOGETHER // len(truth.labels))
    yield from (min(together, truth.resamples - start) for start in range(0, truth.resamples, together))


def permuted(truth: Truth, arm: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Two-sided p of each score's difference: of each picture, either arm's predictions may be the other's.

    All seeds' predictions of a picture change sides together, as they are not independent (Good 2005, chapter 3).
    """
    rng, n = np.random.default_rng(truth.seed), len(truth.labels)
    both, twice = np.concatenate([arm, other], axis=1), truth._replace(labels=np.tile(truth.labels, 2))

    def apart(swapped_RN: np.ndarray) -> dict[str, np.ndarray]:
        kept_RN = 1.0 - swapped_RN
        one, two = (weighted(twice, both, np.hstack(sides)) for sides in ((kept_RN, swapped_RN), (swapped_RN, kept_RN)))
        return {name: np.abs(one[name].mean(1) - two[name].mean(1)) for name in one}

    seen, beyond = apart(np.zeros((1, n))), dict[str, int]()
    for count in _portions(truth):
        for name, values in apart(rng.integers(0, 2, (count, n)).astype(np.float64)).items():
            # To rounding: what swaps nothing that differs is as far apart.
            beyond[name] = beyond.get(name, 0) + int((values >= seen[name] - 1e-12).sum())
    return {name: (1 + count) / (1 + truth.resamples) for name, count in beyond.items()}


def estimates(truth: Truth, arms: dict[str, np.ndarray], base: str) -> Named:
    """<arm>/<score> and, of each arm but `base`, <arm>/difference/<score>: how far it is above that of `base`.

    Args:
      arms: by name, (k, N, C) probabilities of the classes.
    """
    whole = {name: means(truth, arm) for name, arm in arms.items()}
    again = dict(zip(arms, resampled(truth, list(arms.values())), strict=True))
    counts = {"n": len(truth.labels), "seeds": len(arms[base])}
    for name, arm in arms.items():
        for score, value in whole[name].items():
            yield f"{name}/{score}", {"value": value, "interval": _interval(again[name][score]), **counts}
        if name != base:
            for score, p in permuted(truth, arm, arms[base]).items():
                value = whole[name][score] - whole[base][score]
                interval = _interval(again[name][score] - again[base][score])
                told = {"p": p, "note": f"above '{base}', p = {p:.2g}"}
                yield f"{name}/difference/{score}", {"value": value, "interval": interval, **counts, **told}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
