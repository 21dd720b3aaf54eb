"""The report of one or several runs: one HTML file that opens anywhere, without network, scripts or other files.

`Report` is plain data; `template.html` turns it into sections in the order in which a newcomer reads: what was run
and how well it does, pictures, control, comparison with real pictures, stage 1, losses, what fell short, and where
the numbers come from. A section without data says that it was not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from vgjax.atomic import write_text
from vgjax.evaluation.report import figures


class Pair(NamedTuple):
    """A text, its real picture if there is one, and the picture generated from it, both (H, W, 3) uint8.

    Attributes:
      factors: name -> (requested, measured) level; requested "" where the text left it unsaid.
    """

    caption: str
    real: np.ndarray | None
    generated: np.ndarray
    factors: Mapping[str, tuple[str, str]]


class Closest(NamedTuple):
    """A drawn picture of a set, the training picture that it is likeliest a copy of, both (H, W, 3) uint8.

    Attributes:
      threshold: distance below which it counts as one.
    """

    set: str
    drawn: np.ndarray
    training: np.ndarray
    distance: float
    threshold: float


class FactorMaps(NamedTuple):
    """What stage 1 makes of one image (H, W, 3) uint8; the reconstruction is alike.

    Attributes:
      mask: (H, W) true lesion, 0/1 or 0/255; None if unknown.
      segmentation: (H, W) lesion probability in [0, 1]; None if not predicted.
      anatomy: (H, W, K) float, one map an anatomy factor.
    """

    image: np.ndarray
    mask: np.ndarray | None
    segmentation: np.ndarray | None
    anatomy: np.ndarray
    reconstruction: np.ndarray


@dataclass(frozen=True)
class SwapGrid:
    """Pictures (R, C, H, W, 3) uint8, generated from the anatomy of R row texts and the modality of C column texts.

    Raises:
      ValueError: not one row of images for each row text, one image for each column text.
    """

    row_texts: Sequence[str]
    column_texts: Sequence[str]
    images: np.ndarray

    def __post_init__(self) -> None:
        if self.images.shape[:2] != (len(self.row_texts), len(self.column_texts)):
            raise ValueError(f"swap_grid.images must be ({len(self.row_texts)}, {len(self.column_texts)}, H, W, 3)")


@dataclass(frozen=True)
class ControlRow:
    """How often the level that a text asked for is the level measured in the generated picture.

    Attributes:
      channel: "anatomy" or "modality".
      accuracy: share in [0, 1] of generated pictures that show the requested level.
      chance: accuracy of guessing, in [0, 1).
      on_real: accuracy of the same measure on real pictures: what can be reached at best; None if unknown.
      n: pictures measured.
      interval: of the accuracy, None if not computed.

    Raises:
      ValueError: a share is outside [0, 1], or chance is 1.
    """

    factor: str
    channel: str
    accuracy: float
    chance: float
    on_real: float | None
    n: int
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        found = (self.accuracy, self.chance, self.on_real, *(self.interval or ()))
        shares = [share for share in found if share is not None]
        if not all(0 <= share <= 1 for share in shares) or self.chance == 1:
            raise ValueError(f"control row '{self.factor}' has a share outside [0, 1] or chance 1: {shares}")

    @property
    def score(self) -> float:
        """Accuracy rescaled so that chance is 0 and perfect is 1."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def verdict(self) -> str:
        """One of "not judged", "below chance", "near chance", "weakly", "partly", "follows".

        "not judged": the measure itself gets less than halfway from chance to perfect on real pictures.
        "near chance": the score is under 0.1, or the interval reaches down to chance.
        """
        if self.on_real is not None and (self.on_real - self.chance) / (1 - self.chance) < 0.5:
            return "not judged"
        if self.interval is not None and self.interval[1] < self.chance:
            return "below chance"
        if self.score < 0.1 or (self.interval is not None and self.interval[0] <= self.chance):
            return "near chance"
        return "follows" if self.score >= 0.8 else "partly" if self.score >= 0.4 else "weakly"


@dataclass(frozen=True)
class Report:
    """Everything a report shows; whatever stays empty is reported as not measured.

    Attributes:
      config: flat name -> value.
      provenance: command, commit, hardware, seed, versions (a dict), started, finished, device_count, ...
      metrics: flat name -> number; "control/accuracy_mean" is the headline.
      notes: what is off and what fell short, one sentence each.
      compared: numbers of fidelity, usefulness and privacy by name: {value, interval, n, split, net, note, ...}.
      loss_curves: stage -> metric -> (steps, values); "train/x" and "validation/x" share a chart.
    """

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    loss_curves: Mapping[str, figures.Curves] = field(default_factory=dict)
    real_vs_generated: Sequence[Pair] = ()
    factor_maps: Sequence[FactorMaps] = ()
    swap_grid: SwapGrid | None = None
    control: Sequence[ControlRow] = ()
    closest: Sequence[Closest] = ()
    compared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_report(path: Path, reports: Sequence[Report]) -> None:
    """Writes one self-contained HTML file; an older file is replaced in one step.

    Several runs are first compared in a table and then follow one after another.

    Raises:
      ValueError: no run, a picture is not uint8, or a curve's steps and values disagree.
    """
    write_text(path, render(reports))


def render(reports: Sequence[Report]) -> str:
    """The HTML text of one run or several."""
    if not reports:
        raise ValueError("report: there is no run to report on")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions, names and notes come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": figures.number, "percent": figures.percent}
    page = environment.get_template("template.html").render(
        figures=figures,
        runs=reports,
        factors=list(dict.fromkeys(row.factor for run in reports for row in run.control)),
        metrics=sorted({name for run in reports for name in run.metrics}),
    )
    return page.strip() + "\n"
