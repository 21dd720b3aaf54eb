"""Control: does the generated picture show what its text asked for, factor by factor?"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vgjax.data.entries import Levels
from vgjax.evaluation.metrics.base import CAPTIONS, Estimate, Metric, Options, Results, Seen, TestCase, caption_requests
from vgjax.evaluation.metrics.numbers import bootstrap_interval, mean_estimate
from vgjax.evaluation.metrics.prior import dice


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """control/accuracy, control/score (0: guessing, 1: always right), control/chance, control_real by factor.

    reader/dice is that of the segmentor which factors are read with, on real pictures; control_real is its ceiling.
    control/accuracy_joint is the share of captions all of whose named factors are right.
    Over one picture a caption; of factors that at least one caption names, and not all of them at the same level.
    """
    if options.reader.from_mask and real.lesion is not None:
        yield "reader/dice", mean_estimate(dice(cases, real.lesion), options)
    accuracies: dict[str, list[float]] = {}
    answers: list[np.ndarray] = []
    read = drawn[CAPTIONS].levels[: len(cases)]
    for factor, channel in options.reader.channels.items():
        right = hits(cases, read, factor)
        if not len(right) or (chance := options.reader.chance([case.requested for case in cases], factor)) == 1:
            continue
        accuracy, n = float(right.mean()), len(right)
        interval = bootstrap_interval(right, options.seed, options.resamples)
        yield f"control/accuracy/{factor}", Estimate(accuracy, n, interval)
        yield f"control/score/{factor}", Estimate((accuracy - chance) / (1 - chance), n)
        yield f"control/chance/{factor}", Estimate(chance, n)
        yield f"control_real/{factor}", Estimate(float(hits(cases, real.levels, factor).mean()), n)
        accuracies.setdefault(channel, []).append(accuracy)
        named = np.array([factor in case.requested for case in cases])
        answers.append(np.full(len(cases), np.nan))
        answers[-1][named] = right
    for channel, values in accuracies.items():
        yield f"control/accuracy_mean_{channel}", Estimate(float(np.mean(values)), len(cases))
    if accuracies:
        mean = np.concatenate(list(accuracies.values())).mean()
        yield "control/accuracy_mean", Estimate(float(mean), len(cases), mean_interval(np.stack(answers), options))
        rows = (named_hits(case, levels, options.reader.channels) for case, levels in zip(cases, read, strict=True))
        yield "control/accuracy_joint", mean_estimate([all(row) for row in rows if row], options)


def mean_interval(answers_FN: np.ndarray, options: Options) -> tuple[float, float]:
    """Percentile bootstrap over captions of the mean over factors; an answer is 1, 0 or, where not asked for, NaN."""
    asked_FN, count = ~np.isnan(answers_FN), answers_FN.shape[1]
    rng = np.random.default_rng(options.seed)
    times_RN = rng.multinomial(count, np.full(count, 1 / count), size=options.resamples)
    means_RF = (times_RN @ np.nan_to_num(answers_FN).T) / np.maximum(times_RN @ asked_FN.T, 1)
    low, high = np.percentile(means_RF.mean(1), (2.5, 97.5))
    return float(low), float(high)


def hits(cases: Sequence[TestCase], read: Sequence[Levels], factor: str) -> np.ndarray:
    """1.0 where the level read is the one asked for, over the captions that name the factor; unreadable is wrong."""
    asked = [(case.requested, levels) for case, levels in zip(cases, read, strict=True) if factor in case.requested]
    return np.array([float(requested[factor] == levels.get(factor)) for requested, levels in asked])


def named_hits(case: TestCase, read: Levels, readable: Collection[str]) -> list[bool]:
    """Of each factor that the caption names and that can be read, whether the level read is the one asked for."""
    return [read.get(factor) == level for factor, level in case.requested.items() if factor in readable]


METRIC = Metric(measure, {CAPTIONS: caption_requests})
