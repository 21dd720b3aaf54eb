"""Every reader of files against damaged and hostile ones: a result or one of the project's own errors.

Never another exception, a hang or a leap in memory. A case is made of its format and number alone, so that a failure
tells how to see it again: `FORMATS["pth"](random.Random("pth 17"), folder)`. What was found so is kept as small tests
beside those of its reader. The whole run, a million cases in some minutes:

    python -m pytest -s -m slow tests/test_fuzz.py
"""

import contextlib
import gzip
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save

from tests import hostile
from vgjax import weights
from vgjax.config import ConfigError
from vgjax.data import records
from vgjax.data.entries import Listing, RunLengths
from vgjax.data.prepare import splits
from vgjax.data.read.files import ImageError
from vgjax.data.read.images import read_mask
from vgjax.data.read.tables import read_captions, table_rows
from vgjax.data.sources.mimic import CHEXMASK, lungs_of
from vgjax.weights.pth import load_pth

SECONDS, SECONDS_A_BYTE = 2.0, 2e-5  # of the processor, for one case
MEMORY = 256 << 20  # bytes that the process may grow over all cases of a format
MAX_PIXELS = 1 << 20

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
WORDS = (
    *(
        b"",
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"1_0",
        b"9" * 19,
        b"9" * 5000,
        b"0.5",
        b"null",
        b"true",
        b"[[]]",
        b"{}",
        b'"',
    ),
    *(b",", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"[" * 3000, b" "),
    *(b"F8_E4M3", b"BF16", b"F4", b"C64", b"U8", b"I64", b"|O", b"<U9", b"V8", b"f4,f4", "١٢".encode()),
)


class Hang(BaseException):
    """A case took longer than it may; no reader's `except Exception` catches it."""


