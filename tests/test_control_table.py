"""The table of control: what a row says of its seeds, what is measured again, and what is refused."""

import argparse
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import build, stages
from vgjax.conditions.text_tokens import TextTokens
from vgjax.config import ConfigError
from vgjax.context import Context
from vgjax.data.prepare import pictures
from vgjax.evaluation import control, evaluate
from vgjax.evaluation.control import ROWS, Row


def found(accuracy, digest="d", gap=0.02):
    estimates = {
        "control/accuracy_mean": {"value": accuracy, "n": 10, "interval": [accuracy - 0.1, accuracy + 0.1]},
        "control/accuracy/size": {"value": accuracy - 0.2, "n": 10, "interval": None},
        "control/accuracy/blur": {"value": accuracy + 0.1, "n": 10, "interval": None},
        "composition/gap": {"value": gap, "n": 10, "interval": [0.0, 0.04]},
        "control_real/size": {"value": 0.9, "n": 10, "interval": None},
        "control_gain/size": {"value": accuracy - 0.5, "n": 10, "interval": [0.1, 0.2]},
        "diversity/pairs": {"value": 0.05, "n": 10, "interval": [0.04, 0.06]},
    }
    shared = {"captions": 9, "parameters": 5, "steps": {"denoiser": 6}, "commit": "c", "hardware": "h"}
    return {"estimates": estimates, "digest": digest, **shared}


def test_a_row_of_one_seed_tells_its_interval_over_captions():
    row = control.summary("quick", [found(0.8)], 100)
    assert (row["accuracy_mean"], row["composition"], row["seeds"], row["prompts"]) == (0.8, 0.02, 1, 100)
    assert row["ci95"]["accuracy_mean"] == pytest.approx([0.7, 0.9])
    assert row["accuracy"] == pytest.approx({"size": 0.6, "blur": 0.9}) and row["accuracy_min"] == pytest.approx(0.6)
    assert "leakage_anatomy" not in row  # nobody measured it
    assert row["gain"] == pytest.approx({"size": 0.3}) and row["ci95"]["gain"] == {"size": [0.1, 0.2]}
    assert (row["accuracy_real"], row["diversity"], row["captions"]) == ({"size": 0.9}, 0.05, 9)


def test_a_row_of_several_seeds_tells_their_mean_and_its_interval_over_seeds():
    row = control.summary("default", [found(a, digest=str(a)) for a in (0.8, 0.82, 0.84)], 100)
    assert row["accuracy_mean"] == pytest.approx(0.82) and row["digest"] == ["0.8", "0.82", "0.84"]
    # Student's t of two degrees of freedom at 97.5 %, and the standard error of three values that are .02 apart.
    half = 4.302653 * 0.02 / np.sqrt(3)
    assert row["ci95"]["accuracy_mean"] == pytest.approx([0.82 - half, 0.82 + half], abs=1e-6)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """write_table on rows whose measurement is made up; counts what is measured."""
    monkeypatch.setattr(control, "ROWS", {"quick": Row(""), "default": Row("long", seeds=2)})
    measured = []

    class FakeRun:
        def __init__(self, name, seed):
            self.name, self.digest = name, f"{name}-{seed}"

        def recipe(self, name):
            return argparse.Namespace(digest=self.digest)

    opened = lambda config, row, seed, options, scale=None, **keys: FakeRun(row.variants, scale or seed)
    monkeypatch.setattr(control, "open_row", opened)
    monkeypatch.setattr(control, "measure", lambda run: measured.append(run.digest) or found(0.8, digest=run.digest))
    options = argparse.Namespace(results=str(tmp_path), prompts=10, seeds=0, text_encoder="")
    path = tmp_path / "control_phantom.json"

    def write(*names):
        measured.clear()
        control.write_table("phantom", names, options)
        return measured, [row["name"] for row in json.loads(path.read_text())["rows"]]

    return write, path


def test_rows_are_written_one_by_one_and_measured_once(table):
    write, _ = table
    assert write("default") == (["long-0", "long-1"], ["default"])
    assert write("quick", "default") == (["-0"], ["quick", "default"])
    assert write("quick", "default") == ([], ["quick", "default"])


def test_a_row_of_other_artefacts_is_stale_and_measured_again(table):
    write, path = table
    write("quick", "default")
    rows = json.loads(path.read_text())
    rows["rows"][0]["digest"] = ["of an older config"]
    path.write_text(json.dumps(rows))
    assert write("quick", "default") == (["-0"], ["quick", "default"])


