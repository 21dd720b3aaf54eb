"""Metrics of a config's drawn pictures: every picture is read once, each metric makes its estimates of the readings."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vgjax import conditions
from vgjax.atomic import write_json
from vgjax.config import Config, ConfigError
from vgjax.context import Context, Producer, Run
from vgjax.data.sources import SOURCES
from vgjax.evaluation import downstream, draw, fidelity, privacy
from vgjax.evaluation.metrics import METRICS
from vgjax.evaluation.metrics.base import Options, Seen
from vgjax.evaluation.metrics.numbers import write_metrics
from vgjax.evaluation.reader import READER, LesionView
from vgjax.evaluation.readouts import PriorView
from vgjax.provenance import peak_rss_mb, provenance
from vgjax.recipes import Recipe
from vgjax.stages import plan

METRICS_FILE, READINGS_FILE = "metrics.json", "readings.json"
# What `evaluate.metrics` may name besides: makers of artefacts of their own, of which the one of that name has
# METRICS_FILE: {value, interval, n, split, net, ...} by name.
FURTHER: dict[str, Callable[[Config], dict[str, Producer]]] = {
    "fidelity": fidelity.producers,
    "downstream": downstream.producers,
    "privacy": privacy.producers,
}


def check(config: Config) -> None:
    """Raises ConfigError where a metric is unknown."""
    for name in config.evaluate.metrics:
        if name not in {**METRICS, **FURTHER}:
            known = ", ".join(sorted({**METRICS, **FURTHER}))
            raise ConfigError(f"config key 'evaluate.metrics' names '{name}': choose among {known}")


def computed(config: Config) -> list[str]:
    """The metrics that the config asks for and its stages, its condition and its source allow."""
    reader, condition = SOURCES[config.data.source].reader({}), conditions.of(config)
    there = {*(stage.name for stage in plan(config)), *reader.styles}
    may_be = {"held_out": reader.held_out, "words": condition.reads_text, "masks": condition.takes_masks}
    may_be["edits"] = condition.takes_masks and config.diffusion.objective == "flow"
    there |= {name for name, found in may_be.items() if found}
    return [name for name in config.evaluate.metrics if name in FURTHER or there.issuperset(METRICS[name].needs)]


def evaluations(config: Config) -> list[str]:
    """The artefacts that hold a run's numbers."""
    return ["evaluation", *(name for name in FURTHER if name in config.evaluate.metrics)]


def producers(config: Config) -> dict[str, Producer]:
    """Drawn sets, the segmentor that reads masks, and the evaluations; stage 1 is read where the run has it."""
    metrics = [name for name in computed(config) if name in METRICS]
    prior = [stage.name for stage in plan(config) if stage.name == "prior"]
    own = {name: one for further in FURTHER.values() for name, one in further(config).items()}
    sets = list(dict.fromkeys(f"drawn_{name}" for metric in metrics for name in METRICS[metric].sets))
    others = [need for one in own.values() for need in one.needs if need.startswith("drawn_") and need not in own]
    drawn = draw.producers(config, dict.fromkeys(name.removeprefix("drawn_") for name in (*sets, *others)))
    reader = {"reader": READER} if SOURCES[config.data.source].reader({}).from_mask else {}
    make = functools.partial(_measure, metrics, bool(prior), bool(reader))
    keys: tuple[str, ...] = ("seed", "evaluate.*", "prior.*", "-prior.train.*", "data.image_size", "data.intensity")
    keys += ("reader.*", "-reader.train.*") if reader else ()
    made = Producer("evaluation", make, keys, needs=("pictures", *sets, *prior, *reader), seen=_without_further)
    return {**drawn, **reader, "evaluation": made, **own}


def _without_further(config: Config) -> Config:
    """The config as if `evaluate.metrics` named none of FURTHER."""
    metrics = tuple(name for name in config.evaluate.metrics if name not in FURTHER)
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"metrics": metrics})})


