"""Metrics of a config's drawn pictures: every picture is read once, each metric makes its estimates of the readings."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vgjax import conditions
from vgjax.atomic import write_json
from vgjax.config import Config, ConfigError
from vgjax.context import Context, Producer, Run
from vgjax.data.sources import SOURCES
from vgjax.evaluation import draw
from vgjax.evaluation.metrics import METRICS
from vgjax.evaluation.metrics.base import Options, Seen
from vgjax.evaluation.metrics.numbers import write_metrics
from vgjax.evaluation.reader import READER, LesionView
from vgjax.evaluation.readouts import PriorView
from vgjax.provenance import peak_rss_mb, provenance
from vgjax.recipes import Recipe
from vgjax.stages import plan

METRICS_FILE, READINGS_FILE = "metrics.json", "readings.json"


def check(config: Config) -> None:
    """Raises ConfigError where a metric is unknown."""
    for name in config.evaluate.metrics:
        if name not in METRICS:
            known = ", ".join(sorted(METRICS))
            raise ConfigError(f"config key 'evaluate.metrics' names '{name}': choose among {known}")


def computed(config: Config) -> list[str]:
    """The metrics that the config asks for and its stages, its condition and its source allow."""
    reader, condition = SOURCES[config.data.source].reader({}), conditions.of(config)
    there = {*(stage.name for stage in plan(config)), *reader.styles}
    may_be = {"held_out": reader.held_out, "words": condition.reads_text, "masks": condition.takes_masks}
    may_be["edits"] = condition.takes_masks and config.diffusion.objective == "flow"
    there |= {name for name, found in may_be.items() if found}
    return [name for name in config.evaluate.metrics if there.issuperset(METRICS[name].needs)]


def producers(config: Config) -> dict[str, Producer]:
    """The drawn sets, the segmentor that reads masks, and the evaluation; stage 1 is read where the run has it."""
    metrics, prior = computed(config), [stage.name for stage in plan(config) if stage.name == "prior"]
    drawn = draw.producers(config, metrics)
    reader = {"reader": READER} if SOURCES[config.data.source].reader({}).from_mask else {}
    make = functools.partial(_measure, metrics, bool(prior), bool(reader))
    keys: tuple[str, ...] = ("seed", "evaluate.*", "prior.*", "-prior.train.*", "data.image_size", "data.intensity")
    keys += ("reader.*", "-reader.train.*") if reader else ()
    made = Producer("evaluation", make, keys, needs=("pictures", *drawn, *prior, *reader))
    return {**drawn, **reader, "evaluation": made}


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
    made = [name for name in run.producers if name == "reader" or name.startswith("drawn_")]
    # The evaluation last: what it was made from may have been deleted, and is then made anew.
    measured = [run.artefact(name).manifest["info"] for name in (*made, "evaluation")]
    found = run.artefact("evaluation")
    estimates = json.loads(found.path(METRICS_FILE).read_text())
    origin = dict(found.manifest["info"])
    peak, _ = origin.pop("peak_rss_mb"), origin.pop("wall_s")
    numbers = {name: estimate["value"] for name, estimate in estimates.items()}
    numbers |= {f"wall_s/{name}": one["wall_s"] for name, one in info.items()}
    numbers["wall_s/evaluate"] = sum(one["wall_s"] for one in measured)
    numbers["peak_rss_mb"] = max(peak, *(one["peak_rss_mb"] for one in info.values()))
    origin |= {f"fingerprint/{name}": one["fingerprint"] for name, one in info.items()}
    origin |= {"config": run.config.flat(), "estimates": estimates, "artefacts": _digests(found.recipe)}
    return numbers, origin | {"finished": found.created}


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
