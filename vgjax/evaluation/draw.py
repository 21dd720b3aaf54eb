"""Draw: the pictures that metrics want, each set drawn once and kept with request, seed and method."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vgjax import conditions, parallel, seeds
from vgjax.config import Config
from vgjax.context import Context, Producer
from vgjax.data import records
from vgjax.data.read.decode import to_png
from vgjax.data.sources import SOURCES
from vgjax.evaluation.metrics import METRICS
from vgjax.evaluation.metrics.base import Options, TestCase
from vgjax.provenance import fingerprint
from vgjax.sample import Sampler
from vgjax.stages.denoiser import drawing_needs
from vgjax.store import StoreError
from vgjax.types import Request

# What decides which requests are made, and what draws them.
KEYS = (
    *("seed", "evaluate.split", "evaluate.prompts", "evaluate.draws"),
    *("sample.*", "-sample.count", "-sample.batch_size"),
    *("denoiser.*", "-denoiser.train.*", "autoencoder.*", "diffusion.*", "data.image_size", "data.intensity"),
)
DOWNSTREAM = "downstream"  # the set that a classifier learns from
TRAINING = "training_captions"  # that of captions that were trained on
OWN_KEYS = {DOWNSTREAM: ("downstream.per_class",), TRAINING: ("privacy.*",)}  # of sets that no metric of METRICS reads


class Drawn(NamedTuple):
    """A set of drawn pictures, (N, H, W, 3) uint8, with the request and the seed of each."""

    requests: list[Request]
    seeds: list[int]
    pictures: np.ndarray


def load_cases(context: Context) -> list[TestCase]:
    """The first `evaluate.prompts` captions of the split `evaluate.split`, with the levels that they name."""
    c, cases = context.config.evaluate, []
    rows = context.rows(["pictures"], c.split)
    for row in (rows[i] for i in range(min(c.prompts, len(rows)))):
        requested = {name: row["factors"][name] for name in row["named"]}
        image, mask = records.from_png(row["image"]), records.from_png(row["mask"])
        cases.append(TestCase(row["caption"], row["label"], row["factors"], requested, image, mask))
    return cases


def options_of(context: Context) -> Options:
    """What metrics get besides pictures."""
    c, info = context.config.evaluate, context.artefact("pictures").manifest["info"]
    reader = SOURCES[info["source"]].reader(info["thresholds"])
    rows = context.rows(["pictures"], "train")
    training = lambda: (records.from_png(rows[i]["image"]) for i in range(len(rows)))
    return Options(reader, context.config.seed, c.draws, c.resamples, training)


def producers(config: Config, sets: Iterable[str]) -> dict[str, Producer]:
    """One for each set of a metric, under the name "drawn_<set>"."""
    condition = conditions.of(config)
    shared: list[Sampler] = []  # all sets of a run are drawn by one compiled program
    return {
        f"drawn_{name}": Producer(
            f"drawn_{name}",
            functools.partial(_draw, shared, name),
            keys=tuple(dict.fromkeys((*KEYS, *condition.keys, *condition.request_keys, *OWN_KEYS.get(name, ())))),
            needs=("pictures", "denoiser", "condition", *drawing_artefacts(condition)),
            free=("evaluate.resamples", "sample.batch_size"),
            collective=True,
            files=lambda c: [c.denoiser.weights, c.autoencoder.path, c.text_encoder.path],
        )
        for name in sets
    }


def drawing_artefacts(condition: conditions.Condition) -> tuple[str, ...]:
    """What drawing reads besides the denoiser: the stages of the condition, and what it has to encode or to scale."""
    needed = drawing_needs(condition)
    return (*needed, *(["factors"] if "prior" in needed else []), *(["vocabulary"] if condition.reads_text else []))


def requested(context: Context, name: str) -> list[Request]:
    """What a set asks for, of the captions that can be read."""
    if name == TRAINING:
        c, rows = context.config.privacy, context.rows(["pictures"], "train")
        places = np.linspace(0, len(rows) - 1, min(c.captions, len(rows))).round().astype(int).tolist()
        asked = [Request(prompt=row["caption"], label=row["label"]) for row in map(rows.__getitem__, places)]
        return [request for request in asked for _ in range(c.seeds)]
    if name == DOWNSTREAM:
        return of_classes(context.rows(["pictures"], "train"), context.config.downstream.per_class)
    metric = next(one for one in METRICS.values() if name in one.sets)
    return list(metric.sets[name](metric.chosen(load_cases(context)), options_of(context)))


def of_classes(rows: records.Rows, per_class: int) -> list[Request]:
    """Of each class as many, from its captions in turn, or from some evenly spaced ones."""
    by_class: dict[str, list[Request]] = {}
    for row in (rows[i] for i in range(len(rows))):
        if row["label"]:
            by_class.setdefault(row["label"], []).append(Request(prompt=row["caption"], label=row["label"]))
    asked = [by_class[label] for label in sorted(by_class)]
    return [some[i * len(some) // per_class] for some in asked for i in range(per_class)]


def _draw(shared: list[Sampler], name: str, context: Context, folder: pathlib.Path) -> dict[str, Any]:
    requests = requested(context, name)
    if not shared:
        shared.append(Sampler(context))
    config, sampler = context.config, shared[0]
    own = lambda i, request: seeds.derive(config.seed, "evaluate", name, i) if request.seed is None else request.seed
    noise = [own(i, request) for i, request in enumerate(requests)]
    inputs = sampler.inputs(requests, noise)
    pictures = sampler.edit(inputs, requests, noise)[0] if requests[0].source else sampler(inputs, noise)
    c = config.sample
    method = {"condition": config.denoiser.condition, "solver": c.solver, "steps": c.steps, **c.guidance}
    rows = (
        {"image": to_png(picture), "request": dataclasses.asdict(request), "seed": str(one), "method": method}
        for picture, request, one in zip(pictures, requests, noise, strict=True)
    )
    if parallel.is_main():
        records.write(folder / "drawn.array_record", rows)
    asked = np.frombuffer(repr(requests).encode(), np.uint8)
    return {"count": len(requests), "fingerprint": fingerprint({"requests": asked, "pictures": pictures})}


def drawn_rows(context: Context, name: str) -> records.Records:
    """The records of a set that was drawn, in the order of its requests."""
    return records.Records([context.artefact(f"drawn_{name}").path("drawn.array_record")])


def read_drawn(context: Context, name: str) -> Drawn:
    """A set that was drawn; every record is checked. StoreError where captions have been lost or damaged since."""
    artefact = context.artefact(f"drawn_{name}")
    rows = drawn_rows(context, name)
    found: Sequence[dict[str, Any]] = [rows[i] for i in range(len(rows))]
    requests, chosen = [Request(**row["request"]) for row in found], [int(row["seed"]) for row in found]
    if requests != requested(context, name):
        raise StoreError(f"{artefact.folder} was drawn of captions that are not all there: delete it and run again")
    return Drawn(requests, chosen, np.stack([records.from_png(row["image"]) for row in found]))
