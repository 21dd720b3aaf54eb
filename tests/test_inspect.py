from __future__ import annotations

import shutil

import pytest

from tests.test_prepare import make_root, own
from vgjax.data import inspect
from vgjax.data.prepare import pictures as prepare
from vgjax.data.prepare import splits


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("inspect") / "data", count=40, groups=20)


def test_the_report_counts_from_the_records(root, tmp_path):
    lines = inspect.inspect(own(root), tmp_path)
    total = next(line.split() for line in lines if line.startswith("all "))
    assert sum(map(int, total[1:])) == 40
    classes = {line.split()[0]: list(map(int, line.split()[1:])) for line in lines if line[:2] in ("a ", "b ")}
    assert [sum(column) for column in zip(*classes.values(), strict=True)] == list(map(int, total[1:]))
    assert "present 40 = used 40 + skipped 0: every picture accounted for" in lines
    assert "groups 20, leaks between splits 0" in lines
    assert (tmp_path / "contact_sheet.png").stat().st_size > 10_000


def test_a_leak_is_seen_in_the_records_themselves(root, tmp_path):
    prepare.prepare(own(root), tmp_path / "one")
    lists = splits.read(tmp_path / "one" / "splits")
    moved = next(item for item, split in sorted(lists.items()) if split == "test")
    splits.write(tmp_path / "lists", {**lists, moved: "train"})
    lines = inspect.inspect(own(root, **{"data.splits": str(tmp_path / "lists")}), tmp_path / "two")
    assert any(line.startswith("groups 20, leaks between splits 1") for line in lines)


def test_skipped_and_damaged_are_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "images" / "p00.png").write_bytes(b"")
    lines = inspect.inspect(own(tmp_path / "data"), tmp_path / "records")
    assert "present 40 = used 39 + skipped 1: every picture accounted for" in lines
    assert "  skipped, empty file: 1" in lines


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    from absl import flags

    known = set(flags.FLAGS)
    try:
        assert inspect.main(["inspect", f"--workdir={tmp_path}"]) == 2
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
    error = capsys.readouterr().err
    assert error.startswith("error: --config is missing") and error.count("\n") == 1
