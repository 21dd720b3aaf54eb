"""Whatever is done to a store and its runs, in whatever order: every command ends in one sentence or the right result.

A state machine over modes, changed keys, faults and kills, on the real store with stub stages.
"""

import json
import logging
import os
import pathlib
import re
import shutil
import signal
import tempfile
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ml_collections import ConfigDict

from configs import phantom
from tests import in_process, stub_stages
from tests.failing_disk import KINDS, Disk, Killed, active
from tests.stub_stages import HIGHEST, MADE, RAW, VERSIONS
from tests.test_hostile_artefacts import damage
from vgjax import artefacts
from vgjax import config as configs
from vgjax import run as runs
from vgjax import store as stores
from vgjax.boundary import guarded
from vgjax.context import Run

STAGES = ("prior", "disentangler", "denoiser")
USED = {  # by mode, what has to be there after it
    "prepare": ("pictures", "vocabulary", "wordings"),
    "train": STAGES,
    "sample": STAGES,
    "export": STAGES,
    "evaluate": (*STAGES, "evaluation"),
    "report": (*STAGES, "evaluation"),
    "run": (*STAGES, "evaluation"),
    "status": (),
}
RATES = (1e-3, 2e-3, HIGHEST * 2, HIGHEST * 4)
VALUES = {  # the first is where a run starts
    "seed": (0, (1 << 64) - 1),
    "data.test_items": (32, 33),
    "prior.weight_kl": (0.01, 0.5),
    "text_encoder.max_length": (32, 12),
    "disentangler.text_dropout": (0.1, 0.2),
    "denoiser.components": (12, 4),
    "denoiser.train.steps": (6, 7),
    "sample.steps": (4, 5),
    "evaluate.resamples": (100, 50),
    **{f"{name}.train.learning_rate": RATES for name in STAGES},
    "data.workers": (0, 1),  # and these matter to nothing
    "prior.train.log_every_steps": (2, 1),
    "name": ("phantom", "other"),
}
WRITTEN = {  # by mode, what tells of which contents it was made
    "evaluate": ("metrics.json",),
    "report": ("report.html",),
    "run": ("metrics.json", "report.html"),
    "sample": ("samples/0.json",),
    "export": ("export/0.json",),
}
VERSIONED = ("pictures", "factors", "prior", "denoiser")
DAMAGES = ("missing", "cut", "empty", "flipped", "longer", "folder", "pipe", "dangling")

DAMAGED = ("store/**/*", "store/*[0-9a-f]/[abv]*", "store/*/manifest.json", "store/*.part/*", "run/**/*")
CHANGES = st.integers(1, 12) | st.integers(1, 120)  # of files, until one fails; of the latter, making everything needs
PLACES = st.tuples(st.floats(0, 0.999), st.integers(0, 7))


def erase(path: pathlib.Path) -> None:
    (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.remove)(path)


