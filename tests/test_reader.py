"""The segmentor that factors of real pictures are read with: whose artefact it is, what it learns, who uses it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from configs import kvasir_seg, phantom
from tests.test_evaluate import PaintingSampler
from tests.test_prepare import make_root
from vgjax import artefacts, parallel
from vgjax import run as runs
from vgjax.config import ConfigError, from_config_dict
from vgjax.context import Run
from vgjax.evaluation import draw
from vgjax.evaluation.evaluate import results
from vgjax.evaluation.reader import LesionView
from vgjax.store import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("reader") / "data", count=40)


def open_run(folder, root, variants="smoke", **changes):
    c = kvasir_seg.get_config(variants)
    fixed = {
        "data.root": str(root),
        "data.workers": 1,
        "data.validation_fraction": 0.2,
        "evaluate.metrics": ("control",),
    }
    c.update_from_flattened_dict({**fixed, **changes})
    return runs.open_run(c, str(folder / "run"), str(folder / "store"))


def test_it_finds_the_lesions_of_held_out_pictures(tmp_path):
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(40):  # bright discs on dark ground
        y, x = np.mgrid[:32, :32]
        disc = np.hypot(x - rng.uniform(8, 24), y - rng.uniform(8, 24)) < rng.uniform(4, 8)
        noise = rng.normal(0, 5, (32, 32, 3))
        picture = np.where(disc[..., None], 180, 60) + noise
        Image.fromarray(picture.astype(np.uint8)).save(root / "images" / f"p{number:02d}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(root / "masks" / f"p{number:02d}.png")
    changes = {"reader.image_size": 32, "reader.train.steps": 30, "reader.train.learning_rate": 1e-2}
    run = open_run(tmp_path, root, **changes)
    cases = draw.load_cases(run.context)
    lesion = LesionView(run.context)(np.stack([case.image for case in cases]))
    assert lesion.shape == (len(cases), 16, 16) and lesion.min() >= 0 and lesion.max() <= 1
    masks = np.stack([case.mask.reshape(16, 2, 16, 2).mean((1, 3)) > 0.5 for case in cases])
    dice = 2 * ((lesion > 0.5) & masks).sum() / ((lesion > 0.5).sum() + masks.sum())
    assert dice > 0.6, dice  # 0.2 where everything is called a lesion


def test_it_is_one_for_all_rows_and_knows_nothing_of_the_model(root, tmp_path):
    runs_of = [open_run(tmp_path, root, f"smoke+{row}") for row in ("regression", "reference", "pixart_text")]
    recipes = [run.recipe("reader") for run in runs_of]
    assert len({recipe.digest for recipe in recipes}) == 1
    assert set(recipes[0].inputs) == {"pictures"}
    assert all(key == "seed" or key.startswith("reader.") for key in recipes[0].keys)
    wider = open_run(tmp_path, root, **{"reader.widths": (16, 8)})
    plain = open_run(tmp_path, root)
    assert wider.recipe("evaluation").digest != plain.recipe("evaluation").digest
    assert wider.recipe("denoiser").digest == plain.recipe("denoiser").digest


def test_phantoms_are_read_without_it():
    config = from_config_dict(phantom.get_config("smoke"))
    made = artefacts.producers(config)
    assert "reader" not in made and not any(key.startswith("reader.") for key in made["evaluation"].keys)


def test_a_row_without_stage_1_is_read_too_and_preparation_trains_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "Sampler", PaintingSampler)
    run = open_run(tmp_path, root, "smoke+class_label")
    config, numbers = run.config, {"wall_s": 2.0, "peak_rss_mb": 3.0, "fingerprint": "ab"}
    found = {
        name: dataclasses.replace(one, make=lambda context, folder: numbers)
        if name in ("condition", "denoiser")
        else one
        for name, one in artefacts.producers(config).items()
    }
    run = Run(config, tmp_path / "run", parallel.make_mesh(config.mesh), Store(tmp_path / "store"), found)
    runs.prepare(run)
    assert run.find("pictures") and not any(run.find(name) for name in ("reader", "denoiser", "evaluation"))
    run.artefact("denoiser")
    values, _ = results(run)
    assert {"reader/dice", "control/accuracy/position", "control_real/position"} <= values.keys()
    assert values["wall_s/evaluate"] > run.artefact("reader").manifest["info"]["wall_s"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"reader.image_size": 30},
            r"reader\.image_size' is 30: it must be divisible by 4, 2 \*\* len\(reader\.widths\)",
        ),
        ({"reader.widths": (8, 12)}, r"reader\.widths' is \(8, 12\): group norm needs multiples of 8"),
        ({"reader.train.batch_size": 3}, r"reader\.train\.batch_size' is 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(root, tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        open_run(tmp_path, root, **changes)
