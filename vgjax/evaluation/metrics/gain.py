"""Gain: accuracy under a picture's own caption minus accuracy under another picture's."""

from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.evaluation.metrics.base import CAPTIONS, Estimate, Metric, Options, Results, Seen, TestCase, caption_requests
from vgjax.evaluation.metrics.control import hits
from vgjax.evaluation.metrics.numbers import bootstrap_interval
from vgjax.types import Request

OTHERS = "other_captions"


def other_requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """For every case another one's caption, `draws` times over, each time another assignment."""
    rng, count = np.random.default_rng(options.seed), len(cases)
    orders = [rng.permutation(count) for _ in range(options.draws)]
    # A single cycle: nobody keeps its own caption.
    return [cases[i].request() for order in orders for i in order[(np.argsort(order) + 1) % count]]


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """control_true, control_shuffled and control_gain by factor.

    Means over `draws` pictures of each caption; intervals resample captions.
    """
    for factor in options.reader.channels:
        if not any(factor in case.requested for case in cases):
            continue
        true, other = (_mean_hits(cases, drawn[name], factor, options.draws) for name in (CAPTIONS, OTHERS))
        interval = bootstrap_interval(true - other, options.seed, options.resamples)
        yield f"control_true/{factor}", Estimate(float(true.mean()), len(true))
        yield f"control_shuffled/{factor}", Estimate(float(other.mean()), len(other))
        yield f"control_gain/{factor}", Estimate(float((true - other).mean()), len(true), interval)


def _mean_hits(cases: Sequence[TestCase], seen: Seen, factor: str, draws: int) -> np.ndarray:
    """Of each caption that names the factor, over its draws."""
    n = len(cases)
    return np.mean([hits(cases, seen.levels[n * draw : n * (draw + 1)], factor) for draw in range(draws)], axis=0)


METRIC = Metric(measure, {CAPTIONS: caption_requests, OTHERS: other_requests})
