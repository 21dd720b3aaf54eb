"""Bad input: one sentence, exit code 2, no traceback, no half-made workdir."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import kvasir_seg, phantom
from vgjax import main
from vgjax import run as runs
from vgjax.config import Config, ConfigError

REPO = Path(__file__).resolve().parent.parent


def command(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-m", "vgjax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "--config is missing"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config=configs/phantom.py:giant"], "giant"),
        (["--config=configs/phantom.py", "--config.denoiser.wdith=3"], 'Did you mean "width"'),
        (["--config=configs/phantom.py", "--config.seed=many"], "many"),
        (["--config=configs/phantom.py", "--config.prior.widths=(8,0)"], "'prior.widths[1]' is 0: give a positive"),
        (["--config=configs/phantom.py", "--mode=fly"], "mode"),
        (["--config=configs/phantom.py", "--mode=serve"], "not built yet"),
        (["--config=configs/phantom.py", "--mode=sample"], "--prompt"),
        (["--config=configs/phantom.py", "--workers=3"], "workers"),
        (["--config=configs/phantom.py", "--prompt=a lesion"], "--prompt means nothing in --mode=run: give it to"),
        (["--config=configs/phantom.py", "--mask=a.png"], "--mask means nothing in --mode=run: give it to --mode=sam"),
        (["--config=configs/phantom.py", "--mode=report", "--anatomy=x"], "--anatomy means nothing in --mode=report"),
        (["--config=configs/phantom.py", "--mode=export", "--n=3"], "--n means nothing in --mode=export: give it to"),
        (["--config=configs/phantom.py", "--mode=evaluate", "--seed=3"], "--seed means nothing in --mode=evaluate"),
        (["--config=configs/phantom.py", "--mode=sample", "--n=2"], 'needs --prompt="TEXT", or any of --anatomy, --mo'),
        (["--config=configs/phantom.py", "--mode=sample", "--prompt=x", "--n=-2"], "n"),
        (
            ["--config=configs/phantom.py", "--mode=sample", "--prompt=x", "--strength=0.5"],
            "give it with --edit=PICTURE",
        ),
        (["--config=configs/phantom.py", "--mode=sample", "--edit=x.png", "--strength=0"], "strength"),
        (["--config=configs/phantom.py", "--edit=a.png"], "--edit means nothing in --mode=run: give it to --mode=sam"),
        (["--config=configs/phantom.py", "--mode=sample", "--prompt=x", "--seed=-2"], "seed"),
        (
            ["--config=configs/phantom.py", "--compare=a"],
            "--compare means nothing in --mode=run: give it to --mode=rep",
        ),
    ],
)
def test_bad_commands_end_in_one_sentence(tmp_path, arguments, match):
    workdir = tmp_path / "run"
    result = command(*arguments, f"--workdir={workdir}")
    assert result.returncode == 2, result.stderr
    assert match in result.stderr
    assert result.stderr.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--helpfull"], ["--config=configs/nothing.py", "--help"]])
def test_help_lists_modes_flags_and_every_key(arguments):
    result = command(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("usage: python -m vgjax.main --config=")
    assert {line.split()[0] for line in lines[lines.index("modes:") + 1 :][: len(main.MODES)]} == set(main.MODES)
    assert all(
        any(line.startswith(f"  --{flag} ") for line in lines) for flag in ("config", "workdir", "mode", *main.TAKEN)
    )
    for name, value in Config().flat().items():
        place = [line.startswith(f"  {name} = {value!r}") for line in lines].index(True)
        assert next(line for line in lines[place:] if not line.startswith("  ") or line.startswith("      "))
    choice = lines.index("  denoiser.train.schedule = 'cosine'  (one of cosine, constant, plateau)")
    assert lines[choice + 1].strip().startswith("cosine (to 0)")
    assert "  denoiser.train.steps = 1500  (a positive number)" in lines
    assert "  disentangler.dropout = 0.1  (a number in [0, 1))" in lines


def test_every_mode_is_built_or_planned():
    assert set(main.MODES) == {*runs.MODES, *main.PLANNED}


def test_a_missing_data_root_ends_in_one_sentence(tmp_path):
    workdir = tmp_path / "run"
    result = command("--config=configs/mimic.py", f"--workdir={workdir}")
    assert result.returncode == 2, result.stderr
    assert "data.root" in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


def refused(config_dict, workdir, match):
    with pytest.raises(ConfigError, match=match) as caught:
        runs.open_run(config_dict, str(workdir))
    assert "\n" not in str(caught.value)


def test_data_roots_are_checked_before_anything_is_made(tmp_path):
    c = kvasir_seg.get_config("smoke")
    for name, match in (("absent", r"data\.root"), ("empty", r"data\.root|images")):
        c.data.root = str(tmp_path / name)
        if name == "empty":
            (tmp_path / name).mkdir()
        refused(c, tmp_path / "run", match)
        assert not (tmp_path / "run").exists()


def test_meshes_and_batches_are_checked(tmp_path):
    c = phantom.get_config("smoke")
    c.mesh.data = 3
    refused(c, tmp_path / "run", r"there are 8")
    c = phantom.get_config("smoke")
    c.denoiser.train.batch_size = 12
    refused(c, tmp_path / "run", r"denoiser\.train\.batch_size.*multiple of 8")
    assert not (tmp_path / "run").exists()


def test_opening_makes_nothing(tmp_path):
    runs.open_run(phantom.get_config("smoke"), str(tmp_path / "a" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_with_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    refused(phantom.get_config("smoke"), tmp_path, r"no config\.json")


def test_channels_and_metrics_are_checked(tmp_path):
    c = phantom.get_config("smoke")
    c.sample.guidance = ConfigDict({"anatomy": 2.0})
    refused(c, tmp_path / "run", r"sample\.guidance' names anatomy, but .* are anatomy, modality")
    c = phantom.get_config("smoke")
    c.evaluate.metrics = ("control", "beauty")
    refused(c, tmp_path / "run", r"evaluate\.metrics' names 'beauty': choose among")


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused(phantom.get_config("smoke"), tmp_path / "file" / "run", r"cannot be written.*--workdir")


def test_modes_ask_for_what_comes_before(tmp_path):
    run = runs.open_run(phantom.get_config("smoke"), str(tmp_path / "run"))
    given = {"prompt": "a small round lesion", "n": 1, "seed": None}
    for mode, match in (("sample", "not trained"), ("evaluate", "not trained"), ("report", "holds no run")):
        with pytest.raises(ConfigError, match=match):
            runs.MODES[mode](run, **(given if mode == "sample" else {}))
    assert list(tmp_path.iterdir()) == []


def test_status_says_what_is_missing(tmp_path, capsys):
    run = runs.open_run(phantom.get_config("smoke"), str(tmp_path / "run"))
    runs.MODES["status"](run)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(run.producers) and all("missing" in line and "never made" in line for line in lines)
