"""Separation: does a channel follow its own words and no others, however they are put and combined?

Pictures of a case share their noise, so that they differ by their text alone. What rewording the same facts changes is
the floor that a change of the other channel's text is compared with.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vgjax import seeds
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Seen, TestCase, other_case
from vgjax.evaluation.metrics.control import named_hits
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import CHANNELS, Request

PLAIN, REWORDED = "plain", "reworded"
STYLES = ("new_patterns", "new_wordings")
OTHER = {channel: f"other_{channel}" for channel in CHANNELS}


def _request(text: str, place: int, options: Options) -> Request:
    return Request(prompt=text, seed=seeds.derive(options.seed, "evaluate", "separation", place))


def _described(
    levels: Mapping[str, str], case: TestCase, place: int, options: Options, draw: int, style: str = ""
) -> str:
    """The factors that the case's caption names, at these levels, in words of the given draw.

    Where captions are the dataset's own, nothing is known to be named, and the caption stays as it is.
    """
    if not case.requested:
        return case.caption
    return options.reader.describe(
        levels, np.random.default_rng([options.seed, place, draw]), list(case.requested), style
    )


def plain(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """What the case names."""
    return [_request(_described(case.levels, case, i, options, 0), i, options) for i, case in enumerate(cases)]


def reworded(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The same in other known words and sentences."""
    return [_request(_described(case.levels, case, i, options, 1), i, options) for i, case in enumerate(cases)]


def other(channel: str, cases: Sequence[TestCase], options: Options) -> list[Request]:
    """One channel's facts those of another case, the other channel's as they were."""
    found = []
    for i, case in enumerate(cases):
        levels = other_case(cases, i).levels
        taken = {f: level for f, level in levels.items() if options.reader.described[f] == channel and f in case.levels}
        mixed = {**case.levels, **taken}
        found.append(_request(_described(mixed, case, i, options, 0), i, options))
    return found


def styled(style: str, cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The same in sentences or words that training never saw."""
    return [
        _request(_described(case.levels, case, i, options, 2, style=style), i, options) for i, case in enumerate(cases)
    ]


def changed(before: Seen, after: Seen, factors: Sequence[str]) -> np.ndarray:
    """Share of the factors that read differently, a value a picture (N,)."""
    pairs = zip(before.levels, after.levels, strict=True)
    return np.array([np.mean([one.get(f) != two.get(f) for f in factors]) for one, two in pairs])


def right(cases: Sequence[TestCase], seen: Seen, options: Options) -> list[float]:
    """Share of the named factors that read as asked for, of each picture that any can be read of."""
    hits = (named_hits(c, levels, options.reader.channels) for c, levels in zip(cases, seen.levels, strict=True))
    return [float(np.mean(row)) for row in hits if row]


def measure_leakage(
    cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options
) -> Iterator[tuple[str, Estimate]]:
    """leakage/<channel>: how much more of a channel's readings the other channel's text changes than a rewording does.

    leakage_other and leakage_reworded give both shares.
    """
    for channel in CHANNELS if any(case.requested for case in cases) else ():
        factors = [factor for factor, own in options.reader.channels.items() if own == channel]
        if not factors:
            continue
        others = drawn[next(name for c, name in OTHER.items() if c != channel)]
        told, floor = changed(drawn[PLAIN], others, factors), changed(drawn[PLAIN], drawn[REWORDED], factors)
        yield f"leakage/{channel}", mean_estimate(told - floor, options)
        yield f"leakage_other/{channel}", mean_estimate(told, options)
        yield f"leakage_reworded/{channel}", mean_estimate(floor, options)


def measure_wording(
    cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options
) -> Iterator[tuple[str, Estimate]]:
    """<style>/accuracy beside plain/accuracy, and <style>/same: share of readings that are those of known words."""
    yield "plain/accuracy", mean_estimate(right(cases, drawn[PLAIN], options), options)
    for style in STYLES:
        same = 1.0 - changed(drawn[PLAIN], drawn[style], list(options.reader.channels))
        yield f"{style}/accuracy", mean_estimate(right(cases, drawn[style], options), options)
        yield f"{style}/same", mean_estimate(same, options)


LEAKAGE = Metric(
    measure_leakage,
    {PLAIN: plain, REWORDED: reworded, **{OTHER[c]: functools.partial(other, c) for c in CHANNELS}},
    needs=("words",),
)
WORDING = Metric(
    measure_wording,
    {PLAIN: plain, **{style: functools.partial(styled, style) for style in STYLES}},
    needs=("words", *STYLES),
)
