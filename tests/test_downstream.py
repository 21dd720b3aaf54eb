"""Usefulness: useful drawn pictures are seen to be, harmful ones too, and a run broken off goes on with the next arm."""

import json

import numpy as np
import pytest

from configs import phantom
from tests.test_evaluate import drawn, open_run  # noqa: F401
from vgjax.config import ConfigError, Downstream, from_config_dict
from vgjax.data.sources import phantom as source
from vgjax.evaluation import classifier, draw, downstream
from vgjax.evaluation.classifier import Classifier, Pool

CLASSES = ("common", "other", "rare")


def stripes(rng, label, side=16):
    """A noisy picture with stripes of a random phase: lying, standing, or both."""
    at, (one, two) = np.arange(side), rng.uniform(0, 2 * np.pi, 2)
    lying, standing = np.cos(at + one)[:, None] + np.zeros(side), np.cos(at + two)[None] + np.zeros((side, 1))
    wave = (lying, standing, (lying + standing) / 1.4)[label]
    shown = 128 + 25 * wave[..., None] + 35 * rng.normal(size=(side, side, 3))
    return np.clip(shown, 0, 255).astype(np.uint8)


def pool(seed, *counts, shown=(0, 1, 2)):
    """Counts of each class, whose pictures show another where `shown` says so."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(3), counts)
    return Pool(np.stack([stripes(rng, shown[label]) for label in labels]), labels)


def config(seeds=2, steps=60, **changes):
    c = phantom.get_config("smoke")
    c.downstream.update(seeds=seeds, steps=steps, batch_size=24, shares=(0.3, 0.6), **changes)
    c.evaluate.resamples = 200
    return from_config_dict(c)


REAL = {"train": pool(0, 90, 90, 2), "validation": pool(1, 30, 30, 30), "test": pool(2, 60, 60, 60)}


def measured(folder, fake, **changes):
    folder.mkdir(exist_ok=True)
    return downstream.measure(config(**changes), {**REAL, "drawn": fake}, CLASSES, 1, folder)


def test_what_is_drawn_usefully_raises_the_rare_class(tmp_path):
    found = measured(tmp_path, pool(3, 60, 60, 60))
    for arm in ("real_synthetic", "pretrained"):
        for score in ("recall/rare", "balanced_accuracy"):
            row = found[f"downstream/{arm}/difference/{score}"]
            print(arm, score, found[f"downstream/real/{score}"]["value"], row)
            assert row["value"] > 0 and row["interval"][0] > 0 and row["p"] < 0.05, (arm, score)
