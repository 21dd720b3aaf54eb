"""Evaluations that are artefacts of their own: what decides them, what they leave as it is, where they are shown."""

import json

import numpy as np
import pytest

from configs import phantom
from tests.test_evaluate import drawn, measured, open_run  # noqa: F401
from vgjax import artefacts
from vgjax import run as runs
from vgjax.config import ConfigError, from_config_dict
from vgjax.context import Run
from vgjax.data import records
from vgjax.evaluation import networks
from vgjax.evaluation.draw import read_drawn
from vgjax.evaluation.metrics.base import CAPTIONS
from vgjax.store import StoreError

# Digests of phantom's recipes as they were before there was any further evaluation.
BEFORE = {
    "": {
        "pictures": "81b6524433fd",
        "prior": "ccf2a5638a05",
        "vocabulary": "bdf3d55e822c",
        "wordings": "6e38b52893e2",
        "factors": "566cdd943523",
        "condition": "65f8f07b356d",
        "disentangler": "ea7bd34bf2f2",
        "denoiser": "782bc428b202",
        "drawn_captions": "f7cee8ef4562",
        "drawn_swap": "356a6a9b0a10",
        "evaluation": "090711b2d348",
    },
    "smoke": {
        "pictures": "7022f403084e",
        "prior": "c93c0b3e5c4d",
        "vocabulary": "310425648efc",
        "wordings": "4a476cd6746c",
        "factors": "98d024929da0",
        "condition": "917758b89764",
        "disentangler": "0b304da15c4f",
        "denoiser": "2f9e37d3a9bd",
        "drawn_captions": "24a49421571d",
        "drawn_swap": "e950169586fb",
        "evaluation": "b12c51a8f0a1",
    },
    "reference": {
        "pictures": "81b6524433fd",
        "prior": "c3f4eac33bca",
        "vocabulary": "bdf3d55e822c",
        "text": "f1785b79e133",
        "factors": "a320fc5da02b",
        "disentangler": "f97c121e2655",
        "condition": "dfa44dbcf1f3",
        "denoiser": "9e39e3c547ab",
        "drawn_captions": "28f8b61f177e",
        "drawn_swap": "5ea7a9d8a881",
        "evaluation": "6a1586375d54",
    },
}


@pytest.mark.parametrize("variants", BEFORE)
@pytest.mark.parametrize("metrics", [("control", "swap", "prior"), ("control", "swap", "prior", "fidelity")])
def test_further_evaluations_change_no_other_recipe(variants, metrics):
    c = phantom.get_config(variants)
    c.evaluate.metrics = metrics
    config = from_config_dict(c)
    run = Run(config, None, None, None, artefacts.producers(config))
    digests = {name: run.recipe(name).digest for name in run.producers}
    assert {name: digests[name] for name in BEFORE[variants]} == BEFORE[variants]
    assert set(digests) - set(BEFORE[variants]) == ({"domain", "fidelity"} if "fidelity" in metrics else set())


def test_what_a_further_evaluation_measures_joins_the_runs_numbers(tmp_path, drawn):  # noqa: F811
    plain = open_run(tmp_path / "plain", ("control",), draws=2)
    before = measured(plain)
    run = open_run(tmp_path / "run", ("control", "fidelity"), draws=2)
    values = measured(run)
    assert len(drawn) == 1  # for both: the evaluation and its pictures are found again
    assert set(values["artefacts"]) == {*before["artefacts"], "fidelity"}
    assert before["artefacts"].items() <= values["artefacts"].items()
    found = json.loads(run.artefact("fidelity").path("metrics.json").read_text())
    assert found.items() <= values["estimates"].items()
    coverage = found["fidelity/coverage/pixel"]
    assert (coverage["n"], coverage["n_real"], coverage["split"], coverage["net"]) == (16, 8, "test", "pixel")
    assert (
        coverage["value"] == values["fidelity/coverage/pixel"] and coverage["resize"] == "means over boxes to 32 x 32"
    )
    assert found["fidelity_real/coverage/pixel"]["value"] is None  # of four pictures a half
    assert "fidelity_real/coverage/pixel" not in values
    assert found["fidelity/ms_ssim"]["net"] == "" and found["fidelity_real/ms_ssim"]["value"] < 1
    runs.report(run)
    page = (run.workdir / "report.html").read_text()
    assert "Fidelity, usefulness, privacy" in page and "fidelity_real/coverage/pixel" in page
    assert "not measured: fewer than 6 pictures" in page


