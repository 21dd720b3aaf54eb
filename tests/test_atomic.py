"""Files are whole or absent, whatever happens while they are written."""

import json
import os
import signal
import subprocess
import sys

import pytest

from vgjax import atomic


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
