"""A run killed by the operating system in each stage, started again by the same command."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from vgjax.train import read_log

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


def fingerprints(workdir: pathlib.Path) -> dict[str, str]:
    return {s: json.loads((workdir / "stages" / s / "done.json").read_text())["fingerprint"] for s in STAGES}


@pytest.mark.slow
def test_killed_in_each_stage_ends_as_uninterrupted(tmp_path):
    assert start(tmp_path / "whole", tmp_path / "cache").wait() == 0
    broken, killed = tmp_path / "broken", []
    for stage in STAGES:
        process = start(broken, tmp_path / "cache")
        log = broken / "logs" / f"{stage}.jsonl"
        while process.poll() is None and not any(row["step"] > 30 for row in read_log(log)):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(max(row["step"] for row in read_log(log)))
        assert not (broken / "stages" / stage / "done.json").exists()
    assert all(30 < step < STEPS for step in killed)
    assert start(broken, tmp_path / "cache").wait() == 0
    assert fingerprints(broken) == fingerprints(tmp_path / "whole")
