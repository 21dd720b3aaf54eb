"""Stage 1 on the real test pictures: Dice of the segmentor, error of the reconstruction."""

from collections.abc import Mapping, Sequence

import numpy as np

from vgjax import losses
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Results, Seen, TestCase


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """prior/dice and prior/reconstruction_l1 (of intensities in [-1, 1])."""
    if real.lesion is None or real.reconstruction is None:
        raise ValueError("the metric 'prior' needs what stage 1 makes of the real pictures")
    masks = np.stack([case.mask for case in cases]) > 0
    dice = np.asarray(losses.dice_score(masks, real.lesion > 0.5))
    error = np.abs(real.reconstruction.astype(float) - real.pictures).mean() / 127.5
    yield "prior/dice", Estimate(float(dice.mean()), len(cases))
    yield "prior/reconstruction_l1", Estimate(float(error), len(cases))


METRIC = Metric(measure, needs=("prior",))