class States(RuleBasedStateMachine):
    """One store, one workdir, and what may be expected of them."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(begun=st.booleans())
    def start(self, begun: bool) -> None:
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="states-"))
        os.chdir(self.base)
        self.store, self.workdir, self.root = (self.base / name for name in ("store", "run", "raw"))
        self.keys = {key: values[0] for key, values in VALUES.items()}
        self.raws, self.faulty, self.told = {"0"}, set(), ""
        VERSIONS.clear()
        MADE.clear()
        self._change_raw(0)
        if begun:
            self._command("run")

    # ---------------------------------------------------------------- moves

    @invariant()
    def counted(self) -> None:
        self.seen["moves"] += 1

    @rule(mode=st.sampled_from(list(USED)))
    def command(self, mode: str) -> None:
        self._command(mode)

    @rule(mode=st.sampled_from(["run", "evaluate", "sample"]))
    def usual_command(self, mode: str) -> None:
        self._command(mode)

    @rule(mode=st.sampled_from(list(USED)), kind=st.sampled_from(KINDS[:2]), at=CHANGES)
    def killed_command(self, mode: str, kind: str, at: int) -> None:
        self._command(mode, Disk(str(self.base), kind, at))

    @rule(mode=st.sampled_from(list(USED)), kind=st.sampled_from(KINDS[2:]), at=CHANGES, i=st.integers(0, 99))
    def failing_command(self, mode: str, kind: str, at: int, i: int) -> None:
        folders = sorted(self.store.glob("*-*")) if self.store.exists() else []
        place = str(folders[i % len(folders)]) if folders else str(self.base)
        self._command(mode, Disk(str(self.base), kind, at, place))

    @rule(what=st.sampled_from([*VALUES, *(f"version {name}" for name in VERSIONED), "raw data"]), i=st.integers(0, 3))
    def change(self, what: str, i: int) -> None:
        if what == "raw data":
            self._change_raw((None, 0, 0, 1)[i])
        elif what in VALUES:
            self.keys[what] = VALUES[what][i % len(VALUES[what])]
        else:
            VERSIONS[what.split()[1]] = i % 2

    def _change_raw(self, number: int | None) -> None:
        self.raw = None if number is None else str(number)
        shutil.rmtree(self.root, ignore_errors=True)
        if number is not None:
            self.root.mkdir()
            (self.root / RAW).write_text(str(number))
            os.utime(self.root / RAW, ns=(0, number))
            self.raws.add(str(number))

    @rule(
        pattern=st.sampled_from(DAMAGED),
        i=st.integers(0, 999),
        kind=st.sampled_from(DAMAGES),
        at=PLACES,
        mode=st.sampled_from(["report", "sample", "run", ""]),
    )
    def damage_file(self, pattern: str, i: int, kind: str, at: tuple[float, int], mode: str) -> None:
        files = [path for path in self.base.glob(pattern) if path.is_file() and path.stat().st_size]
        if files:
            path = sorted(files)[i % len(files)]
            damage(path, kind, *at)
            inside = path.is_relative_to(self.store)
            self.faulty.add(self.store / path.relative_to(self.store).parts[0] if inside else self.workdir)
            if mode:
                self._command(mode)
                self.heed()

    @rule(i=st.integers(0, 99))
    def delete_artefact(self, i: int) -> None:
        if folders := sorted(self.store.glob("*-*")):
            erase(folders[i % len(folders)])

    @rule()
    def heed(self) -> None:
        """Deletes what the last sentence named."""
        if "delete" not in self.told and not self._excused(self.told):
            return
        named = [pathlib.Path(name) for name in re.findall(rf"{self.base}[^\s':;,]*", self.told)]
        if found := next((path for path in named if os.path.lexists(path)), None):
            erase(found)

    def teardown(self) -> None:
        """No dead end: what is told leads to the right result, however it stands."""
        if hasattr(self, "base"):
            if self.raw is None:
                self._change_raw(0)
            self.keys |= {key: RATES[0] for key in self.keys if key.endswith("learning_rate")}
            for _ in range(30):
                if self._command("run") == 0:
                    break
                self.heed()
            else:
                raise AssertionError(f"a dead end: {self.told}")
            shutil.rmtree(self.base)

    # ---------------------------------------------------------------- what may come of them

    def _config(self) -> ConfigDict:
        c = phantom.get_config("smoke")
        c.evaluate.metrics = ("control",)
        c.data.root = self.root.name  # relative, so that digests do not depend on the folder
        c.update_from_flattened_dict(self.keys)
        return c

    def _run(self) -> Run:
        return runs.open_run(self._config(), str(self.workdir))

    def _command(self, mode: str, disk: Disk | None = None) -> int | None:
        """Runs a mode as a new process would and judges its end; the exit code, None where it was killed."""

        @guarded
        def entry(argv: list[str]) -> None:
            logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
            runs.MODES[mode](self._run(), **({"n": 1, "seed": None} if mode == "sample" else {}))

        signal.alarm(60)
        stores._warn_once.cache_clear()
        self.faulty = {path for path in self.faulty if os.path.lexists(path) or path.suffix}
        try:
            with stub_stages.stubs(), active(disk or Disk(str(self.base), "", 0)):
                found = in_process.run(entry=entry)
        except Killed:
            self.seen["killed"] += 1
            return None
        errors = [line for line in found.lines if line.startswith("error: ")]
        self.told = errors[0] if errors else ""
        assert (found.code, len(errors)) in ((0, 0), (2, 1)) and "Traceback" not in str(found.lines), found
        if found.code == 0:
            self.seen["right"] += 1
            with stub_stages.stubs():
                self._judge(mode, found.lines)
        else:
            self.seen["sentence"] += 1
            assert (disk and disk.failed) or self._excused(found.lines[-1]), found
        return found.code

    def _judge(self, mode: str, lines: list[str]) -> None:
        """What a command that ended well used and wrote is what a fresh store would hold."""
        run, used = self._run(), dict[str, str]()
        for name in run.producers:  # each after what it needs
            if found := run.find(name):
                used[name] = content = found.manifest["info"]["content"]
                told = any("is used as it is" in line and str(found.folder) in line for line in lines)
                self._right(run, content, used, told or name not in USED[mode])
                if not any(path.suffix and path.name.startswith(name) for path in self.faulty):
                    assert MADE[content].rates == tuple(found.manifest["info"].get("not_finite", {}).items())
                if found.folder not in self.faulty:
                    assert {stub_stages.written(found.folder, file) for file in found.files} - {""} == {content}
        assert set(USED[mode]) <= set(used)
        for written in WRITTEN.get(mode, ()):
            told = json.loads((self.workdir / written).read_text())
            told = {"evaluation": stub_stages.told_of(told["estimates"])} if "estimates" in told else told
            assert told.items() <= used.items()

    def _right(self, run: Run, content: str, used: dict[str, str], another: bool, below: bool = False) -> None:
        """Made with the keys, the raw data and the inputs of now; a trained one by another version if that is told."""
        made, producer = MADE[content], run.producers[MADE[content].name]
        assert made.keys == stub_stages.keys_of(producer, run.config.flat())
        assert made.version == producer.version or another
        assert made.name != "pictures" or made.raw == self.raw or (self.raw is None and made.raw in self.raws)
        below |= producer.trained
        for need, made_from in made.inputs:
            if need in used and (run.producers[need].trained or not below):
                assert made_from == used[need]
            else:
                self._right(run, made_from, used, True, below)

    def _excused(self, told: str) -> bool:
        """Whether a sentence is for something that the user did, and has not put right."""
        if stage := re.search(r"stage '(\w+)' of this config is not trained", told):
            return not self._there(stage[1])
        if stage := re.search(r"stage '(\w+)': a loss is nan by step 2: lower config key", told):
            return self.keys[f"{stage[1]}.train.learning_rate"] > HIGHEST
        if "holds no run" in told:
            return not (self.workdir / runs.CONFIG_FILE).exists()
        if "holds no evaluation" in told:
            return not self._there("evaluation")
        if "data.root" in told:
            return self.raw is None
        if stores.OUTDATED in told:
            return any(made.rates for made in MADE.values())
        kind = lambda path: str(path).partition("-")[0] if path.suffix else str(path)  # a part may be renamed
        return any(kind(path) in told for path in self.faulty)

    def _there(self, name: str) -> bool:
        """Whether an artefact that is whole, as all that it was made from, is of the keys and raw data of now."""
        with stub_stages.stubs():
            config = configs.from_config_dict(self._config())
            producers, whole = artefacts.producers(config), set()
        for path in self.store.glob("*-*[0-9a-f]/manifest.json"):
            if path.parent not in self.faulty:
                whole.add(json.loads(path.read_text())["info"]["content"])

        def current(content: str) -> bool:
            made, producer = MADE[content], producers[MADE[content].name]
            same = made.keys == stub_stages.keys_of(producer, config.flat()) and made.version == producer.version
            same &= made.name != "pictures" or made.raw == self.raw
            return same and content in whole and all(current(one) for _, one in made.inputs)

        return any(current(content) for content in whole if MADE[content].name == name)


def waits(*_: object) -> None:
    raise AssertionError("it waits")


def walk(examples: int, steps: int) -> Counter[str]:
    """Counts what came of the commands, and the moves."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    States.seen.clear()
    run_state_machine_as_test(States, settings=options)
    print(dict(States.seen))
    return States.seen


@pytest.fixture(autouse=True)
def no_move_waits():
    """Nor does any leave what is raised or told once to the next test."""
    before, folder = signal.signal(signal.SIGALRM, waits), pathlib.Path.cwd()
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    os.chdir(folder)
    VERSIONS.clear()


def test_some_hundred_moves():
    seen = walk(12, 40)
    assert seen["moves"] >= 300 and min(seen["right"], seen["sentence"], seen["killed"]) > 5


@pytest.mark.slow
def test_five_thousand_moves():
    assert walk(100, 60)["moves"] >= 5000
