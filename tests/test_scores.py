"""Scores of predicted classes: those of scikit-learn and of hands; intervals and tests that keep their level."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from vgjax.evaluation import scores

CLASSES = ("a", "b", "c")


def predictions(rng, labels, skill, seeds=3, classes=3):
    """Softmax of noise to which `skill` is added at the class."""
    logits = rng.normal(size=(seeds, len(labels), classes)) + skill * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def truth_of(labels, resamples=200, classes=CLASSES):
    return scores.Truth(np.asarray(labels), classes, seed=0, resamples=resamples)


def test_scores_are_those_of_scikit_learn_of_pictures_that_count_several_times():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 20 + [2] * 7)
    p = np.round(predictions(rng, labels, 1.0), 1) + 1e-6  # with ties
    p /= p.sum(-1, keepdims=True)
    weights = np.stack([np.ones(57), rng.integers(0, 4, 57)]).astype(float)
    found = scores.weighted(truth_of(labels), p, weights)
    for seed in range(3):
        for row, times in enumerate(weights.astype(int)):
            y, q = np.repeat(labels, times), np.repeat(p[seed], times, axis=0)
            told = q.argmax(1)
            expected = {
                "balanced_accuracy": metrics.balanced_accuracy_score(y, told),
                "macro_f1": metrics.f1_score(y, told, average="macro"),
                "auroc": metrics.roc_auc_score(y, q, multi_class="ovr", average="macro"),
                **{f"recall/{c}": metrics.recall_score(y == i, told == i) for i, c in enumerate(CLASSES)},
            }
            for name, value in expected.items():
                assert found[name][row, seed] == pytest.approx(value, abs=1e-12), name


def test_calibration_error_of_a_hand():
    # One picture in (0.6, 0.667], which is right; one in (0.667, 0.733], wrong; two in (0.933, 1], both right.
    p = np.array([[[0.65, 0.35], [0.68, 0.32], [1.0, 0.0], [0.05, 0.95]]])
    found = scores.means(truth_of([0, 1, 0, 1], classes=("a", "b")), p)
    assert found["calibration_error"] == pytest.approx((0.35 + 0.68 + 0.05) / 4)
    assert (found["recall/a"], found["recall/b"], found["balanced_accuracy"]) == (1.0, 0.5, 0.75)


def test_classes_that_no_test_picture_shows_do_not_count():
    labels = np.array([0, 0, 2, 2])
    p = np.array([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]])
    found = scores.means(truth_of(labels), p)
    assert found["balanced_accuracy"] == 0.75 and "recall/b" not in found and found["auroc"] == pytest.approx(7 / 8)


def test_intervals_are_those_of_scipy_where_there_is_one_seed():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(2), 60)
    p = predictions(rng, labels, 1.0, seeds=1, classes=2)
    truth = truth_of(labels, resamples=4000, classes=("a", "b"))
    found = dict(scores.estimates(truth, {"real": p}, "real"))
    right = (p[0].argmax(1) == labels).astype(float)
    mean_of = lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2
    expected = scipy.stats.bootstrap(
        (right[:60], right[60:]), mean_of, n_resamples=2000, method="percentile", rng=2, vectorized=True
    ).confidence_interval
    row = found["real/balanced_accuracy"]
    assert row["interval"] == pytest.approx((expected.low, expected.high), abs=0.012)
    assert (row["n"], row["seeds"]) == (120, 1) and "real/difference/auroc" not in found


def test_the_interval_is_wider_where_seeds_differ():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(3), 100)
    good, bad = (predictions(rng, labels, skill, seeds=2) for skill in (4.0, 0.0))
    widths = []
    for arm in (np.concatenate([good, good]), np.concatenate([good, bad])):
        low, high = dict(scores.estimates(truth_of(labels), {"x": arm}, "x"))["x/balanced_accuracy"]["interval"]
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_a_difference_is_told_from_none():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), 100)
    arms = {"real": predictions(rng, labels, 1.0), "better": predictions(rng, labels, 2.0)}
    found = dict(scores.estimates(truth_of(labels), arms, "real"))
    row = found["better/difference/balanced_accuracy"]
    assert row["interval"][0] > 0 and row["p"] == 1 / 201
    assert row["value"] == found["better/balanced_accuracy"]["value"] - found["real/balanced_accuracy"]["value"]
    assert scores.permuted(truth_of(labels), arms["real"], arms["real"])["auroc"] == 1.0


def test_the_permutation_test_is_scipys_and_keeps_its_level():
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(2), 40)
    truth = truth_of(labels, resamples=2000, classes=("a", "b"))
    one, other = (predictions(rng, labels, skill, seeds=1, classes=2) for skill in (1.3, 1.0))
    right = [(x[0].argmax(1) == labels).astype(float) for x in (one, other)]
    expected = scipy.stats.permutation_test(
        right, lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=2000, rng=5
    ).pvalue
    assert scores.permuted(truth, one, other)["balanced_accuracy"] == pytest.approx(expected, abs=0.05)
    few = truth._replace(resamples=39)
    p = [
        scores.permuted(few, *(predictions(rng, labels, 1.0, seeds=2, classes=2) for _ in "ab"))["auroc"]
        for _ in range(60)
    ]
    assert 0 < np.mean(np.array(p) <= 0.1) <= 0.2
