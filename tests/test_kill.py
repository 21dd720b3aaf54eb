"""A run killed by the operating system in each stage, started again by the same command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from vgjax.train import LOG, read_log

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60  # long enough to be caught between two checkpoints
STAGES = ("prior", "disentangler", "denoiser")


def start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
    flags = [f"--config.{key}.train.steps={STEPS}" for key in STAGES]
    flags += [f"--config.{key}.train.checkpoint_every_steps=20" for key in STAGES]
    flags += [f"--config.{key}.train.log_every_steps=1" for key in STAGES]
    command = [sys.executable, "-m", "vgjax.main", "--config=configs/phantom.py:smoke", f"--workdir={workdir}"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    return subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def fingerprints(store: pathlib.Path) -> dict[str, str]:
    found = {s: json.loads(next(store.glob(f"{s}-*/manifest.json")).read_text()) for s in STAGES}
    return {stage: manifest["info"]["fingerprint"] for stage, manifest in found.items()}


def log_of(store: pathlib.Path, stage: str) -> list[dict]:
    logs = list(store.glob(f"{stage}-*.part/{LOG}"))
    return read_log(logs[0]) if logs else []


@pytest.mark.slow
def test_killed_in_each_stage_ends_as_uninterrupted(tmp_path):
    assert start(tmp_path / "whole" / "run", tmp_path / "cache").wait() == 0
    broken, killed = tmp_path / "broken", []
    for stage in STAGES:
        process = start(broken / "run", tmp_path / "cache")
        while process.poll() is None and not any(row["step"] > 30 for row in log_of(broken / "store", stage)):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(max(row["step"] for row in log_of(broken / "store", stage)))
        assert not list((broken / "store").glob(f"{stage}-*/manifest.json"))
    assert all(30 < step < STEPS for step in killed)
    assert start(broken / "run", tmp_path / "cache").wait() == 0
    assert fingerprints(broken / "store") == fingerprints(tmp_path / "whole" / "store")


@pytest.mark.slow
def test_killed_in_any_artefact_leaves_no_half_one(tmp_path):
    """Killed as soon as each artefact's folder appears in the making; what is there is whole, and the end the same."""
    assert start(tmp_path / "whole" / "run", tmp_path / "cache").wait() == 0
    whole, broken = tmp_path / "whole" / "store", tmp_path / "broken" / "store"
    names = [path.parent.name for path in whole.glob("*/manifest.json")]
    assert len(names) >= 10
    for name in sorted(names, key=lambda name: (whole / name / "manifest.json").stat().st_mtime_ns):
        process = start(tmp_path / "broken" / "run", tmp_path / "cache")
        while process.poll() is None and not ((broken / f"{name}.part").exists() or (broken / name).exists()):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in (path for path in broken.iterdir() if path.is_dir() and path.suffix != ".part"):
            files = json.loads((folder / "manifest.json").read_text())["files"]
            assert all((folder / file).stat().st_size == one["bytes"] for file, one in files.items())
    assert start(tmp_path / "broken" / "run", tmp_path / "cache").wait() == 0
    assert fingerprints(broken) == fingerprints(whole)
