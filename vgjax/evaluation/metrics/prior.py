"""Stage 1 on the real test pictures: Dice of the segmentor, error of the reconstruction."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from vgjax import losses, pipeline
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """prior/dice and prior/reconstruction_l1 (of intensities in [-1, 1])."""
    if real.segmentation is None or real.reconstruction is None:
        raise ValueError("the metric 'prior' needs what stage 1 makes of the real pictures")
    pictures = pipeline.resized(jnp.asarray(real.pictures, jnp.float32), real.reconstruction.shape[1])
    error = np.abs(real.reconstruction - np.asarray(pictures, np.float64)).mean() / 127.5
    yield "prior/dice", mean_estimate(dice(cases, real.segmentation), options)
    yield "prior/reconstruction_l1", Estimate(float(error), len(cases))


def dice(cases: Sequence[TestCase], probability: np.ndarray) -> np.ndarray:
    """Dice coefficients (N,) of the lesion's probability (N, h, w) with the cases' masks."""
    masks = pipeline.resized_mask(jnp.stack([case.mask > 0 for case in cases]), probability.shape[1])
    return np.asarray(losses.dice_score(np.asarray(masks) > 0, probability > 0.5))


METRIC = Metric(measure, needs=("prior",))
