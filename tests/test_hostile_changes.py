"""Datasets that change after preparation, and disks that fill up."""

import os
import re
import resource
import shutil

import pytest
from PIL import Image

from configs import folder as folder_config
from tests.in_process import run
from tests.test_hostile_folders import IDS, captions, keep, lists, prepare, root, rows, table, whole
from vgjax import run as runs

__all__ = ("root", "whole")  # fixtures


def add_a_picture(root):
    shutil.copy(root / IDS[0], root / "images" / "new.png")


def remove_a_mask(root):
    (root / "masks" / "p00.png").unlink()


def touch(root):
    os.utime(root / IDS[0], ns=(1, 1))


CHANGES = {
    "a caption edited": lambda root: table(root, [["p00.png", "Another.", "a", "p00.png"], *rows(root)[1:]]),
    "a row removed": lambda root: table(root, rows(root)[1:]),
    "a picture replaced": lambda root: Image.new("RGB", (60, 48), "red").save(root / IDS[0]),
    "a mask replaced": lambda root: Image.new("L", (60, 48), 255).save(root / "masks" / "p00.png"),
    "a picture added": add_a_picture,
    "a mask removed": remove_a_mask,
    "pictures removed": lambda root: keep(root, 20),
    "a picture renamed": lambda root: (root / IDS[0]).rename(root / "images" / "q.png"),
    "a time changed": touch,
    "a captions file edited": lambda root: captions(root, IDS[1:]),
    "lists edited": lambda root: lists(root, IDS[:11], IDS[11:18], IDS[18:]),
}


@pytest.fixture
def made(root) -> list[str]:
    """Flags of a run all of whose artefacts are there, those after the pictures without content."""
    flags = [captions(root, IDS), lists(root, IDS[:12], IDS[12:18], IDS[18:])]
    c = folder_config.get_config("smoke")
    keys = dict(flag.removeprefix("--config.data.").split("=") for flag in flags)
    c.data.update({"root": str(root), "validation_fraction": 0.2, **keys})
    made = runs.open_run(c, str(root.parent / "run"))
    made.artefact("pictures")
    for name in made.producers:
        made.store.get(made.recipe(name), lambda folder: {})
    assert {line.split()[1] for line in prepare(root, *flags, mode="status").out.splitlines()} == {"there"}
    runs._begin(made)
    return flags


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_dataset_is_told_with_the_way_on(root, made, kind):
    first = next(root.parent.glob("store/pictures-*[0-9a-f]")).name
    CHANGES[kind](root)
    told = prepare(root, *made, mode="status").out.splitlines()
    assert re.fullmatch(rf"pictures-\w+ +missing +raw data changed \(since {first}\)", told[0])
    assert all("missing" in line for line in told if "not needed" not in line)
    for mode, flag in (("sample", "--prompt=x"), ("evaluate", "--workdir="), ("export", "--prompt=x")):
        ended = prepare(root, *made, *[flag] * (flag != "--workdir="), mode=mode)
        assert ended.code == 2 and len(ended.lines) == 1
        assert "is not trained: run --mode=train first (--mode=status says why)" in ended.lines[0]
    ended = prepare(root, *made)
    assert ended.code == 0, ended
    assert {"making pictures: raw data changed", "making vocabulary: made from other pictures"} <= {*ended.lines}
    assert len(list(root.parent.glob("store/pictures-*[0-9a-f]/manifest.json"))) == 2


def test_a_dataset_that_is_gone_is_told(root):
    assert prepare(root).code == 0
    shutil.rmtree(root)
    ended = prepare(root, mode="status")
    assert any("is used as it is" in line and "raw data is absent" in line for line in ended.lines)
    assert re.match(r"pictures-\w+ +there +raw data is absent", ended.out)


def test_a_disk_that_fills_up_while_records_are_written(tmp_path):
    command = ("--config=configs/phantom.py:smoke", "--mode=prepare", f"--workdir={tmp_path / 'run'}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        ended = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == 2
    assert re.fullmatch(r"error: records in '.*' cannot be written \(File too large\): make room.*", ended.lines[-1])
    assert not list(tmp_path.glob("store/*/manifest.json"))
    ended = run(*command)  # with room again
    assert ended.code == 0 and "making pictures: unfinished" in ended.lines
