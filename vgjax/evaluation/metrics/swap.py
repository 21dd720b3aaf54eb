"""Swap: the anatomy of one text with the modality of another; each picture should show both."""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from vgjax import seeds
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Results, Seen, TestCase
from vgjax.types import Request

SWAP = "swap"
ROWS, COLUMNS = 4, 5


def grid(cases: Sequence[TestCase]) -> tuple[Sequence[TestCase], Sequence[TestCase]]:
    """Cases of the rows (anatomy) and of the columns (modality): the first, and the next where there are more."""
    return cases[:ROWS], (cases[ROWS:] or cases)[:COLUMNS]


def channel_text(rng: np.random.Generator, options: Options, case: TestCase, channel: str) -> str:
    """All that is known of one channel of a case."""
    named = [factor for factor in case.levels if options.reader.described[factor] == channel]
    # Where captions are the dataset's own, the model has learned those words and no others.
    return options.reader.describe(case.levels, rng, named) if case.requested else case.caption


def requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """A grid of pictures from one noise, row by row: rows share their anatomy text, columns their modality text."""
    rng = np.random.default_rng(options.seed)
    text = functools.partial(channel_text, rng, options)
    rows, columns = grid(cases)
    anatomy, modality = [text(case, "anatomy") for case in rows], [text(case, "modality") for case in columns]
    seed = seeds.derive(options.seed, "evaluate", SWAP, 0)
    return [Request(anatomy=row, modality=column, seed=seed) for row in anatomy for column in modality]


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """swap/anatomy and swap/modality: share of readings that are those of the row's or the column's case."""
    rows, columns = grid(cases)
    pairs = list(itertools.product(rows, columns))
    for place, channel in enumerate(("anatomy", "modality")):
        right = [
            levels.get(factor) == case.levels[factor]
            for case, levels in zip([pair[place] for pair in pairs], drawn[SWAP].levels, strict=True)
            for factor, its_channel in options.reader.channels.items()
            if its_channel == channel and case.requested and factor in case.levels
        ]
        if right:
            yield f"swap/{channel}", Estimate(float(np.mean(right)), len(right))


METRIC = Metric(measure, {SWAP: requests}, needs=("words",))