def test_features_are_of_the_drawn_pictures_and_of_those_of_their_captions(tmp_path, drawn):  # noqa: F811
    run = open_run(tmp_path / "run", ("control", "fidelity"))
    found = json.loads(run.artefact("fidelity").path("metrics.json").read_text())
    rows = run.context.rows(["pictures"], "test")
    real = networks.reduced(records.from_png(rows[i]["image"]) for i in range(8))
    fake = networks.reduced(read_drawn(run.context, CAPTIONS).pictures)
    own = np.linalg.norm(real.mean(0) - fake.mean(0)) ** 2
    assert found["fidelity/frechet/pixel"]["value"] >= own > 0
    labels = np.array([rows[i]["label"] for i in range(8)])
    apart = np.linalg.norm(fake[:, None] - fake[None], axis=2)[np.equal.outer(labels, labels)]
    assert 0 < found["fidelity/diversity/pixel"]["value"] <= apart.max()


def test_a_run_that_breaks_off_after_one_evaluation_goes_on_with_the_next(tmp_path, drawn, monkeypatch):  # noqa: F811
    run = open_run(tmp_path / "run", ("control", "fidelity"))
    with monkeypatch.context() as patch:
        patch.setattr(networks, "load", lambda name, context: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(run)
    created = run.find("evaluation").created
    with pytest.raises(ConfigError, match="holds no evaluation of its config"):
        runs.report(run)
    again = open_run(tmp_path / "run", ("control", "fidelity"))
    assert "fidelity/coverage/pixel" in measured(again)
    assert again.find("evaluation").created == created and len(drawn) == 1


def test_pictures_drawn_of_other_captions_are_refused(tmp_path, drawn):  # noqa: F811
    run = open_run(tmp_path / "run", ("fidelity",), prompts=4)
    run.artefact(f"drawn_{CAPTIONS}").path("drawn.array_record")
    path = run.artefact(f"drawn_{CAPTIONS}").folder / "drawn.array_record"
    rows = [records.Records([path])[i] for i in range(3)]
    with pytest.raises(StoreError, match="drawn of captions that are not all there"):
        records.write(tmp_path / "drawn.array_record", rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "vgjax.evaluation.draw.drawn_rows", lambda *_: records.Records([tmp_path / "drawn.array_record"])
            )
            run.artefact("fidelity")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("vgg",), "'networks.use' is ('vgg',): choose among domain, pixel, inception, dinov2, rad_dino"),
        (("inception",), "'networks.inception' is empty and networks.use names it: name the file pt_inception"),
        (("pixel", "rad_dino"), "'networks.rad_dino' is empty .* research alone"),
    ],
)
def test_networks_that_are_unknown_or_without_a_file_are_refused(changes, told):
    c = phantom.get_config("smoke")
    c.networks.use = changes
    with pytest.raises(ConfigError, match=told.replace("(", r"\(").replace(")", r"\)")):
        from_config_dict(c)


def test_files_of_networks_are_read_before_any_long_work(tmp_path):
    c = phantom.get_config("smoke")
    c.networks.update(use=("dinov2",), dinov2=str(tmp_path))
    with pytest.raises(ConfigError, match=r"^config key 'networks\.dinov2': "):
        runs.check_weights(runs.open_run(c, str(tmp_path / "run")))
