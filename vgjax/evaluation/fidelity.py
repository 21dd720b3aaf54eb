"""Fidelity: how near the distribution of drawn pictures is to that of real ones, and whether it is as wide.

Each number stands beside that of real pictures against real ones. fidelity/ compares the drawn pictures with those
whose captions they were drawn from; fidelity_real/ one half of these with the other, the floor; fidelity_halves/ what
was drawn from the captions of the one half with the other: a comparison of equal size, with no caption in common.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vgjax import parallel
from vgjax.atomic import write_json
from vgjax.config import Config
from vgjax.context import Context, Producer
from vgjax.data.records import Rows, from_png
from vgjax.evaluation import distances, draw, networks
from vgjax.evaluation.metrics.base import CAPTIONS
from vgjax.evaluation.metrics.numbers import bootstrap_interval
from vgjax.provenance import peak_rss_mb
from vgjax.store import StoreError

FEWEST = 50  # pictures of a class, on either side, for numbers of its own
LEAST = 6  # pictures that have five neighbours
PAIRS, CHUNK = 1000, 64  # most pairs of pictures of one class, and how many lie in memory
Named = Iterator[tuple[str, dict[str, Any]]]  # numbers, and what belongs to them, by name


class Side(NamedTuple):
    """Pictures, read when they are looked at, and the class of each."""

    rows: Rows
    labels: np.ndarray

    def picture(self, place: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        return from_png(self.rows[place]["image"])


class Intervals(NamedTuple):
    """How intervals are made: by resampling pictures, or pairs of them."""

    seed: int
    resamples: int

    def mean(self, values: np.ndarray) -> dict[str, Any]:
        """The mean of values with its interval."""
        interval = bootstrap_interval(values, self.seed, self.resamples)
        return {"value": float(values.mean()), "interval": interval, "n": len(values)}


def producers(config: Config) -> dict[str, Producer]:
    """The evaluation "fidelity", where `evaluate.metrics` names it, and the networks that it looks through."""
    if "fidelity" not in config.evaluate.metrics:
        return {}
    made = Producer(
        "fidelity",
        _measure,
        keys=("seed", *(f"evaluate.{name}" for name in ("split", "prompts", "draws", "resamples")), *networks.KEYS),
        needs=("pictures", f"drawn_{CAPTIONS}", *networks.producers(config)),
        files=networks.files,
        collective=True,
    )
    return {**networks.producers(config), made.name: made}


def _measure(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    c, drawn = context.config, draw.drawn_rows(context, CAPTIONS)
    rows = context.rows(["pictures"], c.evaluate.split)
    count, how = min(c.evaluate.prompts, len(rows)), Intervals(c.seed, c.evaluate.resamples)
    if len(drawn) != count * c.evaluate.draws:
        where = context.artefact(f"drawn_{CAPTIONS}").folder
        raise StoreError(f"{where} was drawn of captions that are not all there: delete it and run again")
    labels = np.array([rows[i]["label"] for i in range(count)])
    sides = Side(rows, labels), Side(drawn, np.tile(labels, c.evaluate.draws))
    pairs = [distances.pairs(side.labels, c.seed, PAIRS) for side in sides]
    alike = [similarity(side, *places) for side, places in zip(sides, pairs, strict=True)]
    scales = distances.scales(min(sides[0].picture(0).shape[:2]))
    told = {"net": "", "note": f"pairs of one class, at {scales} of 5 scales"}
    found = {name: row | told for name, row in inside("ms_ssim", sides, pairs, alike, how)} if scales else {}
    for name in c.networks.use:
        net = networks.load(name, context)
        features = real, fake = [net.apply(map(side.picture, range(len(side.labels)))) for side in sides]
        apart = [np.linalg.norm(x[one] - x[other], axis=1) for x, (one, other) in zip(features, pairs, strict=True)]
        numbers = (*compared(real, fake, labels, how), *inside("diversity/*", sides, pairs, apart, how))
        origin = {"net": name, "sha256": net.sha256, "resize": net.resize}
        found |= {key.replace("*", name, 1): row | origin for key, row in numbers}
    if parallel.is_main():
        write_json(folder / "metrics.json", {key: {**row, "split": c.evaluate.split} for key, row in found.items()})
    return {"peak_rss_mb": peak_rss_mb()}


def similarity(side: Side, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """MS-SSIM of the pictures at one place each with those at the other (Odena et al. 2017): low where they vary."""
    stacked = lambda places: np.stack([side.picture(i) for i in places])
    chunks = [slice(start, start + CHUNK) for start in range(0, len(one), CHUNK)]
    return np.concatenate([[], *(distances.ms_ssim(stacked(one[at]), stacked(other[at])) for at in chunks)])


def inside(
    name: str, sides: Sequence[Side], pairs: Sequence[distances.Pairs], values: Sequence[np.ndarray], how: Intervals
) -> Named:
    """name[/class]: the mean of the values of pairs of pictures of one class, and of each class with enough of them."""
    for prefix, side, (one, _), every in zip(("fidelity_real", "fidelity"), sides, pairs, values, strict=True):
        for label in dict.fromkeys(("", *side.labels)):
            chosen = every[side.labels[one] == label] if label else every
            if len(chosen) >= (FEWEST if label else 1):
                yield f"{prefix}/{name}" + f"/{label}" * bool(label), how.mean(chosen)


def compared(real: np.ndarray, drawn: np.ndarray, labels: np.ndarray, how: Intervals) -> Named:
    """frechet, kid, precision, recall, density, coverage /*[/class] of features of real pictures and of drawn ones.

    Args:
      real, drawn: (N, F) and, of the same captions in the same order, once or several times over, (D N, F).
      labels: (N,) classes.
    """
    order = np.random.default_rng(how.seed).permutation(len(real))
    one, other = order[: len(real) // 2], order[len(real) // 2 :][: len(real) // 2]
    again = np.tile(labels, len(drawn) // len(real))
    halves = real[other], labels[other]
    yield from _classes("fidelity", real, labels, drawn, again, how)
    yield from _classes("fidelity_real", *halves, real[one], labels[one], how)
    yield from _classes("fidelity_halves", *halves, drawn[one], labels[one], how)


def _classes(
    prefix: str, real: np.ndarray, labels: np.ndarray, drawn: np.ndarray, again: np.ndarray, how: Intervals
) -> Named:
    """The numbers of all classes together, and of each of which there are enough pictures on both sides."""
    for label in dict.fromkeys(("", *labels)):
        some, others = (real[labels == label], drawn[again == label]) if label else (real, drawn)
        if not label or min(len(some), len(others)) >= FEWEST:
            where = f"/{label}" * bool(label)
            yield from ((f"{prefix}/{name}/*{where}", row) for name, row in _numbers(some, others, how))


def _numbers(real: np.ndarray, drawn: np.ndarray, how: Intervals) -> Named:
    (n_real, features), n = real.shape, len(drawn)
    counts = {"n": n, "n_real": n_real}
    if min(n, n_real) < LEAST:
        note = f"not measured: fewer than {LEAST} pictures"
        for name in ("frechet", "kid", "precision", "recall", "density", "coverage"):
            yield name, {"value": None, "interval": None, **counts, "note": note}
        return
    few = f"too few pictures, under twice the {features} features, which raises it; "
    note = few * (min(n, n_real) < 2 * features) + "no interval: resampling would add to its bias"
    yield "frechet", {"value": distances.frechet(real, drawn), "interval": None, **counts, "note": note}
    value, error = distances.kid(real, drawn, how.seed)
    interval = (value - 1.96 * error, value + 1.96 * error)
    yield "kid", {"value": value, "interval": interval, **counts, "standard_error": error}
    for name, values in distances.neighbours(real, drawn).items():
        yield name, how.mean(values) | counts
