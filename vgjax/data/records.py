"""ArrayRecord files between stages: one record a picture, several files zipped by row."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


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


def to_png(pixels: np.ndarray) -> bytes:
    """Encodes (H, W) or (H, W, 3) uint8 pixels without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """The inverse of `to_png`."""
    return np.asarray(Image.open(io.BytesIO(data)))


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


class ZippedRecords:
    """Random access to rows whose fields come from several files of equal length (and from a `select` of fields).

    Raises:
      ValueError: the files have different numbers of rows.
    """

    def __init__(self, paths: Sequence[pathlib.Path], fields: Sequence[str] | None = None):
        self._sources = [grain.sources.ArrayRecordDataSource([str(p)]) for p in paths]
        self._fields = fields
        lengths = {p.name: len(s) for p, s in zip(paths, self._sources, strict=True)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"record files differ in length: {lengths}; remove the workdir's records/ and run again")

    def __len__(self) -> int:
        return len(self._sources[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for source in self._sources:
            fields.update(decode(source[row]))
        return fields if self._fields is None else {name: fields[name] for name in self._fields}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))
