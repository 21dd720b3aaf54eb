"""Two hundred commands as processes of their own, at whatever is done to the files between them and to them.

Moves are drawn by number alone, so that a chunk is seen again by `-m slow "tests/test_processes.py::test_moves[3]"`.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.test_hostile_artefacts import damage
from tests.test_states import DAMAGES, erase

ROOT = pathlib.Path(__file__).parents[1]
CHUNKS, COMMANDS, LONGEST = 10, 20, 240  # seconds that a command may take, on a busy machine
FLAGS = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
SMALL = {
    "data.train_items": 32,
    "data.validation_items": 16,
    "data.test_items": 16,
    "prior.train.steps": 3,
    "disentangler.train.steps": 3,
    "denoiser.train.steps": 3,
    "sample.steps": 2,
    "sample.text_steps": 2,
    "evaluate.prompts": 8,
    "evaluate.resamples": 20,
    "evaluate.metrics": "('control',)",
}
CHANGES = [
    *({}, {}, {}),
    {"sample.steps": 3},
    {"evaluate.resamples": 30},
    {"denoiser.train.steps": 4},
    {"disentangler.train.learning_rate": 0.002},
    {"prior.train.learning_rate": 1e30},
    {"data.workers": 1},
    {"name": "other"},
]
MODES = {
    "run": ["--mode=run"],
    "train": ["--mode=train"],
    "evaluate": ["--mode=evaluate"],
    "sample": ["--mode=sample", "--prompt=a small lesion", "--n=1", "--seed=3"],
    "report": ["--mode=report"],
    "status": ["--mode=status"],
    "export": ["--mode=export"],
}
WEIGHTS = (4, 3, 4, 4, 3, 2, 1)
FAULTS = (*DAMAGES, "deleted", "manifest", "part")


class Place:
    """A folder with a run and its store, and the commands on them."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.told = folder, ""

    def start(self, changes: dict, mode: str, kill_after: float | None = None) -> subprocess.CompletedProcess:
        flags = [f"--config.{key}={value}" for key, value in (SMALL | changes).items()]
        command = [sys.executable, "-m", "vgjax.main", "--config=configs/phantom.py:smoke", *MODES[mode], *flags]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "processes"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"{FLAGS} --xla_llvm_disable_expensive_passes=true",  # compiling takes longest
        }
        command.append(f"--workdir={self.folder}/run")
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                out, err = process.communicate(timeout=kill_after or LONGEST)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                out, err = process.communicate()
                assert kill_after, f"{mode} waits: {err[-2000:]}"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def results(self, mode: str) -> dict:
        """What a mode is for, without what depends on time or place."""
        if mode == "sample":
            return {path.name: path.read_bytes() for path in sorted((self.folder / "run" / "samples").glob("*-3.png"))}
        if mode not in ("run", "evaluate"):
            return {}
        found = json.loads((self.folder / "run" / "metrics.json").read_text())
        kept = re.compile("control|estimates|fingerprint/|artefacts")
        return {name: value for name, value in found.items() if kept.match(name)}


def fault(place: Place, draw: random.Random) -> str:
    kind, store = draw.choice(FAULTS), place.folder / "store"
    if kind == "deleted":
        folders = sorted(path for path in store.glob("*-*") if path.is_dir())
        if folders:
            path = draw.choice(folders)
            shutil.rmtree(path)
            return f"{path.name} {kind}"
        return ""
    pattern = {"manifest": "store/*/manifest.json", "part": "store/*.part/**/*"}.get(kind, "[sr][tu][on]*/**/*")
    files = [path for path in sorted(place.folder.glob(pattern)) if path.is_file() and path.stat().st_size]
    if not files:
        return ""
    path, how = draw.choice(files), kind if kind in DAMAGES else draw.choice(DAMAGES)
    damage(path, how, draw.random(), draw.randrange(8))
    return f"{path.relative_to(place.folder)} {how}"


def heed(place: Place) -> None:
    """Deletes what the last sentence named, where it tells to."""
    if not re.search("delete|mend this", place.told):
        return
    named = map(pathlib.Path, re.findall(rf"{place.folder}[^\s':;,]*", place.told))
    if found := next((path for path in named if os.path.lexists(path) and path != place.folder), None):
        erase(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of a mode with keys, of a run that nothing was done to, each made once."""
    base, known = tmp_path_factory.mktemp("undisturbed"), dict[str, dict]()

    def results(changes: dict, mode: str) -> dict:
        kept = {key: value for key, value in changes.items() if key not in ("data.workers", "name")}
        place, key = Place(base), f"{sorted(kept.items())} {mode == 'sample'}"
        if key not in known:
            made = [place.start(kept, "run")] + ([place.start(kept, "sample")] if mode == "sample" else [])
            assert [one.returncode for one in made] == [0] * len(made), made[-1].stderr
            known[key] = place.results("sample" if mode == "sample" else "run")
        return known[key]

    return results


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CHUNKS))
def test_moves(tmp_path, undisturbed, number):
    """Exit code 0 with the results of an undisturbed run, or 2 with one sentence, or killed; no hang, no traceback."""
    draw, place, ends = random.Random(f"processes {number}"), Place(tmp_path), Counter[str]()
    trail: list[str] = []
    changes: dict = {}
    for at in range(COMMANDS):
        if at and draw.random() < 0.4:
            changes = draw.choice(CHANGES)
        if at and draw.random() < 0.4:
            trail.append(fault(place, draw))
        again = at == 0 or "run --mode" in place.told  # as the last sentence advised
        mode = "run" if again else draw.choices(list(MODES), WEIGHTS)[0]
        kill_after = draw.uniform(2, 15) if at and draw.random() < 0.3 else None
        found = place.start(changes, mode, kill_after)
        errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        trail.append(f"{mode} {changes} {kill_after or ''} -> {found.returncode} {errors}")
        print(f"[{number}.{at}]", *trail[-2:], sep="\n  ", flush=True)
        judged = "\n".join([*trail, found.stderr[-3000:]])
        if found.returncode == -signal.SIGKILL:
            ends["killed"] += bool(kill_after)
        elif found.returncode == 2:
            ends["sentence"] += 1
            assert len(errors) == 1 and "Traceback" not in found.stderr, judged
            place.told = errors[0]
            heed(place)
        else:
            ends["right"], place.told = ends["right"] + 1, ""
            assert found.returncode == 0 and not errors and "Traceback" not in found.stderr, judged
            if "prior.train.learning_rate" not in changes:
                expected = undisturbed(changes, mode) if place.results(mode) else {}
                assert {**place.results(mode)} == expected, judged
    print(f"chunk {number}: {dict(ends)}")
    assert sum(ends.values()) == COMMANDS and ends["right"] > 1
