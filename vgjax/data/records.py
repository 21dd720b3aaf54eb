"""ArrayRecord files between stages: one record a picture, several sources zipped by row."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vgjax.config import ConfigError

REMEDY = "remove the workdir and run again"


class Rows(Protocol):
    """Random access to rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> dict[str, Any]: ...


def encode(fields: dict[str, Any]) -> bytes:
    """msgpack of text, numbers, bytes and numpy arrays (as dtype, shape and little-endian bytes)."""
    packed = {}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            value = {"dtype": value.dtype.str, "shape": list(value.shape), "bytes": value.tobytes()}
        packed[name] = value
    return msgpack.packb(packed)


def decode(record: bytes) -> dict[str, Any]:
    """The inverse of `encode`."""
    fields = msgpack.unpackb(record)
    for name, value in fields.items():
        if isinstance(value, dict) and "bytes" in value:
            fields[name] = np.frombuffer(value["bytes"], value["dtype"]).reshape(value["shape"])
    return fields


def from_png(data: bytes) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) uint8 of a PNG."""
    return np.asarray(Image.open(io.BytesIO(data)))


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1))
    part.replace(path)


def write(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows to one file, atomically, and returns how many. One record a group: damage stays local."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer = ArrayRecordWriter(str(part), "group_size:1")
    count = 0
    for row in rows:
        writer.write(encode(row))
        count += 1
    writer.close()
    part.replace(path)
    return count


def raw(paths: Sequence[pathlib.Path]) -> Sequence[bytes]:
    """Random access to the undecoded records of files.

    Raises:
      ConfigError: a file is missing, or cut short.
    """
    for path in paths:
        try:
            grain.sources.ArrayRecordDataSource([str(path)])
        # array_record has no error of its own, and often no message.
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(
                f"the record file '{path}' cannot be opened ({str(error) or 'cut short'}): {REMEDY}"
            ) from None
    return grain.sources.ArrayRecordDataSource([str(path) for path in paths])


def unreadable(paths: Sequence[pathlib.Path]) -> list[int]:
    """Numbers of the damaged records: each is stored with a hash of its own, so that damage stays local."""
    source, found = raw(paths), []
    for row in range(len(source)):
        try:
            source[row]
        except RuntimeError:
            found.append(row)
    return found


class Records:
    """Random access to the rows of one file."""

    def __init__(self, path: pathlib.Path):
        self._path, self._source = path, raw([path])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return decode(self._source[row])


class SkippedRows:
    """A view of a source without the given rows."""

    def __init__(self, source: Rows, without: Collection[int]):
        self._source = source
        self._rows = [row for row in range(len(source)) if row not in without]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._source[self._rows[row]]


class PermutedFields:
    """Rows some of whose fields come from another row: control experiments that must bring accuracy to chance.

    Args:
      fields: which to take from the permuted row.
    """

    def __init__(self, rows: Rows, fields: Sequence[str], seed: int):
        self._rows, self._fields = rows, fields
        self._order = np.random.default_rng(seed).permutation(len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        other = self._rows[int(self._order[row])]
        return {**self._rows[row], **{name: other[name] for name in self._fields}}


class ZippedRecords:
    """Random access to rows whose fields come from several sources of equal length.

    Raises:
      ConfigError: the sources have different numbers of rows.
    """

    def __init__(self, sources: Mapping[str, Rows]):
        """Takes sources by name."""
        self._sources = list(sources.values())
        lengths = {name: len(source) for name, source in sources.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"records differ in length: {lengths}: {REMEDY}")

    def __len__(self) -> int:
        return len(self._sources[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for source in self._sources:
            fields.update(source[row])
        return fields

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))