def changed(r: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, damaged in one to eight places."""
    data = bytearray(r.choice(seeds))
    for _ in range(r.choice((1, 1, 2, 3, 8))):
        at, length = r.randrange(len(data) + 1), r.choice((1, 2, 4, 8, 40))
        match r.randrange(8):
            case 0:
                data[at : at + 1] = bytes([r.randrange(256)])
            case 1:
                data[at : at + length] = r.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[(start := r.randrange(len(data) + 1)) : start + length] * r.choice((1, 1, 1, 300))
            case 4:
                size, order = r.choice((1, 2, 4, 8)), r.choice(("little", "big"))
                data[at : at + size] = (r.choice(NUMBERS) % 256**size).to_bytes(size, order)
            case 5:
                data[at : at + r.choice((0, length))] = r.choice(WORDS)
            case 6:
                if found := [*re.finditer(rb"\d+|[A-Z]+\d+", data)]:
                    word = r.choice((*WORDS, *(b"%d" % number for number in NUMBERS)))
                    data[slice(*r.choice(found).span())] = word
            case 7:
                data[at:] = b"" if r.random() < 0.5 else r.choice(seeds)[at:]
    return bytes(data)


# ---------------------------------------------------------------- each format: writes one case and reads it

ROWS = ["id,text,mask", 'a,"one, two",m.png', 'b,"said ""so""\nand on",', "c,ü,x"]
TABLE = ["\n".join(ROWS).encode(), "\r\n".join(ROWS).encode() + b"\r\n", b"id\n1\n2\n", "﻿id,text\n1,x".encode()]
CAPTIONS = [b'{"id": "a", "caption": "red"}\n{"id": "b", "caption": "\\u00fc", "model": null}\n{"id": "c"']
LISTS = [b'a\nb\n"c d"\n', b"\xef\xbb\xbfa\r\n"]


def table(r: random.Random, folder: Path) -> None:
    kind = r.choice(("csv", "csv", "csv.gz", "captions", "splits"))
    path = folder / f"table.{kind}"
    if kind == "captions":
        path.write_bytes(changed(r, CAPTIONS))
        read_captions(path)
    elif kind == "splits":
        for name in ("train", "validation", "test"):
            (folder / f"{name}.txt").write_bytes(changed(r, LISTS))
        splits.read(folder)
    else:
        whole = [gzip.compress(text, 1) for text in TABLE]
        packed = changed(r, whole) if r.random() < 0.5 else gzip.compress(changed(r, TABLE), 1)
        path.write_bytes(packed if kind == "csv.gz" else changed(r, TABLE))
        for row in table_rows(Listing(folder), path, ("id",)):
            assert all(isinstance(cell, str) for cell in row.values())


RUNS = [hostile.run_lengths(hostile.disc()).encode(), b"1 5 41 5 90 1", b"960 1", b""]
SIZES = [b"24", b"40", b"24.0", b"1024"]


def run_lengths(r: random.Random, folder: Path) -> None:
    text = lambda seeds: changed(r, seeds).decode("utf-8", "replace")
    size = lambda whole: text(SIZES) if r.random() < 0.2 else whole
    row = dict(zip(CHEXMASK, ("a", "0.9", text(RUNS), text(RUNS), size("24"), size("40")), strict=True))
    masks = lungs_of(row) if r.random() < 0.7 else [RunLengths(text(RUNS), 24, r.choice((40, 0, -3, 2**40)))]
    found = read_mask(masks, folder, (24, 40), MAX_PIXELS)
    assert found.shape == (24, 40) and found.dtype == np.uint8 and found.max() <= 1


MASKS = [*hostile.masks().values()]


def mask(r: random.Random, folder: Path) -> None:
    data = changed(r, MASKS)
    if data.startswith(b"\x89PNG") and r.random() < 0.7:  # right checksums lead further in
        data = checked(data)
    (folder / "mask").write_bytes(data)
    found = read_mask([folder / "mask"], folder, (24, 40), MAX_PIXELS)
    assert found.shape == (24, 40) and found.max() <= 1


def checked(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, as far as there are chunks."""
    out, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        body = data[at + 4 : at + 8 + struct.unpack(">I", data[at : at + 4])[0]]
        out += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        at += 8 + len(body)
    return bytes(out)


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def integer(n: int) -> bytes:
    long = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"K" + bytes([n]) if 0 <= n < 256 else b"\x8a" + bytes([len(long)]) + long


def several(r: random.Random) -> bytes:
    return (
        b"("
        + b"".join(integer(r.choice((1, 2, 3, 3, *NUMBERS) if r.random() < 0.1 else (1, 2, 3))) for _ in range(2))
        + b"t"
    )


def tensor(r: random.Random) -> bytes:
    kind, count = (
        (r.choice(("Float", "Long", "BFloat16", "Bool")), r.choice((6, 3, 0, 7, 2**40)))
        if r.random() < 0.2
        else ("Float", 6)
    )
    storage = (
        b"("
        + word("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"Storage\n"
        + word("0")
        + word("cpu")
        + integer(count)
        + b"tQ"
    )
    offset = integer(r.choice(NUMBERS) if r.random() < 0.1 else 0)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + several(r) + several(r) + b"\x89NtR"


PIECES = [
    *(value for key, value in vars(pickle).items() if key.isupper() and isinstance(value, bytes) and len(value) == 1),
    *(b"X\x01\0\0\0a", b"q\x01", b"h\x01", b"r\xff\xff\xff\x7f", b"\x8a\x09" + b"\x7f" * 9, b"ctorch\nFloatStorage\n"),
    *(b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"cbuiltins\neval\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"),
]


def tree(r: random.Random, depth: int = 0) -> bytes:
    """Opcodes that leave one value on the stack: what torch saves, with a strange piece here and there."""
    inner = lambda: tree(r, depth + 1)
    junk = r.choice(PIECES) if r.random() < 0.01 else b""
    key = lambda: word(r.choice("abc")) if r.random() < 0.95 else integer(r.choice(NUMBERS)) if depth else inner()
    match r.choice((0, 0, 0, 0, 1, 2, 3, 4, 5, 6)) if 0 < depth < 4 else 0 if depth else r.choice((1, 2)):
        case 0:
            return tensor(r) + junk
        case 1:
            return b"}(" + b"".join(key() + inner() for _ in range(r.randrange(4))) + junk + b"u"
        case 2:
            return (
                b"ccollections\nOrderedDict\n)R"
                + key()
                + inner()
                + b"s}"
                + word("_metadata")
                + inner()
                + b"s"
                + junk
                + b"b"
            )
        case 3:
            return b"cargparse\nNamespace\n)\x81}" + word("lr") + inner() + b"sb" + junk
        case 4:
            return b"](" + inner() + inner() + junk + b"e"
        case 5:
            return b"ctorch\nSize\n" + inner() + b"\x85R" + junk
        case _:
            return r.choice((b"N", b"\x88", integer(r.choice(NUMBERS)), word("a"), junk or b")"))


def pth(r: random.Random, folder: Path) -> None:
    path, form, program = folder / "a.pth", r.randrange(4), b"\x80\x02" + tree(r) + b"."
    if form == 0:
        program = changed(r, [program])
    with zipfile.ZipFile(path, "w", r.choice((0,) * 19 + (8,))) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", bytes(24))
    if form == 1:
        path.write_bytes(changed(r, [path.read_bytes()]))
    load_pth(path)
    same_names(weights.load(path)[0])


TENSORS = [
    save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.ones(2, np.int64)}),
    save({"x": np.zeros((0, 3), np.float16)}, {"format": "pt"}),
]


