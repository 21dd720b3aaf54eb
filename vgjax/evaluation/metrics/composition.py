"""Composition: pairs of levels that training never saw together, beside matched pairs that it did."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vgjax import seeds
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import Request

SETS = {"unseen_pairs": True, "seen_pairs": False}


def pair_levels(count: int, options: Options) -> list[tuple[tuple[str, str], dict[str, str], dict[str, str]]]:
    """For each picture the two factors of a held-out pair, levels that hold the pair, and the same without it.

    The two differ in the pair's second factor alone, and neither holds another pair.
    """
    reader, rng = options.reader, np.random.default_rng([options.seed, 1])
    held = lambda levels: [pair for pair in reader.held_out if all(levels[f] == level for f, level in pair)]
    found: list[tuple[tuple[str, str], dict[str, str], dict[str, str]]] = []
    while len(found) < count:
        pair = reader.held_out[len(found) % len(reader.held_out)]
        unseen = {factor: str(rng.choice(levels)) for factor, levels in reader.levels.items()} | dict(pair)
        second = pair[1][0]
        seen = unseen | {second: str(rng.choice(reader.levels[second]))}
        if held(unseen) == [pair] and not held(seen):
            found.append(((pair[0][0], second), unseen, seen))
    return found


def requests(unseen: bool, cases: Sequence[TestCase], options: Options) -> list[Request]:
    """As many as there are cases; both sets name the same factors and start from the same noise."""
    made = []
    for place, (_, held, plain) in enumerate(pair_levels(len(cases), options)):
        text = options.reader.describe(
            held if unseen else plain, np.random.default_rng([options.seed, 2, place]), list(held)
        )
        made.append(Request(prompt=text, seed=seeds.derive(options.seed, "evaluate", "composition", place)))
    return made


def measure(
    cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options
) -> Iterator[tuple[str, Estimate]]:
    """composition/unseen, /seen: accuracy of all factors; /gap: seen less unseen; /pair_gap: of the pair alone."""
    right: dict[bool, list[float]] = {True: [], False: []}
    pair_right: dict[bool, list[float]] = {True: [], False: []}
    for place, (pair, *asked) in enumerate(pair_levels(len(cases), options)):
        for unseen, levels in zip((True, False), asked, strict=True):
            read = drawn["unseen_pairs" if unseen else "seen_pairs"].levels[place]
            hits = {factor: read.get(factor) == level for factor, level in levels.items()}
            right[unseen].append(float(np.mean(list(hits.values()))))
            pair_right[unseen].append(float(np.mean([hits[factor] for factor in pair])))
    yield "composition/unseen", mean_estimate(right[True], options)
    yield "composition/seen", mean_estimate(right[False], options)
    yield "composition/gap", mean_estimate(np.subtract(right[False], right[True]), options)
    yield "composition/pair_gap", mean_estimate(np.subtract(pair_right[False], pair_right[True]), options)


METRIC = Metric(
    measure,
    {name: functools.partial(requests, unseen) for name, unseen in SETS.items()},
    needs=("words", "held_out"),
)
