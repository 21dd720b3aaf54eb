"""Style: how near is a reference picture's colour and brightness, where it gives the modality, and where words do?"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vgjax import seeds
from vgjax.data.read.decode import to_png
from vgjax.evaluation.metrics import swap
from vgjax.evaluation.metrics.base import Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import Request

SETS = {"reference": "style_reference", "text": "style_text"}


def requests(way: str, cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The case's anatomy in words, its modality from its picture or in words; of one noise."""
    found = []
    for i, case in enumerate(cases):
        text = functools.partial(swap.channel_text, np.random.default_rng([options.seed, i]), options, case)
        asked = Request(anatomy=text("anatomy"), seed=seeds.derive(options.seed, "evaluate", "style", i))
        style: dict[str, Any] = {"modality": text("modality")}
        found.append(dataclasses.replace(asked, **(style if way == "text" else {"modality_image": to_png(case.image)})))
    return found


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """style/colour, style/brightness by way: absolute error, in 8-bit levels, of mean R, G and B, and of their mean."""
    colours = lambda seen: seen.pictures.astype(float).mean((1, 2))  # (N, 3)
    for way, name in SETS.items():
        error = colours(drawn[name]) - colours(real)
        yield f"style/colour/{way}", mean_estimate(np.abs(error).mean(1), options)
        yield f"style/brightness/{way}", mean_estimate(np.abs(error.mean(1)), options)


METRIC = Metric(
    measure,
    {name: functools.partial(requests, way) for way, name in SETS.items()},
    needs=("masks",),
    most=512,
)