def test_guidance_is_chosen_on_validation_captions_and_told(table, monkeypatch):
    """The scale of the best score draws for every seed; another grid is another row."""
    write, path = table
    monkeypatch.setattr(control.runs, "train", lambda run: None)
    accuracy, asked = {"long-1.5": 0.7, "long-2.5": 0.9, "long-3.5": 0.8}, []
    monkeypatch.setattr(
        control,
        "results",
        lambda run: (asked.append(run.digest) or {"control/accuracy_mean": accuracy[run.digest]}, {}),
    )
    monkeypatch.setattr(control, "ROWS", {"quick": Row(""), "default": Row("long", 2, guidance=(1.5, 2.5))})
    assert write("default") == (["long-2.5", "long-2.5"], ["default"]) and asked == ["long-1.5", "long-2.5"]
    assert json.loads(path.read_text())["rows"][0]["guidance"] == {"1.5": 0.7, "2.5": 0.9}
    assert write("default") == ([], ["default"]) and len(asked) == 2
    rows = json.loads(path.read_text())["rows"]
    assert control.stale_rows("phantom", rows, argparse.Namespace()) == []
    monkeypatch.setattr(control, "ROWS", {"default": Row("long", 2, guidance=(1.5, 2.5, 3.5))})
    assert control.stale_rows("phantom", rows, argparse.Namespace()) == ["default"]
    assert write("default") == (["long-2.5", "long-2.5"], ["default"]) and len(asked) == 5


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.guidance])
def test_another_guidance_or_split_trains_nothing_anew(name, tmp_path):
    options = options_in(tmp_path, prompts=50)
    plain = control.open_row("phantom", ROWS[name], 0, options)
    chosen = control.open_row("phantom", ROWS[name], 0, options, 2.75, **control.CHOICE)
    assert set(chosen.config.sample.guidance.values()) == {2.75}
    assert (chosen.config.evaluate.split, chosen.config.evaluate.prompts) == ("validation", 256)
    for stage in stages.plan(plain.config):
        assert chosen.recipe(stage.name).digest == plain.recipe(stage.name).digest
    assert chosen.recipe("drawn_captions").digest != plain.recipe("drawn_captions").digest
    keys = {f"sample.guidance.{channel}": 2.75 for channel in plain.config.sample.guidance}
    row = ROWS[name]._replace(keys={**ROWS[name].keys, **keys})
    assert control.open_row("phantom", row, 0, options, **control.CHOICE).config == chosen.config


