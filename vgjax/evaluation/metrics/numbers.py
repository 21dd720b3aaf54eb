"""The metrics of a run: one flat JSON file, and intervals of means."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from vgjax.atomic import write_json
from vgjax.evaluation.metrics.base import Estimate, Options

RESAMPLED = 1 << 24  # values that lie in memory at a time
REQUIRED_PROVENANCE = ("config", "command", "commit", "hardware", "seed")


def write_metrics(path: Path, metrics: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Writes one flat JSON object: every metric and every provenance key at the top level.

    Provenance is at least `REQUIRED_PROVENANCE`, and fingerprints as strings under "fingerprint/<stage>".

    Raises:
      ValueError: a metric is not a finite number, a name is used twice, a provenance key is missing, a fingerprint is
        no string, or a provenance value is not finite.
      TypeError: a provenance value has no JSON form.
    """
    missing = [key for key in REQUIRED_PROVENANCE if key not in provenance]
    if missing:
        raise ValueError(f"{path}: provenance lacks {', '.join(missing)}")
    twice = sorted(set(metrics) & set(provenance))
    if twice:
        raise ValueError(f"{path}: {', '.join(twice)} is both a metric and a provenance key")
    for key, value in provenance.items():
        if key.startswith("fingerprint/") and not isinstance(value, str):
            raise ValueError(f"{path}: '{key}' is {type(value).__name__}, not a string")
    numbers = {name: _finite_number(path, name, metrics[name]) for name in sorted(metrics)}
    write_json(path, {**numbers, **provenance}, allow_nan=False, default=np.generic.item)


def _finite_number(path: Path, name: str, value: Any) -> float | int:
    array = np.asarray(value)
    number = array.item() if array.size == 1 else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{path}: metric '{name}' is not a number ({value!r})")
    if not math.isfinite(number):
        raise ValueError(f"{path}: metric '{name}' is {number}; leave out what could not be measured and note why")
    return number


def bootstrap_interval(values: npt.ArrayLike, seed: int, n: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13).

    Args:
      values: (N,) one value per example, such as 0 or 1 for a wrong or right factor.
      n: number of resamples; the same seed gives the same interval.
      level: coverage, in (0, 1).

    Raises:
      ValueError: no values, a value that is not finite, or `n` or `level` out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or n < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: needs finite (N,) values; got {values.shape}, n={n}, level={level}")
    if np.ptp(values) == 0:  # nothing varies between resamples, nor within a single value
        return float(values[0]), float(values[0])
    batch = max(1, RESAMPLED // values.size)
    low, high = scipy.stats.bootstrap(
        [values], np.mean, n_resamples=n, batch=batch, confidence_level=level, method="percentile", rng=seed
    ).confidence_interval
    return float(low), float(high)


def mean_estimate(values: Sequence[float] | np.ndarray, options: Options) -> Estimate:
    """The mean of values, with its 95 % interval."""
    interval = bootstrap_interval(values, options.seed, options.resamples)
    return Estimate(float(np.mean(values)), len(values), interval)
