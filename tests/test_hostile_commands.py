"""Command lines that nobody should give: one sentence, exit code 2, nothing made."""

import os
from pathlib import Path

import pytest

from tests.in_process import PHANTOM, refused, run
from vgjax import main

MODES = [mode for mode in main.MODES if mode not in main.PLANNED]
NEED_RUN = ["sample", "evaluate", "report", "export"]
ASKED = {"sample": ["--prompt=a lesion"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that a command may not add to; configs are found from the repository's."""
    monkeypatch.chdir(Path(__file__).parents[1])
    return tmp_path


def make(kind: str, path: Path) -> Path:
    """Something in the way at a path."""
    if kind == "file":
        path.write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere") / "below")
    elif kind == "full":
        path.mkdir()
        (path / "photo.jpg").write_bytes(b"x")
    elif kind == "empty":
        path.mkdir()
    return path


# ---------------------------------------------------------------- config files

CONFIGS = {
    "nothing": ("", "get_config"),
    "no_function": ("x = 1", "get_config"),
    "syntax": ("def get_config(:", "syntax"),
    "nul": ("x = '\0'", "null bytes"),
    "latin": (b"# \xe4\n", "config.py"),
    "none": ("def get_config(): pass", "returned NoneType: return a ConfigDict"),
    "dict": ("def get_config(): return {'a': 1}", "returned dict"),
    "class": ("def get_config(): return object", "returned type"),
    "raise": ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
    "value": ("def get_config():\n\n    raise ValueError('no\\nway')", "line 3: ValueError: no way"),
    "type": ("def get_config(): return len(3)", "line 1: TypeError: object of type 'int' has no len()"),
    "key": ("def get_config(): return {}['x']", "line 1: KeyError: 'x'"),
    "os": ("def get_config():\n    open('/nowhere/x')", "No such file or directory"),
    "import": ("import nothere", "line 1: ModuleNotFoundError: No module named 'nothere'"),
    "below": ("from configs import base\nbase.with_variants(base.get_config(), 'x')", "config variant 'x'"),
    "exit": ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
    "deep": ("def f(): f()\ndef get_config(): f()", "line 1: RecursionError"),
    "circle": (
        "from ml_collections import ConfigDict\ndef get_config():\n  c = ConfigDict()\n  c.c = c\n  return c",
        "config key",
    ),
    "alien": (
        "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict(dict(x=3))",
        "unknown config key",
    ),
    "vacant": ("from ml_collections import ConfigDict\nget_config = ConfigDict", "missing config key 'name'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files(here, name):
    text, match = CONFIGS[name]
    (here / "config.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(here, match, f"--config={here}/config.py", f"--workdir={here}/run")


@pytest.mark.parametrize("kind", ["missing", "empty", "pipe", "loop", "dangling"])
def test_what_is_no_config_file(here, kind):
    path = make(kind, here / "config.py")
    refused(here, "is not a file: name one", f"--config={path}", f"--workdir={here}/run")


# ---------------------------------------------------------------- flags

FLAGS = [
    ([], "--config is missing"),
    (["--mode=run"], "--config is missing"),
    (["--config"], "--config is missing"),
    (["--config="], "'' is not a file"),
    (["--config=:smoke"], "'' is not a file"),
    (["--config=configs/phantom.py:smoke+smok"], "config variant 'smok' of 'phantom' is unknown"),
    (["--config=configs/busi.py:SMOKE"], "config variant 'SMOKE' of 'busi' is unknown"),
    ([PHANTOM, "lesion"], "argument 'lesion' belongs to no flag"),
    ([PHANTOM, "--mode=sample", "--prompt", "a", "small", "lesion"], "argument 'small' belongs to no flag"),
    ([PHANTOM, "--mode"], "mode"),
    ([PHANTOM, "--mode="], "mode"),
    ([PHANTOM, "--mode=Run"], "mode"),
    ([PHANTOM, "--mode=bench"], "not built yet"),
    ([PHANTOM, "--moed=run"], "moed"),
    ([PHANTOM, "--flagfile=nowhere"], "nowhere"),
    (["--config.seed=1", PHANTOM], "--config.seed"),
    ([PHANTOM, "--config.sead=1"], "sead"),
    ([PHANTOM, "--config.nope.x=1"], "unknown config key 'nope'"),
    ([PHANTOM, "--config.prior=3"], "config.prior"),
    ([PHANTOM, "--config.prior.x.y=3"], "unknown config key 'x'"),
    ([PHANTOM, "--config.prior.widths.x=3"], "tuple indices"),
    ([PHANTOM, "--config.seed"], "config.seed"),
    ([PHANTOM, "--config.seed="], "config.seed"),
    ([PHANTOM, "--config.seed=1.5"], "1.5"),
    ([PHANTOM, "--config.seed=-1"], "'seed' is -1"),
    ([PHANTOM, "--config.data.flip=x"], "flip"),
    ([PHANTOM, "--config.prior.flip=maybe"], "prior.flip"),
    ([PHANTOM, "--config.prior.widths=8,x"], "prior.widths"),
    ([PHANTOM, "--config.prior.train.learning_rate=fast"], "learning_rate"),
    ([PHANTOM, "--n=3"], "--n means nothing in --mode=run"),
    ([PHANTOM, "--mode=sample"], "needs --prompt"),
    ([PHANTOM, "--mode=sample", "--prompt="], "needs --prompt"),
    *(([PHANTOM, "--mode=sample", "--prompt=x", f"--n={n}"], "n") for n in ("-1", "x", "1.5", "", "1e3")),
    *(([PHANTOM, "--mode=sample", "--prompt=x", f"--seed={n}"], "seed") for n in ("-1", "x", "1.5", "", "nan")),
    *(
        ([PHANTOM, "--mode=sample", "--edit=x.png", f"--strength={n}"], "strength")
        for n in ("-1", "0", "1.01", "x", "", "nan", "inf")
    ),
    ([PHANTOM, "--mode=sample", "--prompt=x", "--n=100000000000"], "--n="),
    ([PHANTOM, "--mode=sample", "--prompt=x", f"--seed={1 << 64}"], "seed"),
]


@pytest.mark.parametrize(("arguments", "match"), FLAGS, ids=lambda value: " ".join(value)[-40:] or "none")
def test_flags(here, arguments, match):
    refused(here, match, *arguments, *([] if arguments[-1:] == ["--config"] else [f"--workdir={here}/run"]))


# ---------------------------------------------------------------- workdir and store


@pytest.mark.parametrize("mode", NEED_RUN)
def test_a_mistyped_workdir_is_not_made(here, mode):
    refused(
        here,
        "run --mode=train" if mode != "report" else "holds no run",
        PHANTOM,
        f"--mode={mode}",
        f"--workdir={here}/typo",
        *ASKED.get(mode, ()),
    )


def test_status_makes_no_workdir(here):
    found = run(PHANTOM, "--mode=status", f"--workdir={here}/typo")
    assert found.code == 0 and "never made" in found.out and list(here.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", ["workdir", "store"])
@pytest.mark.parametrize("kind", ["file", "pipe", "loop", "dangling", "below", "long", "proc"])
def test_workdirs_and_stores_that_cannot_be(here, mode, flag, kind):
    names = {"below": make("file", here / "x") / "run", "long": here / ("n" * 300)}
    path = names.get(kind, Path("/proc/nowhere") if kind == "proc" else make(kind, here / "place"))
    others = {"workdir": f"--store={here}/other", "store": f"--workdir={here}/other"}[flag]
    refused(here, "", PHANTOM, f"--mode={mode}", f"--{flag}={path}", others, *ASKED.get(mode, ()))


@pytest.mark.parametrize("mode", MODES)
def test_a_workdir_that_is_somebody_elses(here, mode):
    path = make("full", here / "photos")
    refused(here, "no config.json", PHANTOM, f"--mode={mode}", f"--workdir={path}", *ASKED.get(mode, ()))


def test_what_a_killed_start_left_is_in_nobodys_way(here):
    (here / "run").mkdir()
    (here / "run" / ".config-0123.part").write_text("{")
    assert run(PHANTOM, "--mode=status", f"--workdir={here}/run").code == 0


@pytest.mark.parametrize("name", ["no\nline", "\udcff", "ünïcode 病变", "-x", "a'b\"c", "%s{0}", " "])
def test_odd_names_are_names(here, name):
    assert run(PHANTOM, "--mode=status", f"--workdir={here}/{name}").code == 0
    assert refused(here, "is not trained", PHANTOM, "--mode=export", f"--workdir={here}/{name}")


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in NEED_RUN])
@pytest.mark.parametrize("root", ["", "nowhere", "file", "pipe"])
def test_a_dataset_that_is_not_there(here, mode, root):
    path = make(root, here / root) if root else ""
    arguments = ["--config=configs/busi.py:smoke", f"--mode={mode}", f"--workdir={here}/run"]
    refused(here, "data.root", *arguments, f"--config.data.root={path}")


def test_an_advised_remedy_is_taken(here):
    """What a refused try advises is not refused for what that try left."""
    arguments = [PHANTOM, f"--workdir={here}/run", "--mode=prepare"]
    found = run(*arguments, "--config.data.image_size=16", "--config.prior.grid=2", "--config.denoiser.patch=2")
    assert found.code == 2 and "phantoms need at least 32 pixels" in found.lines[-1]
    assert not (here / "run").exists()
    assert run(*arguments).code == 0
