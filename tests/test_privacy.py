"""Privacy: what gives training pictures away is found, told with its interval, and shown."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from configs import phantom
from vgjax import artefacts, checkpoint, parallel, seeds
from vgjax import run as runs
from vgjax.config import from_config_dict
from vgjax.context import VARIABLES, Run
from vgjax.data.records import from_png
from vgjax.evaluation import draw, evaluate, fidelity, membership, privacy, summary
from vgjax.stages.denoiser import Denoising
from vgjax.store import Store

HOW = fidelity.Intervals(0, 200)


class Copier:
    """Answers each caption of the training pictures with its picture, and others with one colour for each seed."""

    def __init__(self, context):
        rows = context.rows(["pictures"], "train")
        self.known = {row["caption"]: from_png(row["image"]) for row in map(rows.__getitem__, range(len(rows)))}

    def inputs(self, requests, picture_seeds):
        return requests

    def __call__(self, inputs, picture_seeds):
        own = lambda request, seed: self.known.get(request.prompt, np.full((32, 32, 3), seed % 251, np.uint8))
        return np.stack([own(*one) for one in zip(inputs, picture_seeds, strict=True)])


def untrained(context, folder):
    params, _ = Denoising(context).init(seeds.key_of(0))
    checkpoint.save_export(folder / VARIABLES, {"params": params})
    return {"wall_s": 1.0, "peak_rss_mb": 1.0, "fingerprint": "ab"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    c = phantom.get_config("smoke+class_label")
    c.data.update(dict(train_items=12, validation_items=8, test_items=9))
    c.evaluate.update(dict(metrics=("privacy",), prompts=7, resamples=50))
    c.privacy.update(dict(captions=3, seeds=2))
    c.networks.use = ("pixel",)
    config, folder = from_config_dict(c), tmp_path_factory.mktemp("privacy")
    producers = artefacts.producers(config)
    producers["denoiser"] = dataclasses.replace(producers["denoiser"], make=untrained)
    found = Run(config, folder / "run", parallel.make_mesh(config.mesh), Store(folder / "store"), producers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "Sampler", Copier)
        patch.setattr(membership, "NOISES", 1)
        found.artefact("denoiser")
        runs._begin(found)
        runs.evaluate(found)
    return found


def test_every_number_is_told_with_its_interval_and_origin(run):
    numbers = json.loads((run.workdir / "metrics.json").read_text())["estimates"]
    names = {f"{side}/{name}/pixel" for side in ("privacy", "privacy_real") for name in ("nearest", "nearest_q05")}
    names |= {"privacy/nearer/pixel", "privacy/copies", "privacy/copies/training_captions", "privacy_real/copies"}
    names |= {"privacy/membership/tpr", "privacy/membership/auc"}
    names |= {f"privacy/membership/auc/{share}" for share in membership.SHARES}
    assert set(numbers) == names
    for name, row in numbers.items():
        low, high = row["interval"]
        assert low <= row["value"] <= high and row["split"] and row["net"], name
    assert {name: numbers[name]["n"] for name in ("privacy/nearest/pixel", "privacy_real/copies")} == {
        "privacy/nearest/pixel": 7,
        "privacy_real/copies": 7,
    }
    assert {row["n"] for name, row in numbers.items() if "membership" in name} == {8}


def test_a_copier_is_found_out_and_its_pairs_are_shown(run):
    numbers = json.loads(run.artefact("privacy").path(evaluate.METRICS_FILE).read_text())
    found = numbers["privacy/copies/training_captions"]
    assert (found["value"], found["n"]) == (1.0, 6) and numbers["privacy/copies"]["value"] == 0.0
    shown = [pair for pair in summary.closest_pairs(run) if pair.set == "privacy/copies/training_captions"]
    assert len(shown) == 6
    assert all((pair.drawn == pair.training).all() and pair.distance < pair.threshold for pair in shown)
    runs.report(run)
    page = (run.workdir / "report.html").read_text()
    assert page.count("nearest training picture</figcaption>") == 13 and page.count("<b>a copy</b>") == 6


def test_training_captions_are_drawn_by_the_mechanism_of_all_sets(run):
    found = draw.read_drawn(run.context, draw.TRAINING)
    rows = run.context.rows(["pictures"], "train")
    wanted = [rows[place]["caption"] for place in (0, 0, 6, 6, 11, 11)]
    assert [request.prompt for request in found.requests] == wanted and len(set(found.seeds)) == 6


def test_untrained_weights_tell_no_member(run):
    numbers = json.loads(run.artefact("privacy").path(evaluate.METRICS_FILE).read_text())
    low, high = numbers["privacy/membership/auc"]["interval"]
    assert low < 0.5 < high


def test_losses_of_a_picture_do_not_depend_on_the_others(run):
    context = run.context
    stage, params = Denoising(context), context.variables("denoiser")["params"]
    rows = context.rows(["pictures"], "validation")
    found = privacy.losses(context, stage, params, rows)
    assert found.shape == (8, len(membership.SHARES)) and (found > 0).all()
    alone = privacy.losses(context, stage, params, privacy.SkippedRows(rows, range(1, 8)))
    assert np.allclose(alone[0], found[0], rtol=1e-5)


def test_drawn_pictures_that_lie_nearer_are_told_from_those_that_do_not():
    rng = np.random.default_rng(0)
    real = rng.uniform(1, 2, 200)
    same, nearer = real + 0.1 * rng.standard_normal((2, 200)), real - 0.05 + 0.1 * rng.standard_normal((2, 200))
    for drawn, told in ((same, False), (nearer, True)):
        numbers = dict(privacy.nearness(real, drawn.ravel(), HOW))
        row, difference = numbers["privacy/nearer"], drawn.mean(0) - real
        assert (row["p"] < 0.01) == told == (row["interval"][0] > 0.5)
        assert row["p"] == pytest.approx(scipy.stats.wilcoxon(difference, alternative="less").pvalue)
        assert numbers["privacy/nearest"]["value"] == pytest.approx(drawn.mean())
        assert numbers["privacy/nearest_q05"]["value"] == pytest.approx(np.quantile(drawn, 0.05))
    assert dict(privacy.nearness(real, real, HOW))["privacy/nearer"]["p"] == 1.0


def test_the_interval_of_a_rate_is_that_of_clopper_and_pearson():
    row = privacy.rate(np.arange(50) < 3)
    low, high = scipy.stats.beta.ppf([0.025, 0.975], [3, 4], [48, 47])
    assert row["value"] == 0.06 and row["interval"] == pytest.approx((low, high))
    assert privacy.rate(np.zeros(20, bool))["interval"][0] == 0.0
