"""Metrics by the name that config key `evaluate.metrics` takes: one file each."""

from vgjax.evaluation.metrics import (
    composition,
    control,
    dci,
    diversity,
    edit,
    gain,
    marginal,
    mask,
    prior,
    separation,
    style,
    swap,
)

METRICS = {
    "control": control.METRIC,
    "gain": gain.METRIC,
    "swap": swap.METRIC,
    "prior": prior.METRIC,
    "leakage": separation.LEAKAGE,
    "wording": separation.WORDING,
    "composition": composition.METRIC,
    "mask": mask.METRIC,
    "marginal": marginal.METRIC,
    "dci": dci.METRIC,
    "diversity": diversity.METRIC,
    "edit": edit.METRIC,
    "style": style.METRIC,
}
