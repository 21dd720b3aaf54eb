"""Control: does the generated picture show what its text asked for, factor by factor?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.data.entries import Levels
from vgjax.evaluation.metrics import bootstrap_interval
from vgjax.evaluation.report import ControlRow


@dataclasses.dataclass(frozen=True)
class TestCase:
    """What a test caption asks for, and which picture it was written about.

    Attributes:
      caption: the text.
      requested: level of each factor that the caption names.
      image: (H, W, 3) uint8, the real picture.
      mask: (H, W) uint8.
    """

    caption: str
    requested: dict[str, str]
    image: np.ndarray
    mask: np.ndarray


def hits(cases: Sequence[TestCase], read: Sequence[Levels], factor: str) -> np.ndarray:
    """1.0 where the level read is the one asked for, over the captions that name the factor; unreadable is wrong."""
    pairs = [
        (case.requested[factor], levels.get(factor))
        for case, levels in zip(cases, read, strict=True)
        if factor in case.requested
    ]
    return np.array([float(requested == got) for requested, got in pairs])


def control_rows(
    cases: Sequence[TestCase],
    generated: Sequence[Levels],
    real: Sequence[Levels],
    channels: Mapping[str, str],
    chance: Mapping[str, float],
    seed: int,
    draws: int,
) -> list[ControlRow]:
    """One row a factor that at least one caption names.

    Args:
      cases: what was asked for.
      generated, real: the levels read from the generated and from the real pictures, in the same order.
      channels: factor -> "anatomy" or "modality".
      chance: factor -> accuracy of guessing.
      seed, draws: of the bootstrap interval.
    """
    rows = []
    for factor, channel in channels.items():
        right = hits(cases, generated, factor)
        if not len(right):
            continue
        rows.append(
            ControlRow(
                factor=factor,
                channel=channel,
                accuracy=float(right.mean()),
                chance=chance[factor],
                on_real=float(hits(cases, real, factor).mean()),
                n=len(right),
                interval=bootstrap_interval(right, seed, draws),
            )
        )
    return rows


def as_metrics(rows: Sequence[ControlRow], prompts: int) -> dict[str, float]:
    """Flat metrics of a control table; the mean is over factors, and left out where no caption names one."""
    metrics: dict[str, float] = {"control/n": prompts}
    for row in rows:
        metrics[f"control/accuracy/{row.factor}"] = row.accuracy
        metrics[f"control/score/{row.factor}"] = row.score
        metrics[f"control/chance/{row.factor}"] = row.chance
        metrics[f"control/n/{row.factor}"] = row.n
        if row.interval is not None:
            metrics[f"control/low/{row.factor}"], metrics[f"control/high/{row.factor}"] = row.interval
        if row.on_real is not None:
            metrics[f"control_real/{row.factor}"] = row.on_real
    if rows:
        metrics["control/accuracy_mean"] = float(np.mean([row.accuracy for row in rows]))
    for channel in ("anatomy", "modality"):
        accuracies = [row.accuracy for row in rows if row.channel == channel]
        if accuracies:
            metrics[f"control/accuracy_mean_{channel}"] = float(np.mean(accuracies))
    return metrics