def safetensors(r: random.Random, folder: Path) -> None:
    path, data = folder / "a.safetensors", changed(r, TENSORS)
    if r.random() < 0.7:  # a header as long as it says leads further in
        whole = r.choice(TENSORS)
        end = 8 + struct.unpack("<Q", whole[:8])[0]
        header = changed(r, [whole[8:end]])
        data = struct.pack("<Q", len(header)) + header + whole[end:]
    path.write_bytes(data)
    same_names(weights.load(path)[0])


def same_names(tensors: object) -> None:
    assert isinstance(tensors, dict)
    assert all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tensors.items())


ROW = [records.encode({"id": "a", "x": np.arange(6, dtype=np.float32).reshape(2, 3), "image": b"png", "n": [1, 2.5]})]


def array_record(r: random.Random, folder: Path) -> None:
    path = folder / "a.array_record"
    with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
        for _ in range(3):
            writer.write(changed(r, ROW) if r.random() < 0.5 else ROW[0])
    if r.random() < 0.7:
        data = bytearray(path.read_bytes())  # the most of it is empty
        for at in r.choices(np.flatnonzero(np.frombuffer(data, np.uint8)), k=r.choice((1, 3))):
            data[at] = r.randrange(256)
        path.write_bytes(data[: r.randrange(len(data))] if r.random() < 0.1 else data)
    rows, damaged = records.Records([path]), records.unreadable([path])
    for row in set(range(len(rows))).difference(damaged):
        with contextlib.suppress(ConfigError):
            assert isinstance(rows[row], dict)


FORMATS: dict[str, Callable[[random.Random, Path], None]] = {
    "run lengths": run_lengths,
    "table": table,
    "pth": pth,
    "safetensors": safetensors,
    "mask": mask,
    "array_record": array_record,
}
FEW = dict(zip(FORMATS, (1500, 800, 1000, 1000, 300, 60), strict=True))
MANY = dict(zip(FORMATS, (400_000, 200_000, 160_000, 160_000, 70_000, 15_000), strict=True))


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[None]:
    """Raises Hang where the block takes longer than a case of the size of the folder's files may."""

    def stop(*_: object) -> None:
        size = sum(path.stat().st_size for path in folder.iterdir())
        signal.setitimer(signal.ITIMER_PROF, 0.01 + SECONDS_A_BYTE * size)
        signal.signal(signal.SIGPROF, fail)

    def fail(*_: object) -> None:
        raise Hang(f"longer than {SECONDS} s and {SECONDS_A_BYTE} s a byte")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(name: str, cases: int, folder: Path) -> str:
    """Runs the cases of a format, and tells what came of them."""
    outcomes: Counter[str] = Counter()
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with contextlib.suppress(OSError):  # or the most that earlier tests have taken hides what this takes
        Path("/proc/self/clear_refs").write_text("5")
    before, start = used(), time.process_time()
    for number in range(cases):
        seed = f"{name} {number}"
        try:
            with limited(folder):
                FORMATS[name](random.Random(seed), folder)
            outcomes["read"] += 1
        except (ConfigError, ImageError):
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"case '{seed}': {type(error).__name__}: {error}") from error
        grown = used() - before
        assert grown < MEMORY, f"case '{seed}' took {grown >> 20} MiB"
        before = max(before, used() - MEMORY // 2) if number < 100 else before  # what is imported on first use
    seconds = time.process_time() - start
    return f"{name}: {cases} cases, {outcomes['read']} read, {outcomes['refused']} refused, {seconds:.0f} s"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a file system: a disk takes longer to make a file than a reader to refuse it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(name, folder, capfd):
    assert fuzz(name, FEW[name], folder).startswith(f"{name}: {FEW[name]} cases")


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda r, folder: any(False for _ in iter(int, 1)), "Hang"),
        (lambda r, folder: np.ones(MEMORY // 4), "MiB"),
        (lambda r, folder: {}["a"], "KeyError"),
        (lambda r, folder: None, None),
    ],
)
def test_a_fault_is_seen(act, fault, folder, monkeypatch):
    monkeypatch.setitem(FORMATS, "planted", act)
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.2)
    if fault is None:
        assert "3 read, 0 refused" in fuzz("planted", 3, folder)
    else:
        with pytest.raises(AssertionError, match=rf"case 'planted \d'.*{fault}"):
            fuzz("planted", 3, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_million_damaged_files_are_read_or_refused(name, folder, capfd):
    assert sum(MANY.values()) >= 10**6
    outcome = fuzz(name, MANY[name], folder)
    capfd.readouterr()  # what libtiff and pydicom say
    with capfd.disabled():
        print("\n" + outcome)
