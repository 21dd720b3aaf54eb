import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO
from tests.test_features import flip
from tests.test_prepare import make_root, own
from vgjax.data import inspect
from vgjax.data.prepare import builder, splits
from vgjax.data.prepare import pictures as prepare
from vgjax.store import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("inspect") / "data", count=40, groups=20)


def test_the_report_counts_from_the_records(root, tmp_path):
    lines = inspect.inspect(own(root), tmp_path / "run", Store(tmp_path / "store"))
    total = next(line.split() for line in lines if line.startswith("all "))
    assert sum(map(int, total[1:])) == 40
    classes = {line.split()[0]: list(map(int, line.split()[1:])) for line in lines if line[:2] in ("a ", "b ")}
    assert [sum(column) for column in zip(*classes.values(), strict=True)] == list(map(int, total[1:]))
    assert "present 40 = used 40 + skipped 0: every picture accounted for" in lines
    assert "groups 20, leaks between splits 0" in lines
    assert (tmp_path / "run" / "contact_sheet.png").stat().st_size > 10_000


def test_a_leak_is_seen_in_the_records_themselves(root, tmp_path):
    prepare.prepare(own(root), tmp_path / "one")
    lists = splits.read(tmp_path / "one" / "splits")
    moved = next(item for item, split in sorted(lists.items()) if split == "test")
    splits.write(tmp_path / "lists", {**lists, moved: "train"})
    moved_config = own(root, **{"data.splits": str(tmp_path / "lists")})
    lines = inspect.inspect(moved_config, tmp_path / "run", Store(tmp_path / "store"))
    assert any(line.startswith("groups 20, leaks between splits 1") for line in lines)


def test_skipped_and_damaged_are_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "images" / "p00.png").write_bytes(b"")
    config, store = own(tmp_path / "data"), Store(tmp_path / "store")
    lines = inspect.inspect(config, tmp_path / "run", store)
    assert "present 40 = used 39 + skipped 1: every picture accounted for" in lines
    assert "  skipped, empty file: 1" in lines
    assert not any(line.startswith("damaged") for line in lines)
    made = store.find(prepare.PICTURES.recipe(config, {}))
    flip(next(made.folder.glob(builder.shards("folder", "train"))), row=3)
    lines = inspect.inspect(config, tmp_path / "run", store)
    assert "damaged records left out: 1" in lines
    assert sum(int(n) for n in next(line.split()[1:] for line in lines if line.startswith("all "))) == 38


def test_the_command_refuses_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "vgjax.data.inspect", f"--workdir={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: --config is missing") and ran.stderr.count("\n") == 1
