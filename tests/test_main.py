"""Bad input: one sentence, exit code 2, no traceback, no half-made workdir."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import kvasir_seg, phantom
from vgjax import run as runs
from vgjax.config import ConfigError

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
        (["--config=configs/phantom.py", "--config.denoiser.wdith=3"], "wdith"),
        (["--config=configs/phantom.py", "--config.seed=many"], "many"),
        (["--config=configs/phantom.py", "--mode=fly"], "mode"),
        (["--config=configs/phantom.py", "--mode=serve"], "not built yet"),
        (["--config=configs/phantom.py", "--mode=sample"], "--prompt"),
        (["--config=configs/phantom.py", "--workers=3"], "workers"),
    ],
)
def test_bad_commands_end_in_one_sentence(tmp_path, arguments, match):
    workdir = tmp_path / "run"
    result = command(*arguments, f"--workdir={workdir}")
    assert result.returncode == 2, result.stderr
    assert match in result.stderr
    assert result.stderr.count("\n") == 1
    assert not workdir.exists()


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


def test_a_workdir_of_another_config_is_refused(tmp_path):
    c = phantom.get_config("smoke")
    runs.open_run(c, str(tmp_path / "run"))
    c.sample.steps = 7  # how pictures are drawn may change
    runs.open_run(c, str(tmp_path / "run"))
    c.prior.train.learning_rate = 0.5
    refused(c, tmp_path / "run", r"another config: 'prior\.train\.learning_rate' was .* and is now 0\.5")


def test_a_workdir_with_other_files_or_a_broken_config_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    refused(phantom.get_config("smoke"), tmp_path, r"no config\.json")
    (tmp_path / "config.json").write_text("{")
    refused(phantom.get_config("smoke"), tmp_path, r"config\.json cannot be read")


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused(phantom.get_config("smoke"), tmp_path / "file" / "run", r"cannot be written.*--workdir")


def test_modes_ask_for_what_comes_before(tmp_path):
    run = runs.open_run(phantom.get_config("smoke"), str(tmp_path / "run"))
    for mode, match in (("sample", "no trained model"), ("evaluate", "not trained"), ("report", "mode=evaluate")):
        with pytest.raises(ConfigError, match=match):
            runs.MODES[mode](run, "a small round lesion")
