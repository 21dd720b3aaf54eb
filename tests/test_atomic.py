"""Files are whole or absent, whatever happens while they are written."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.hostile import SPECIAL
from vgjax import atomic
from vgjax.checkpoint import save_tensors


def test_a_new_folder_holds_the_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "values.json"
    atomic.write_json(path, {"b": 1, "a": "é"}, sort_keys=True)
    assert path.read_text() == '{\n "a": "\\u00e9",\n "b": 1\n}\n'
    assert [file.name for file in path.parent.iterdir()] == ["values.json"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # results are meant to be read by others
    atomic.write_text(path, "ü\r\n")
    assert path.read_bytes() == b"\xc3\xbc\r\n"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read_whatever_the_writer_would(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(2)})  # safetensors makes files for their owner alone
        with atomic.replacing(tmp_path / "b") as part:
            part.touch(mode=0o600)
        atomic.write_text(tmp_path / "c", "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_file_is_opened_and_nothing_else_is_waited_for(tmp_path, at_once):
    (tmp_path / "file").write_bytes(b"four")
    (tmp_path / "link").symlink_to("file")
    assert atomic.read_regular(tmp_path / "link", most=4) == b"four"
    for name, make in SPECIAL.items():
        make(tmp_path / name)
        with pytest.raises(OSError, match="not a file but a folder, a pipe, a socket or a device"):
            atomic.open_regular(tmp_path / name)
    for name, reason in (("absent", "No such file"), ("a\0b", "an impossible name"), ("x" * 300, "too long")):
        with pytest.raises(OSError, match=reason):
            atomic.open_regular(tmp_path / name)
    with pytest.raises(OSError, match="4 bytes, at most 3 are read"):
        atomic.read_regular(tmp_path / "file", most=3)
    with pytest.raises(OSError, match="symbolic links"):
        atomic.open_regular(tmp_path / "link", os.O_NOFOLLOW)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic.replacing(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    with pytest.raises(FileNotFoundError), atomic.replacing(path):
        pass  # nothing was written
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_size))
    replace = os.replace
    monkeypatch.setattr(atomic.os, "replace", lambda *paths: done.append("named") or replace(*paths))
    atomic.write_text(tmp_path / "file", "four")
    assert done == [4, "named"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / ("long" * 60 + ".txt")
    with atomic.replacing(path) as first:
        first.write_text("first")
        atomic.write_text(path, "second")
    assert path.read_text() == "first"


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "values.json"
    atomic.write_json(path, {"old": 1})
    program = (
        "import os, signal, sys; from vgjax import atomic\n"
        "with atomic.replacing(sys.argv[1]) as part:\n"
        "    part.write_text('{'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = os.path.dirname(os.path.dirname(__file__))
    assert subprocess.run([sys.executable, "-c", program, path], cwd=root).returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.glob("*.json")) == [path]  # what is left of the other is found under no such name
