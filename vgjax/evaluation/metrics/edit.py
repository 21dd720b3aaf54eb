"""Edit: one channel of a real picture is changed in words; does it obey, and does the other channel stay as it was?

Pictures keep their own factors and their own noise (`vgjax.sample.Sampler.edit`); a redraw, of which nothing is
asked, is what the kept channel is compared with. The words are of another case's levels.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vgjax import seeds
from vgjax.data.entries import Levels
from vgjax.data.read.decode import to_png
from vgjax.evaluation.metrics import swap
from vgjax.evaluation.metrics.base import Metric, Options, Results, Seen, TestCase, other_case
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import CHANNELS, Request

REDRAWN = "redrawn"
EDITED = {channel: f"edited_{channel}" for channel in CHANNELS}


def redrawn(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The picture, of which nothing is asked."""
    return [Request(source=to_png(case.image)) for case in cases]


def edited(channel: str, cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The picture, and of one channel all that is known of the other case."""
    found = []
    for i, case in enumerate(cases):
        text = swap.channel_text(np.random.default_rng([options.seed, i]), options, other_case(cases, i), channel)
        asked: dict[str, Any] = {channel: text, "seed": seeds.derive(options.seed, "evaluate", EDITED[channel], i)}
        found.append(Request(source=to_png(case.image), **asked))
    return found


def right(found: Sequence[Levels], wanted: Sequence[Mapping[str, str | None]], factors: Sequence[str]) -> np.ndarray:
    """Share of the factors, among those of which a level is wanted, that read so; of each picture that has any."""
    rows = [[one.get(f) == want[f] for f in factors if want.get(f)] for one, want in zip(found, wanted, strict=True)]
    return np.array([np.mean(row) for row in rows if row])


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """By channel: edit/accuracy and edit/effect where it was asked for; kept, redrawn and spill where it was not.

    accuracy: share of its factors that read as asked; effect: the same of those alone that read otherwise before.
    kept: share of the factors that read as in the source; redrawn: the same of an unedited redraw.
    spill: redrawn less kept, picture by picture: what the edit changes though nobody asked for it.
    """
    before = real.levels
    others = [other_case(cases, i).levels for i in range(len(cases))]
    new = [{f: lv for f, lv in o.items() if was.get(f) != lv} for o, was in zip(others, before, strict=True)]
    said = any(case.requested for case in cases)
    for asked, kept in (CHANNELS, CHANNELS[::-1]):
        changed, stays = ([f for f, own in options.reader.channels.items() if own == c] for c in (asked, kept))
        after = drawn[EDITED[asked]].levels
        told = {
            f"accuracy/{asked}": right(after, others, changed) if said else np.empty(0),
            f"effect/{asked}": right(after, new, changed) if said else np.empty(0),
            f"kept/{kept}": right(after, before, stays),
            f"redrawn/{kept}": right(drawn[REDRAWN].levels, before, stays),
            f"spill/{kept}": right(drawn[REDRAWN].levels, before, stays) - right(after, before, stays),
        }
        yield from ((f"edit/{name}", mean_estimate(values, options)) for name, values in told.items() if values.size)


METRIC = Metric(
    measure,
    {REDRAWN: redrawn, **{EDITED[channel]: functools.partial(edited, channel) for channel in CHANNELS}},
    needs=("edits",),
    most=512,
)
