"""Commands killed by the operating system at 40 moments of all modes, or interrupted in a save, and given again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.numpy import save_file

from tests.test_autoencoder import CHANNELS, FACTOR, tensors_of
from tests.test_prepare import make_root
from vgjax import boundary

ROOT = Path(__file__).parents[1]
# Pictures decoded in processes, captions of their masks, latents of an autoencoder, and what diffusers can compute.
CONFIG = {
    "data.captions": "measured",
    "data.workers": 2,
    "data.image_size": 64,
    "data.validation_fraction": 0.2,
    "autoencoder.kind": "tiny",
    "autoencoder.channels": CHANNELS,
    "autoencoder.factor": FACTOR,
    "denoiser.patch": 2,
    **{f"{stage}.train.checkpoint_every_steps": 2 for stage in ("prior", "disentangler", "denoiser")},
}
COMMANDS = {"prepare": [], "train": [], "evaluate": [], "report": [], "export": [], "sample": ["--prompt=a disc"]}


class Part(NamedTuple):
    """Of the work: the command that does it, what it changes, and how often it is killed.

    By itself at places in a save and others, and, after those, by us when it tells of one.
    """

    command: str
    files: str  # a pattern
    saving: int
    other: int
    told: int = 0


PARTS = {
    "pictures": Part("prepare", "store/pictures-", 3, 1, 1),
    "features": Part("prepare", "store/(vocabulary|text)-", 1, 1, 1),
    "latents": Part("prepare", "store/(latents|condition)-", 2, 2),
    "prior": Part("train", "store/prior-", 3, 2, 1),
    "factors": Part("train", "store/factors-", 1, 1),
    "disentangler": Part("train", "store/disentangler-", 2, 0, 1),
    "denoiser": Part("train", "store/denoiser-", 3, 2),
    "drawn": Part("evaluate", "store/drawn_", 1, 0, 1),
    "reader": Part("evaluate", "store/reader-", 1, 0, 1),
    "metrics": Part("evaluate", "store/evaluation-|run/.", 1, 0),
    "report": Part("report", "run/.", 1, 1),
    "export": Part("export", "run/.", 2, 1),
    "sample": Part("sample", "run/.", 1, 1),
}
CHAINS = [
    ("pictures", "features", "latents"),
    ("prior", "factors"),
    ("disentangler", "denoiser"),
    ("drawn", "reader", "metrics"),
    ("report", "export", "sample"),
]
SAVING = re.compile(  # places at which something is half written
    r"\S+ .*orbax-checkpoint-tmp/|os.rename .*/checkpoints/\d+$|open .*/\.digests-"
    r"|(fsync|os.remove) .*/\.[^/]+\.part$|os.rename .*\.\w+$|os.rename store/[a-z_]+-\*$|\S+ .*/incomplete\.\*/"
)
HALF = re.compile(
    r"/\.[^/]+\.part$|/checkpoints/\d+(\.orbax-checkpoint-tmp)?$|/incomplete\.[^/]+$|\.part/manifest.json$"
)
FILE = re.compile(r"/(checkpoints/.*|[^/]*)$")  # left out, the kind of change is left
SEED = 717  # with which checkpoints are also killed while old ones are deleted, and pictures while they are decoded
PUBLISHING = 8  # last places of a part, soon after which the next one begins


class Ended(NamedTuple):
    """A process that has ended, with all those that it started."""

    code: int
    places: list[str]
    lines: list[str]  # of stderr


class Work:
    """Commands on one run, of data that all runs share."""

    def __init__(self, folder: Path, shared: Path):
        self.folder, self.store, self.workdir, self._shared = folder, folder / "store", folder / "run", shared

    def start(self, command: str, way: str = "kill", place: str = "") -> Ended:
        """Gives a command, in which something happens at a place; where that is told, it is killed thereupon."""
        config = {**CONFIG, "data.root": self._shared / "data", "autoencoder.path": self._shared / "tiny.safetensors"}
        flags = ["--config=configs/folder.py:reference+smoke", *(f"--config.{k}={v}" for k, v in config.items())]
        flags += [f"--workdir={self.workdir}", f"--mode={command}", *COMMANDS[command]]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self._shared / "cache"),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.moments", str(self.folder), way, place, *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        if way == "tell" and process.stdout.readline():
            process.kill()
        told, errors = process.communicate(timeout=300)  # ends with the last process that inherited its output
        wait_for_session(process.pid)
        return Ended(process.returncode, told.splitlines(), errors.splitlines())

    def finish(self, first: str) -> None:
        """Gives a command and all after it, undisturbed."""
        for command in [*COMMANDS][[*COMMANDS].index(first) :]:
            ended = self.start(command)
            assert ended.code == 0, (command, ended.lines)


def wait_for_session(number: int) -> None:
    """Fails unless all processes of a session, zombies apart, end within a minute."""

    def there() -> Iterator[str]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == number and state != "Z":
                yield path.parent.name

    for _ in range(600):
        if not (left := [*there()]):
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {left} outlived the one that started them")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_root(folder / "data", count=200)
    save_file(tensors_of("autoencoder_tiny"), folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared) -> tuple[Work, dict[str, list[str]]]:
    """An undisturbed run, and the places that each command came to."""
    work, places = Work(tmp_path_factory.mktemp("whole"), shared), {}
    for command in COMMANDS:
        ended = work.start(command, "list")
        assert ended.code == 0, ended.lines
        places[command] = ended.places
    return work, places


@pytest.fixture
def broken(tmp_path, shared) -> Work:
    return Work(tmp_path, shared)


def begun(broken: Work, whole: Work, part: Part) -> None:
    """Makes what the undisturbed run had made when the part began."""
    kept = {path.parent: json.loads(path.read_text())["created"] for path in whole.store.glob("*/manifest.json")}
    first = [created for path, created in kept.items() if re.match(part.files, f"store/{path.name}")]
    for path, created in kept.items():
        if not first or created < min(first):
            shutil.copytree(path, broken.store / path.name)
    notes = {"prepare": [], "train": [], "evaluate": ["config.json"]}.get(part.command, ["config.json", "metrics.json"])
    for name in notes:
        broken.workdir.mkdir(exist_ok=True)
        shutil.copy(whole.workdir / name, broken.workdir)


def drawn(places: Sequence[str], name: str) -> list[tuple[str, str]]:
    """Moments to kill a part at, as (way, place), in order and of different kinds."""
    part, rng, chosen = PARTS[name], random.Random(f"{name} {SEED}"), []
    ours = [place for place in places if re.match(part.files, place.partition(" ")[2])]
    last = rng.randrange(len(ours) // 2, len(ours) - PUBLISHING) if part.told else len(ours)
    for saving, count in ((True, part.saving), (False, part.other)):
        kinds: dict[str, list[str]] = {}
        for place in (one for one in ours[:last] if bool(SAVING.match(one)) == saving):
            kinds.setdefault(FILE.sub("", place), []).append(place)
        chosen += [rng.choice(kinds[kind]) for kind in rng.sample(sorted(kinds), count)]
    by_itself = [("kill", place) for place in sorted(chosen, key=ours.index)]
    return by_itself + [("tell", place) for place in ours[last : last + part.told]]


def half_written(folder: Path) -> set[tuple[Path, int]]:
    """What a save under way has on disk, with its time."""
    found = (path for path in folder.rglob("*") if HALF.search(str(path)) and not (path / "digests.json").exists())
    return {(path, path.stat().st_mtime_ns) for path in found}


def results(work: Work) -> dict[str, Any]:
    """All that an undisturbed run and a broken one must have in common."""
    found: dict[str, Any] = {"unfinished": [*work.store.glob("*.part")]}
    alike = re.compile(r"done.json$|.*/folder-\w+\.array_record")  # tells the time; records are equal in content alone
    for path in work.store.glob("*/manifest.json"):
        manifest, name = json.loads(path.read_text()), path.parent.name
        found[name] = manifest["info"].get("fingerprint")
        found |= {f"{name}/{file}": bool(alike.match(file)) or one["sha256"] for file, one in manifest["files"].items()}
    found["metrics"] = json.loads((work.workdir / "metrics.json").read_text())["estimates"]
    written = [path for folder in ("export", "samples") for path in (work.workdir / folder).rglob("[!.]*")]
    found |= {str(path.relative_to(work.workdir)): path.read_bytes() for path in written if path.is_file()}
    return found


@pytest.mark.slow
def test_forty_moments_are_drawn_and_most_of_them_in_saves(whole):
    moments = {(name, *moment) for name, part in PARTS.items() for moment in drawn(whole[1][part.command], name)}
    assert len(moments) == 40 and {name for chain in CHAINS for name in chain} == set(PARTS)
    assert sum(bool(SAVING.match(place)) for _, way, place in moments if way == "kill") == 22
    assert sum(way == "kill" for _, way, _ in moments) == 34


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_killed_at_any_moment_ends_as_undisturbed(whole, broken, chain):
    undisturbed, places = whole
    begun(broken, undisturbed, PARTS[chain[0]])
    for name in chain:
        command = PARTS[name].command
        for way, place in drawn(places[command], name):
            before = half_written(broken.folder)
            ended = broken.start(command, way, place)
            assert ended.code == -signal.SIGKILL, (way, place, ended)
            saving = bool(half_written(broken.folder) - before)
            print(f"{command:8} {name:12} {way:4} {'in a save' if saving else '':9} {place}")
            assert saving or way == "tell" or not SAVING.match(place)
    broken.finish(PARTS[chain[0]].command)
    assert results(broken) == results(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior", "denoiser", "drawn", "export"])
def test_interrupted_in_a_save_loses_nothing(whole, broken, name):
    undisturbed, places = whole
    command = PARTS[name].command
    begun(broken, undisturbed, PARTS[name])
    saves = [place for _, place in drawn(places[command], name) if SAVING.match(place)]
    for place in {
        re.sub(r".* (.*checkpoints/\d+).*", r"\1", one): one for one in saves
    }.values():  # which ends the save
        ended = broken.start(command, "interrupt", place)
        assert (ended.code, ended.lines[-1]) == (130, boundary.INTERRUPTED), (place, ended)
        assert not any(re.search("Traceback|Error|Exception|Warning", line) for line in ended.lines), (place, ended)
    broken.finish(command)
    assert results(broken) == results(undisturbed)
