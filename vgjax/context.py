"""A run: its config, its workdir, its devices, and the rows and weights that its parts read from one another."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from vgjax import checkpoint
from vgjax.data.prepare import pictures as preparation
from vgjax.data.prepare.builder import Pictures
from vgjax.data.records import PermutedFields, Records, Rows, SkippedRows, ZippedRecords
from vgjax.schema import Config


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

    def rows(self, kinds: Sequence[str], split: str) -> Rows:
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

        c, joined = self.config.disentangler, ZippedRecords({kind: source(kind) for kind in kinds})
        permuted = {"anatomy": c.shuffle_anatomy_targets, "modality": c.shuffle_modality_targets}
        fields = [name for name, on in permuted.items() if on and "factors" in kinds]
        return PermutedFields(joined, fields, self.config.seed) if fields else joined

    def export(self, stage: str) -> pathlib.Path:
        """The stage's final variables."""
        return self.workdir / "stages" / stage / "export.safetensors"

    def variables(self, stage: str) -> dict[str, Any]:
        """The stage's final variables, read."""
        return checkpoint.load_export(self.export(stage))

    def done(self, stage: str) -> pathlib.Path:
        """Written when a stage was trained to its end: fingerprint, step, seconds, memory."""
        return self.workdir / "stages" / stage / "done.json"
