"""How the factors of a picture are read back, by dataset: from pixels alone, or through the stage-1 segmentor."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.context import Run
from vgjax.data.caption import measure as captions
from vgjax.data.prepare.plan import vocabulary_of
from vgjax.data.sources import phantom
from vgjax.evaluation.control import Levels, TestCase, majority
from vgjax.evaluation.measure import measure_many
from vgjax.stages.prior import picture_input


@dataclasses.dataclass(frozen=True)
class Reader:
    """What evaluation needs to know of a dataset's factors.

    Attributes:
      channels: factor -> "anatomy" or "modality".
      read: pictures (N, H, W, 3) uint8 -> levels of each.
      chance: accuracy of guessing a factor of these cases.
      describe: (levels, rng, named) -> caption naming only the factors in `named`.
    """

    channels: Mapping[str, str]
    read: Callable[[np.ndarray], list[Levels]]
    chance: Callable[[Sequence[TestCase], str], float]
    describe: Callable[[Mapping[str, str], np.random.Generator, Sequence[str]], str]


class PriorView:
    """Stage 1 applied to pictures: what the report shows and what reads masks."""

    def __init__(self, run: Run):
        prior = build.Model(build.prior(run.config), run.variables("prior"))
        self._apply = jax.jit(lambda image: pipeline.encode(prior, picture_input(image, run.config)))

    def __call__(self, pictures: np.ndarray, batch: int = 32) -> dict[str, np.ndarray]:
        """anatomy (N, H, W, K), lesion (N, H, W) probability, reconstruction (N, H, W, 3) uint8."""
        parts = []
        for start in range(0, len(pictures), batch):
            rows = np.minimum(np.arange(start, start + batch), len(pictures) - 1)
            output = self._apply(jnp.asarray(pictures[rows]))
            rebuilt = jnp.round((jnp.clip(output.reconstruction_BHWC, -1, 1) + 1) * 127.5).astype(jnp.uint8)
            parts.append([np.asarray(a) for a in (output.anatomy_BHWK, output.segmentation_BHWS[..., 1], rebuilt)])
        joined = [np.concatenate(column)[: len(pictures)] for column in zip(*parts, strict=True)]
        return dict(zip(("anatomy", "lesion", "reconstruction"), joined, strict=True))


def make_reader(run: Run, view: PriorView) -> Reader:
    """The reader that `evaluate.readout` names."""
    if run.config.evaluate.readout == "phantom":
        return Reader(
            channels={f: "anatomy" if f in phantom.ANATOMY else "modality" for f in phantom.FACTORS},
            read=lambda pictures: list(measure_many(pictures)),
            chance=lambda cases, factor: 1.0 / len(phantom.FACTORS[factor]),
            describe=phantom.describe,
        )
    manifest: dict[str, Any] = json.loads((run.workdir / "records" / "manifest.json").read_text())
    thresholds, vocabulary = manifest["thresholds"], vocabulary_of(run.config.data.source)

    def read(pictures: np.ndarray) -> list[Levels]:
        masks = view(pictures)["lesion"] > 0.5
        return [captions.levels_from_mask(mask, thresholds, vocabulary) or {} for mask in masks]

    return Reader(
        channels={factor: "anatomy" for factor in captions.ALWAYS_NAMED if factor in vocabulary.anatomy},
        read=read,
        chance=majority,
        describe=functools.partial(captions.describe, vocabulary=vocabulary),
    )
