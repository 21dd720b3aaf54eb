"""What a stage is: functions and data for the one training loop, no behaviour of its own."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vgjax.data.prepare import pictures as preparation
from vgjax.data.prepare.builder import Pictures
from vgjax.data.records import Records, Rows, SkippedRows, ZippedRecords
from vgjax.schema import Config, Training

Terms = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run lives and what it computes on.

    Attributes:
      config: everything that decides the result.
      workdir: the run's folder.
      mesh: devices.
    """

    config: Config
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh

    def records(self, kind: str, split: str) -> pathlib.Path:
        """File of one kind of record ("text", "factors", "latents") of a split."""
        return self.workdir / "records" / f"{kind}-{split}.array_record"

    def rows(self, kinds: Sequence[str], split: str, fields: Sequence[str] | None = None) -> ZippedRecords:
        """Rows of one or several kinds of record; damaged pictures are left out.

        Raises:
          ConfigError: a file is missing or cut short, or the kinds differ in length.
        """
        damaged = preparation.damaged(self.workdir / "records")[split]

        def source(kind: str) -> Rows:
            if kind == "images":
                return SkippedRows(Pictures(self.workdir / "records", self.config.data.source, split), damaged)
            found = Records(self.records(kind, split))
            return SkippedRows(found, damaged) if kind == "text" else found

        return ZippedRecords({kind: source(kind) for kind in kinds}, fields)

    def export(self, stage: str) -> pathlib.Path:
        """The stage's final variables."""
        return self.workdir / "stages" / stage / "export.safetensors"

    def done(self, stage: str) -> pathlib.Path:
        """Written when a stage was trained to its end: fingerprint, step, seconds, memory."""
        return self.workdir / "stages" / stage / "done.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One trained stage.

    Attributes:
      name: folder and log name.
      training: steps, batch size, optimiser.
      init: key -> (params, model_state).
      loss: (params, model_state, frozen, batch, key) -> (terms, new model_state); a term is (B,) or a scalar.
      weights: factor of each term; terms without one are logged only.
      validate: (params, model_state, frozen, batch) -> values (B,) by name, among them "score": lower is better.
      keep_best: export the checkpoint with the best validation score instead of the last.
      frozen: variables of earlier stages that loss and validate read.
      source: split -> rows.
      to_example: row -> arrays of one example.
      finish: (params, model_state) -> exported variables; writes what later stages read.
      pretrained: (params, model_state) from elsewhere, finished as they are in the place of training.
    """

    name: str
    training: Training
    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[Terms, Any]]
    weights: dict[str, float]
    validate: Callable[[Any, Any, Any, dict[str, jax.Array]], Terms]
    keep_best: bool
    frozen: Any
    source: Callable[[str], Rows]
    to_example: Callable[[dict[str, Any]], dict[str, np.ndarray]]
    finish: Callable[[Any, Any], Any]
    pretrained: tuple[Any, Any] | None = None