def test_an_unknown_row_is_one_sentence(capsys):
    assert control.main(["--rows=quick,fast"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --rows names 'fast': choose among quick, default") and told.count("\n") == 1


def options_in(folder, prompts, text_encoder="some/bert"):
    """What the command line gives."""
    where = {"workdir": str(folder), "store": str(folder / "store")}
    return argparse.Namespace(root="", prompts=prompts, text_encoder=text_encoder, **where)


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_is_a_config_that_can_be_run(name, tmp_path):
    options = options_in(tmp_path, prompts=50)
    run = control.open_row("phantom", ROWS[name], 0, options)
    assert "evaluation" in run.producers and run.config.seed == 0
    assert (
        run.recipe("evaluation").digest
        != control.open_row("phantom", ROWS[name], 1, options).recipe("evaluation").digest
    )


def test_control_experiments_measure_accuracy_alone_and_share_what_shuffling_leaves(tmp_path):
    quick, targets, captions = (
        control.open_row("phantom", ROWS[name], 0, options_in(tmp_path, prompts=50))
        for name in ("quick", "shuffled targets", "shuffled captions")
    )
    same = {name: quick.recipe(name).digest == targets.recipe(name).digest for name in targets.producers}
    assert same["prior"] and same["denoiser"] and not same["disentangler"] and not same["drawn_captions"]
    assert quick.recipe("pictures").digest != captions.recipe("pictures").digest
    assert targets.config.evaluate.metrics == captions.config.evaluate.metrics == ("control",)


def parameters(config, mesh):
    """How many parameters a config trains, stage 1 apart; nothing is computed."""
    basis = {}
    for name, size in build.factor_sizes(config).items():
        full = {"anatomy": np.prod(build.anatomy_shape(config)), "modality": config.prior.modality_factors}[name]
        basis |= {f"{name}_mean": np.zeros(full), f"{name}_whiten": np.zeros((full, size))}
        basis[f"{name}_back"] = np.zeros((size, full))
    basis["classes"] = np.zeros((9, 64), np.uint8)
    context = Context(config, mesh, {}.__getitem__)
    made = {spec.name: spec.make(context) for spec in stages.plan(config) if spec.name != "prior"}
    made["denoiser"].__dict__["frozen"] = {"basis": basis}
    shapes = [jax.eval_shape(stage.init, jax.random.key(0))[0] for stage in made.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_has_as_many_parameters_as_the_default(name, tmp_path, monkeypatch):
    monkeypatch.setattr(TextTokens, "_pretrained", None)  # its file is not at hand
    width = control.MINILM_WIDTH
    monkeypatch.setattr(
        TextTokens,
        "_states",
        lambda self, frozen, ids: jnp.zeros((*ids.shape, width)) if self._encoder.kind == "bert" else None,
    )
    options = options_in(tmp_path, prompts=50)
    run, default = (control.open_row("phantom", ROWS[row], 0, options) for row in (name, "default"))
    ratio = parameters(run.config, run.mesh) / parameters(default.config, run.mesh)
    assert ratio == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", list(control.REAL_ROWS))
@pytest.mark.parametrize("config", ["kvasir_seg", "ham10000", "busi", "covid_cxr"])
def test_every_row_of_real_pictures_is_a_config_that_can_be_run(config, name, tmp_path):
    root = tmp_path / "data"
    shared = {"root": str(root), "prompts": 50, "workdir": str(tmp_path), "store": str(tmp_path / "store")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "check", lambda config: None)
        opened = [
            control.open_row(config, control.REAL_ROWS[name], 0, argparse.Namespace(autoencoder=coder, **shared))
            for coder in ("", str(tmp_path))
        ]
    assert [run.config.data.image_size for run in opened] == [64, 128]
    assert all({"reader", "drawn_same_caption", "drawn_other_captions"} <= set(run.producers) for run in opened)
    assert opened[1].config.evaluate.metrics == control.REAL_METRICS


def test_a_table_of_real_pictures_has_columns_of_its_own():
    row = {"name": "default", "gain": {"size": 0.25}, "diversity": 0.1, "parameters": 1_000_000, "seeds": 1}
    lines = control.markdown([row], [], control.REAL_COLUMNS).splitlines()
    cells = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    assert (cells["gain, size"], cells["diversity"], cells["gain, position"].strip()) == ("0.250", "0.100", "")


def test_the_readme_shows_what_the_results_say(tmp_path):
    """Rows whose artefacts are no longer those of the config are marked; after a change the table is written anew."""
    repository = pathlib.Path(__file__).resolve().parents[1]
    path, readme = repository / "results" / "control_phantom.json", (repository / "README.md").read_text()
    if not path.exists():
        pytest.skip("no results yet")
    rows = json.loads(path.read_text())["rows"]
    options = argparse.Namespace(
        root="", text_encoder="", prompts=1, workdir=str(tmp_path), store=str(tmp_path / "store")
    )
    shown = readme.partition("<!-- control:phantom -->\n")[2].partition("\n<!-- /control:phantom -->")[0]
    assert shown == control.markdown(rows, control.stale_rows("phantom", rows, options)), (
        "write the table anew: python -m vgjax.evaluation.control --rows= --readme=README.md"
    )


def test_a_readme_gets_the_table_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- control:x -->\nold\n<!-- /control:x -->\nafter\n")
    row = {"name": "quick", "accuracy_mean": 0.96123, "parameters": 4_500_000, "seeds": 1}
    control.write_readme(path, "x", control.markdown([row], ["quick"]))
    lines = path.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert lines[4] == "| quick (stale) | 0.961 |" + "  |" * 8 + " 4.50 M | 1 |"
    control.write_readme(path, "x", "new")
    assert path.read_text() == "before\n<!-- control:x -->\nnew\n<!-- /control:x -->\nafter\n"


def test_a_row_that_needs_a_text_encoder_is_left_out_without_and_never_called_stale(table, monkeypatch, caplog):
    write, _ = table
    monkeypatch.setattr(control, "ROWS", {"quick": Row(""), "words": Row("long", encoder="vocabulary")})
    with caplog.at_level("INFO"):
        assert write("quick", "words") == (["-0"], ["quick"])
    assert "row words is left out: name the folder of a BERT (--text_encoder=FOLDER)" in caplog.messages
    rows = [{"name": "words", "prompts": 10, "seeds": 1, "digest": ["of another machine's folder"]}]
    given = lambda folder: argparse.Namespace(prompts=10, text_encoder=folder)
    assert control.stale_rows("phantom", rows, given("")) == []
    assert control.stale_rows("phantom", rows, given("folder")) == ["words"]


def test_the_row_of_a_text_encoder_takes_its_folder(tmp_path):
    options = options_in(tmp_path, prompts=50, text_encoder="folder")
    assert control.open_row("phantom", ROWS["pretrained words"], 0, options).config.text_encoder.path == "folder"
    assert control.open_row("phantom", ROWS["quick"], 0, options).config.text_encoder.path == ""


def test_every_metric_of_the_table_is_measured_in_the_default(tmp_path):
    run = control.open_row("phantom", ROWS["default"], 0, options_in(tmp_path, prompts=50))
    assert tuple(evaluate.computed(run.config)) == control.METRICS


@pytest.mark.parametrize("config", ["mimic", "nowhere"])
def test_a_config_without_a_table_is_told(config, tmp_path, capsys):
    assert control.main([f"--config={config}", f"--store={tmp_path}", f"--workdir={tmp_path}"]) == 2
    assert f"--config names '{config}', of which there is no table" in capsys.readouterr().err


def test_a_readme_without_marks_is_told(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ConfigError, match=r"has no line '<!-- control:x -->': put it and"):
        control.write_readme(tmp_path / "README.md", "x", "table")


@pytest.mark.parametrize("flag", ["results", "readme"])
def test_a_pipe_in_the_place_of_a_table_is_told_at_once(flag, tmp_path, at_once, capsys):
    kept = {"results": str(tmp_path), "readme": str(tmp_path / "README.md")}
    (tmp_path / "control_phantom.json").write_text('{"rows": []}')
    path = tmp_path / {"results": "control_phantom.json", "readme": "README.md"}[flag]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert control.main(["--rows=", *(f"--{name}={value}" for name, value in kept.items())]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(path) in line and "not a file but a folder, a pipe" in line
