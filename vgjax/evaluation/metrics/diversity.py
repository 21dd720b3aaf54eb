"""Diversity: how far apart the pictures of one caption lie, and whether they only repeat what was trained on.

The distance of two pictures is the root mean square difference of their intensities, in units of white, at 32 pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.evaluation.distances import distances
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.evaluation.neighbours import nearest
from vgjax.evaluation.networks import reduced
from vgjax.types import Request

SAME = "same_caption"
CASES, DRAWS = 20, 16  # captions, pictures of each


def requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """`DRAWS` pictures of each of the first captions."""
    return [case.request() for case in cases[:CASES] for _ in range(DRAWS)]


def apart(pictures: np.ndarray) -> float:
    """Mean distance of the pairs among (N, F)."""
    return float(distances(pictures, pictures)[np.triu_indices(len(pictures), 1)].mean())


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """diversity/pairs: mean distance of pictures of one caption; diversity/nearest: to the nearest training picture.

    diversity_real gives the same of real held-out pictures, whose pairs are of different captions.
    """
    seen = reduced(drawn[SAME].pictures)
    held_out, trained = reduced(real.pictures), reduced(options.training())
    yield "diversity/pairs", mean_estimate([apart(one) for one in seen.reshape(-1, DRAWS, seen.shape[1])], options)
    yield "diversity_real/pairs", Estimate(apart(held_out), len(held_out))
    yield "diversity/nearest", mean_estimate(nearest(seen, trained).distances[:, 0], options)
    yield "diversity_real/nearest", mean_estimate(nearest(held_out, trained).distances[:, 0], options)


METRIC = Metric(measure, {SAME: requests})
