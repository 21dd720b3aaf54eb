"""Metrics by the name that config key `evaluate.metrics` takes: one file each."""

from vgjax.evaluation.metrics import control, gain, prior, swap

METRICS = {"control": control.METRIC, "gain": gain.METRIC, "swap": swap.METRIC, "prior": prior.METRIC}
