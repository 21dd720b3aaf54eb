"""Draw, metrics, report: sets are drawn once and kept in full, and what is written belongs together.

The pictures and their reader are the phantom's own; nothing is trained, and "drawing" paints a picture a request.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import phantom
from tests.test_features import flip
from vgjax import artefacts, parallel, seeds
from vgjax import run as runs
from vgjax.config import ConfigError, from_config_dict
from vgjax.context import Run
from vgjax.data import records
from vgjax.evaluation import draw, evaluate, summary
from vgjax.evaluation.metrics import METRICS, gain
from vgjax.evaluation.metrics.base import CAPTIONS, Estimate, Metric, caption_requests
from vgjax.store import Store
from vgjax.types import Request

SHARED = 11 << 40  # a seed of more than 32 bits
EMBLEM = [
    Request(prompt="é\n", anatomy="a", modality="m", mask=b"\x89\x00", label="x", seed=SHARED if i else None)
    for i in range(3)
]


class PaintingSampler:
    """A picture of one colour for each seed."""

    drawn: list[list[Request]] = []  # noqa: RUF012

    def __init__(self, context):
        """Takes what the sampler takes."""

    def inputs(self, requests, picture_seeds):
        assert len(requests) == len(picture_seeds)
        self.drawn.append(list(requests))
        return requests

    def __call__(self, inputs, picture_seeds):
        assert len(inputs) == len(picture_seeds)
        return np.stack([np.full((32, 32, 3), seed % 251, np.uint8) for seed in picture_seeds])


@pytest.fixture
def drawn(monkeypatch):
    """The requests of every set that is drawn, in order."""
    monkeypatch.setattr(draw, "Sampler", PaintingSampler)
    monkeypatch.setattr(PaintingSampler, "drawn", [])
    return PaintingSampler.drawn


def open_run(folder: pathlib.Path, metrics=("control", "gain"), info=None, more=None, **changes) -> Run:
    """A run on the class label, which needs the denoiser alone; that and its condition are there, but empty."""
    c = phantom.get_config("smoke+class_label")
    c.name = folder.name
    c.data.update(dict(train_items=4, validation_items=4, test_items=8))
    c.evaluate.update(dict(metrics=metrics, **changes))
    c.update_from_flattened_dict({"networks.use": ("pixel",), **(more or {})})
    config = from_config_dict(c)
    numbers = {"wall_s": 2.0, "peak_rss_mb": 3.0, "fingerprint": "ab", **(info or {})}
    found = {
        name: dataclasses.replace(one, make=lambda context, folder: numbers)
        if name in ("condition", "denoiser")
        else one
        for name, one in artefacts.producers(config).items()
    }
    run = Run(config, folder, parallel.make_mesh(config.mesh), Store(folder.parent / "store"), found)
    run.artefact("denoiser")
    runs._begin(run)
    return run


def measured(run: Run) -> dict:
    runs.evaluate(run)
    return json.loads((run.workdir / "metrics.json").read_text())


def test_a_set_keeps_every_picture_with_request_seed_and_method(tmp_path, monkeypatch, drawn):
    monkeypatch.setitem(METRICS, "emblem", Metric(lambda *_: iter(()), {"emblem": lambda cases, options: EMBLEM}))
    run = open_run(tmp_path / "run", ("emblem",))
    found = draw.read_drawn(run.context, "emblem")
    assert found.requests == EMBLEM
    wanted = [seeds.derive(run.config.seed, "evaluate", "emblem", 0), SHARED, SHARED]
    assert found.seeds == wanted and found.seeds[0] > 1 << 32
    assert found.pictures.shape == (3, 32, 32, 3)
    assert all((picture == seed % 251).all() for picture, seed in zip(found.pictures, wanted, strict=True))
    row = records.Records([run.artefact("drawn_emblem").path("drawn.array_record")])[1]
    assert row["method"] == {"condition": "class_label", "solver": "euler", "steps": 4, "class": 2.0}
    plain = draw.read_drawn(open_run(tmp_path / "run", ("control",)).context, CAPTIONS)
    assert len(set(plain.seeds)) == len(plain.seeds) == 8  # each its own


def test_a_new_metric_is_a_file_and_a_row_and_shares_its_sets(tmp_path, monkeypatch, drawn):
    before = measured(open_run(tmp_path / "run"))
    assert [len(requests) for requests in drawn] == [8, 8]

    def measure(cases, drawn, real, options):
        assert set(drawn) >= {CAPTIONS, "emblem"}
        yield "emblem/red", Estimate(float(drawn["emblem"].pictures.mean()), 3, (0.0, 255.0))
        yield "emblem/cases", Estimate(len(drawn[CAPTIONS].pictures) / len(cases), len(cases))

    sets = {CAPTIONS: caption_requests, "emblem": lambda cases, options: EMBLEM}
    monkeypatch.setitem(METRICS, "emblem", Metric(measure, sets))
    run = open_run(tmp_path / "run", ("control", "gain", "emblem"))
    after = measured(run)
    assert drawn[2:] == [EMBLEM]  # the others were at hand
    assert (
        after["emblem/cases"] == 1.0 and after["emblem/red"] == draw.read_drawn(run.context, "emblem").pictures.mean()
    )
    assert after["estimates"]["emblem/red"] == {
        "value": after["emblem/red"],
        "n": 3,
        "interval": [0.0, 255.0],
        "split": "test",
    }
    assert all(after[name] == before[name] for name in before["estimates"])
    readings = json.loads(run.artefact("evaluation").path("readings.json").read_text())
    assert {name: len(levels) for name, levels in readings.items()} == {
        CAPTIONS: 8,
        gain.OTHERS: 8,
        "emblem": 3,
        "real": 8,
    }


def test_captions_of_the_split_that_is_asked_for_are_drawn(tmp_path, drawn):
    for place, split in enumerate(("test", "validation")):
        run = open_run(tmp_path / "run", ("control",), split=split)
        rows = run.context.rows(["pictures"], split)
        values = measured(run)
        wanted = [row["caption"] for row in map(rows.__getitem__, range(len(rows)))]
        assert [request.prompt for request in drawn[place]] == wanted
        assert {estimate["split"] for estimate in values["estimates"].values()} == {split}


def test_pictures_of_captions_that_have_been_lost_are_never_measured_by_the_others(tmp_path, drawn):
    run = open_run(tmp_path / "run", ("control",), prompts=6)  # of eight: two stand ready to move up
    before = measured(run)
    (shard,) = run.artefact("pictures").folder.glob("**/*test.array_record*")
    flip(shard, row=0)
    run = open_run(tmp_path / "run", ("control",), prompts=6, resamples=50)
    folder = run.artefact("drawn_captions").folder
    with pytest.raises(ConfigError, match=f"^{folder} was drawn of captions that are not all there: delete it"):
        runs.evaluate(run)
    shutil.rmtree(folder)
    run = open_run(tmp_path / "run", ("control",), prompts=6)
    after = measured(run)  # the evaluation of the first pictures is not of these
    assert after["finished"] > before["finished"]
    assert draw.read_drawn(run.context, CAPTIONS).requests == [case.request() for case in draw.load_cases(run.context)]
    assert len(drawn) == 2 and drawn[0][1:] == drawn[1][:-1]


def test_a_denoiser_trained_again_to_other_weights_is_drawn_and_measured_again(tmp_path, drawn):
    values = {}
    for fingerprint in ("ab", "ab", "cd"):
        run = open_run(tmp_path / "run", ("control",), {"fingerprint": fingerprint})
        values[len(drawn)] = measured(run)
        assert values[len(drawn)]["fingerprint/denoiser"] == fingerprint
        shutil.rmtree(run.artefact("denoiser").folder)
    assert list(values) == [1, 2] and values[1]["finished"] < values[2]["finished"]


def test_the_report_tells_of_a_learning_rate_that_had_to_be_lowered(tmp_path, drawn):
    run = open_run(tmp_path / "run", ("control",), {"not_finite": {"0.5": 20}})
    told = "Stage 'denoiser' had a learning rate of 0.5 up to step 20, and lower ones since."
    assert told in summary.notes(run, measured(run))


def test_an_evaluation_that_fails_leaves_no_old_figures_under_new_pictures(tmp_path, monkeypatch, drawn):
    old = measured(open_run(tmp_path / "run", ("control",)))
    run = open_run(tmp_path / "run", ("control",), draws=2)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "see", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runs.evaluate(run)
    assert len(drawn) == 2  # the new pictures are there
    with pytest.raises(ConfigError, match="holds no evaluation of its config"):
        runs.report(run)
    kept = json.loads((run.workdir / "metrics.json").read_text())  # tells which pictures it is of
    assert kept == old and kept["artefacts"]["drawn_captions"] != run.recipe("drawn_captions").digest
    new = measured(run)
    assert new["artefacts"] == {name: run.recipe(name).digest for name in run.producers}


def test_how_often_to_resample_draws_nothing_anew(tmp_path, drawn):
    few = measured(open_run(tmp_path / "run"))["estimates"]
    many = measured(open_run(tmp_path / "run", resamples=300))["estimates"]
    assert len(drawn) == 2 and few.keys() == many.keys() and few != many
    measured(open_run(tmp_path / "run", draws=2))
    assert [len(requests) for requests in drawn] == [8, 8, 16, 16]


def test_metrics_readings_and_report_belong_to_the_same_artefacts(tmp_path, drawn):
    run = open_run(tmp_path / "run")
    values = measured(run)
    names = {"pictures", "condition", "denoiser", "drawn_captions", "drawn_other_captions", "evaluation"}
    assert values["artefacts"] == {name: run.artefact(name).digest for name in names}
    runs.report(run)
    page = (run.workdir / "report.html").read_text()
    assert all(digest in page for digest in values["artefacts"].values())
    evaluation = run.artefact("evaluation")
    assert json.loads(evaluation.path("metrics.json").read_text()) == values["estimates"]
    assert {name: one["value"] for name, one in values["estimates"].items()}.items() <= values.items()
    readings = json.loads(evaluation.path("readings.json").read_text())[CAPTIONS]
    pairs = zip(draw.load_cases(run.context), readings, strict=True)
    hits = [case.requested["size"] == levels["size"] for case, levels in pairs if "size" in case.requested]
    assert values["control/accuracy/size"] == np.mean(hits)
    assert values["wall_s/denoiser"] == 2.0 and values["fingerprint/denoiser"] == "ab"
    parts = ("evaluation", "drawn_captions", "drawn_other_captions")
    assert values["wall_s/evaluate"] == sum(run.artefact(name).manifest["info"]["wall_s"] for name in parts)


def test_metrics_that_a_config_cannot_have_are_left_out_and_told(tmp_path, drawn):
    run = open_run(tmp_path / "run", ("control", "swap", "prior"))
    values = measured(run)
    assert len(drawn) == 1 and not any(name.startswith(("swap/", "prior/")) for name in values)
    runs.report(run)
    page = (run.workdir / "report.html").read_text()
    assert "Metric &#39;swap&#39; was not computed: it needs words, which this config has not." in page
    assert "Metric &#39;prior&#39; was not computed: it needs prior" in page


def test_an_unknown_metric_is_refused():
    c = phantom.get_config("smoke")
    c.evaluate.metrics = ("control", "beauty")
    with pytest.raises(
        ConfigError,
        match=r"'evaluate\.metrics' names 'beauty': choose among composition, control, dci, diversity, downstream, "
        "edit, fidelity",
    ):
        evaluate.check(from_config_dict(c))


def test_compare_shows_each_run_as_its_own_workdir_notes_it(tmp_path, drawn):
    first, second = (open_run(tmp_path / name, prompts=prompts) for name, prompts in (("one", 8), ("two", 4)))
    one, two = measured(first), measured(second)
    before = {path: path.read_bytes() for path in second.workdir.iterdir()}
    runs.report(first, [str(second.workdir)])
    page = (first.workdir / "report.html").read_text()
    assert page.index("vgjax: one") < page.index("vgjax: two")
    for values in (one, two):
        assert all(digest in page for digest in values["artefacts"].values())
    assert {path: path.read_bytes() for path in second.workdir.iterdir()} == before  # another's folder is left alone
    noted = runs.reopen(str(second.workdir), first.mesh)
    assert noted.config == second.config and noted.find("evaluation").digest == two["artefacts"]["evaluation"]


def test_compare_survives_a_move_of_workdirs_with_their_store(tmp_path, drawn):
    (tmp_path / "here").mkdir()
    other = open_run(tmp_path / "here" / "run")
    measured(other)
    (tmp_path / "here").rename(tmp_path / "there")
    assert runs.reopen(str(tmp_path / "there" / "run"), other.mesh).find("evaluation")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"config\.json' cannot be read \(No such file or directory\): name the workdir"),
        ("{", r"config\.json' cannot be read"),
        ("[]", r"config\.json' cannot be read"),
        ('{"config": {}, "store": "."}', "missing config key"),
        ('{"config": {"fusion": 1}, "store": "."}', "unknown config key 'fusion'"),
        ("whole", r"two holds no evaluation of its config: run --mode=evaluate first"),
    ],
)
def test_compare_refuses_a_workdir_without_a_finished_run(tmp_path, drawn, content, match):
    first, folder = open_run(tmp_path / "one"), tmp_path / "two"
    measured(first)
    folder.mkdir()
    if content:
        other = json.dumps({"config": first.config.model_dump(), "store": "nowhere"})
        (folder / "config.json").write_text(other if content == "whole" else content)
    with pytest.raises(ConfigError, match=match) as caught:
        runs.report(first, [str(folder)])
    assert "\n" not in str(caught.value) and not (first.workdir / "report.html").exists()


@pytest.mark.slow
def test_compare_two_trained_runs(tmp_path):
    opened = []
    for name, seed in (("one", 0), ("two", 1)):
        c = phantom.get_config("smoke")
        c.name, c.seed = name, seed
        opened.append(runs.open_run(c, str(tmp_path / name)))
        runs.run_all(opened[-1])
    runs.report(opened[0], [str(tmp_path / "two")])
    page = (tmp_path / "one" / "report.html").read_text()
    for run in opened:
        values = json.loads((run.workdir / "metrics.json").read_text())
        assert all(values[f"fingerprint/{name}"] in page for name in ("prior", "disentangler", "denoiser"))
        assert len(values["artefacts"]) == len(run.producers)
