"""The file of metrics, and intervals."""

import json

import numpy as np
import pytest

from vgjax.evaluation.metrics import numbers
from vgjax.evaluation.metrics.base import Estimate, Metric, Seen

RUN = {
    "config": {"data.name": "phantom", "widths": (8, 16), "rate": np.float32(0.5)},
    "command": "python -m vgjax.main --mode=run",
    "commit": "0" * 40,
    "hardware": "1 x cpu",
    "seed": 0,
    "fingerprint/prior": "ab" * 32,
}


def test_metrics_are_flat_numbers_beside_their_provenance(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    numbers.write_metrics(path, {"control/accuracy_mean": np.float32(0.25), "control/n": 64}, RUN)
    read = json.loads(path.read_text())
    assert read["control/accuracy_mean"] == 0.25 and read["control/n"] == 64
    assert read["fingerprint/prior"] == "ab" * 32 and read["seed"] == 0
    assert read["config"] == {"data.name": "phantom", "widths": [8, 16], "rate": 0.5}
    assert set(read) == {"control/accuracy_mean", "control/n", *RUN}


@pytest.mark.parametrize(
    ("values", "told", "message"),
    [
        ({"fid": float("nan")}, RUN, "'fid' is nan"),
        ({"fid": np.float32("inf")}, RUN, "'fid' is inf"),
        ({"fid": "low"}, RUN, "'fid' is not a number"),
        ({"fid": True}, RUN, "'fid' is not a number"),
        ({"fid": np.zeros(2)}, RUN, "'fid' is not a number"),
        ({"seed": 1.0}, RUN, "seed is both"),
        ({}, {**RUN, "fingerprint/prior": 3.0}, "fingerprint/prior"),
        ({}, {**RUN, "config": {"rate": float("nan")}}, "not JSON compliant"),
        ({}, {**RUN, "config": {"key": object()}}, "object"),
        ({}, {key: value for key, value in RUN.items() if key != "commit"}, "lacks commit"),
    ],
)
def test_refused_metrics_leave_the_old_file(tmp_path, values, told, message):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises((TypeError, ValueError), match=message):
        numbers.write_metrics(path, values, told)
    assert path.read_text() == "old"


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.random((150, 40)) < 0.7
    intervals = [numbers.bootstrap_interval(draw, seed=index, n=150, level=0.8) for index, draw in enumerate(draws)]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.7 < covered < 0.9
    wide = numbers.bootstrap_interval(draws[0], seed=3, level=0.99)
    narrow = numbers.bootstrap_interval(draws[0], seed=3, level=0.5)
    assert wide[0] < narrow[0] <= narrow[1] < wide[1]
    assert numbers.bootstrap_interval(draws[0], seed=3) == numbers.bootstrap_interval(draws[0], seed=3)
    assert numbers.bootstrap_interval(np.ones(5), seed=0) == (1.0, 1.0)
    assert numbers.bootstrap_interval([0.25], seed=0) == (0.25, 0.25)


@pytest.mark.parametrize(("values", "level"), [([], 0.9), ([1.0, np.nan], 0.9), ([1.0], 1.0), (np.ones((2, 2)), 0.9)])
def test_bootstrap_interval_refuses(values, level):
    with pytest.raises(ValueError, match="bootstrap_interval"):
        numbers.bootstrap_interval(values, seed=0, level=level)


def test_a_metric_of_few_cases_looks_at_the_first_ones_and_at_their_real_pictures():
    def run(cases, drawn, real, options):
        yield "cases", Estimate(len(cases), len(real.levels))
        yield "rest", Estimate(len(real.pictures), len(real.factors["anatomy"]))

    pictures = np.zeros((5, 2, 2, 3), np.uint8)
    real = Seen(pictures, [{}] * 5, None, pictures[..., 0], pictures, {"anatomy": np.zeros((5, 7))})
    few, every = Metric(run, most=2), Metric(run)
    assert [e[:2] for _, e in few.estimates("abcde", {}, real, None)] == [(2, 2), (2, 2)]
    assert [e[:2] for _, e in every.estimates("abcde", {}, real, None)] == [(5, 5), (5, 5)]
