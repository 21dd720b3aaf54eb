"""Marginal: what a text leaves open varies as in the data over draws of it, and what it names stays."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.data.entries import Levels
from vgjax.evaluation.metrics.base import Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import Request

DRAWS = "texts_repeated"
TEXTS, TIMES = 32, 16  # captions, and pictures of each under seeds of their own


def requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The first captions, each several times in a row."""
    return [case.request() for case in cases[:TEXTS] for _ in range(TIMES)]


def distance(read: Sequence[Levels], factor: str, shares: Mapping[str, float]) -> float:
    """Total variation between the levels read and their shares in the data; unreadable is a level of its own."""
    counts = Counter(levels.get(factor) for levels in read)
    return sum(abs(counts[level] / len(read) - shares.get(level or "", 0.0)) for level in {*counts, *shares}) / 2


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """marginal/<factor>: distance of a text's draws from the test pictures' levels, over texts that leave it open.

    marginal_real/<factor> is that of as many real pictures, read alike; /distance are means over texts and factors.
    marginal/asked, marginal/majority: share of a text's draws in which a named factor is as asked, as in most draws.
    Test pictures stand for the training's: levels are as frequent in both, but for pairs kept out of training.
    """
    rng, asked, majority = np.random.default_rng([options.seed, 3]), [], []
    distances: dict[str, list[float]] = {}
    for place, case in enumerate(cases[:TEXTS] if any(case.requested for case in cases) else ()):
        read = drawn[DRAWS].levels[place * TIMES : (place + 1) * TIMES]
        for factor in options.reader.channels:
            if factor in case.requested:
                counts = Counter(levels.get(factor) for levels in read)
                asked.append(counts[case.requested[factor]] / TIMES)
                majority.append(max(counts.values()) / TIMES)
            elif known := Counter(case.levels[factor] for case in cases if factor in case.levels):
                shares = {level: count / known.total() for level, count in known.items()}
                others = [real.levels[i] for i in rng.choice(len(cases), TIMES)]
                for name, levels in (("marginal", read), ("marginal_real", others)):
                    for key in (factor, "distance"):
                        distances.setdefault(f"{name}/{key}", []).append(distance(levels, factor, shares))
    for name, values in distances.items():
        yield name, mean_estimate(values, options)
    if asked:
        yield "marginal/asked", mean_estimate(asked, options)
        yield "marginal/majority", mean_estimate(majority, options)


METRIC = Metric(measure, {DRAWS: requests}, needs=("words",))
