"""Tables, captions and lists of ids: whatever is named as one is read or refused in a sentence, and soon."""

import gzip
import os
import tracemalloc

import pytest

from tests.hostile import SPECIAL
from vgjax.config import ConfigError
from vgjax.data.entries import Listing
from vgjax.data.prepare import splits
from vgjax.data.read import tables

READERS = {
    "captions": (tables.read_captions, "captions.jsonl"),
    "list": (lambda path: splits.read(path.parent), "train.txt"),
    "text": (tables.read_text, "train.txt"),
    "table": (lambda path: list(tables.table_rows(Listing(path.parent), path, ["id"])), "metadata.csv"),
    "packed table": (lambda path: list(tables.table_rows(Listing(path.parent), path, ["id"])), "metadata.csv.gz"),
}


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, reader, make, at_once):
    read, name = READERS[reader]
    SPECIAL[make](tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name}.*(not a file but|no file inside)"):
        read(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_permission_is_named(tmp_path, reader, unprivileged):
    read, name = READERS[reader]
    tmp_path.chmod(0o755)
    with unprivileged(tmp_path / name), pytest.raises(ConfigError, match=f"{name}.*(Permission denied|no file inside)"):
        read(tmp_path / name)


@pytest.mark.parametrize("reader", ["captions", "list", "text"])
def test_what_is_too_large_is_refused_unread(tmp_path, reader):
    read, name = READERS[reader]
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, (1 << 30) + 1)
    with pytest.raises(ConfigError, match="1073741825 bytes, at most 1073741824 are read"):
        read(tmp_path / name)


@pytest.mark.parametrize("row", [b"x" * 10**7, b'"' + b"x\n" * 10**6, b'1,"' + b'\n","' * 10**6])
def test_an_endless_row_takes_no_memory(tmp_path, row, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROW", 10_000)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"id,text\n" + b"1,x\n" * 10_000 + row))  # rows that end may be as many as they like
    tracemalloc.start()
    with pytest.raises(ConfigError, match="a row of more than 10000 characters"):
        for _ in tables.table_rows(Listing(tmp_path), path, ["id"]):
            pass
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