def _measure(
    metrics: Sequence[str], prior: bool, reader: bool, context: Context, folder: pathlib.Path
) -> dict[str, Any]:
    """Writes the estimates and every reading; returns where they come from."""
    cases, options = draw.load_cases(context), draw.options_of(context)
    read = functools.partial(
        see, options, PriorView(context) if prior else None, LesionView(context) if reader else None
    )
    real = read(np.stack([case.image for case in cases]))
    wanted = [METRICS[name] for name in metrics]
    sets = dict.fromkeys(name for metric in wanted for name in metric.sets)
    drawn = {name: read(draw.read_drawn(context, name).pictures) for name in sets}
    measured = (pair for metric in wanted for pair in metric.estimates(cases, drawn, real, options))
    estimates = {name: estimate._asdict() | {"split": context.config.evaluate.split} for name, estimate in measured}
    write_json(folder / METRICS_FILE, estimates)
    write_json(folder / READINGS_FILE, {name: list(seen.levels) for name, seen in {**drawn, "real": real}.items()})
    return {**provenance(context.config.seed), "peak_rss_mb": peak_rss_mb()}


def see(options: Options, prior: PriorView | None, lesions: LesionView | None, pictures: np.ndarray) -> Seen:
    """Pictures with what the reader, its segmentor and stage 1, where there are such, make of them."""
    found, lesion = prior(pictures) if prior else {}, lesions(pictures) if lesions else None
    levels = options.reader.read(pictures, np.zeros(pictures.shape[:3]) if lesion is None else lesion)
    return Seen(pictures, levels, lesion, *map(found.get, ("lesion", "reconstruction", "factors")))


def results(run: Run) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers by name, and where they come from; draws and measures what is not there yet.

    Artefacts are told with their digests, so that figures, pictures and report can be seen to belong together.
    """
    info = {stage.name: run.artefact(stage.name).manifest["info"] for stage in plan(run.config)}
    # Evaluations after what they were made from, which may have been deleted, and is then made anew.
    measured = [run.artefact(name).manifest["info"] for name in producers(run.config)]
    found = [run.artefact(name) for name in evaluations(run.config)]
    estimates = {k: v for one in found for k, v in json.loads(one.path(METRICS_FILE).read_text()).items()}
    origin = dict(found[0].manifest["info"])
    peak, _ = origin.pop("peak_rss_mb"), origin.pop("wall_s")
    numbers = {name: estimate["value"] for name, estimate in estimates.items() if estimate["value"] is not None}
    numbers |= {f"wall_s/{name}": one["wall_s"] for name, one in info.items()}
    numbers["wall_s/evaluate"] = sum(one["wall_s"] for one in measured)
    numbers["peak_rss_mb"] = max(peak, *(one.get("peak_rss_mb", 0.0) for one in (*info.values(), *measured)))
    origin |= {f"fingerprint/{name}": one["fingerprint"] for name, one in info.items()}
    artefacts = {name: digest for one in found for name, digest in _digests(one.recipe).items()}
    origin |= {"config": run.config.flat(), "estimates": estimates, "artefacts": artefacts}
    return numbers, origin | {"finished": found[0].created}


def drawn_sets(run: Run) -> list[str]:
    """Names of the sets of pictures that the run's metrics read."""
    return [name.removeprefix("drawn_") for name in run.producers if name.startswith("drawn_")]


def _digests(recipe: Recipe) -> dict[str, str]:
    """Of an artefact and all that it was made from."""
    below = [_digests(one) for one in recipe.inputs.values()]
    return {name: digest for one in below for name, digest in one.items()} | {recipe.name: recipe.digest}


def evaluate(run: Run) -> dict[str, float]:
    """Writes workdir/metrics.json: flat numbers, and where they come from."""
    numbers, origin = results(run)
    write_metrics(run.workdir / METRICS_FILE, numbers, origin)
    return numbers
