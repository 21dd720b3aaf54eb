"""ArrayRecord files between stages: one record a picture, several sources zipped by row."""

import contextlib
import io
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vgjax.atomic import open_regular, replacing
from vgjax.config import ConfigError

REMEDY = "delete the artefact's folder and run again"


class Rows(Protocol):
    """Random access to rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> dict[str, Any]: ...


def encode(fields: dict[str, Any]) -> bytes:
    """msgpack of text, numbers, bytes and numpy arrays (as dtype, shape and little-endian bytes)."""
    pack = lambda array: {"dtype": array.dtype.str, "shape": array.shape, "bytes": array.tobytes()}
    return msgpack.packb(fields, default=pack)


def decode(record: bytes) -> dict[str, Any]:
    """The inverse of `encode`; ConfigError where the record is none of its results."""
    unpack = lambda packed: np.frombuffer(packed["bytes"], packed["dtype"]).reshape(packed["shape"])
    is_array = lambda found: found.keys() == {"dtype", "shape", "bytes"}
    try:
        fields = msgpack.unpackb(record, object_hook=lambda found: unpack(found) if is_array(found) else found)
        assert isinstance(fields, dict)
    except Exception as error:  # msgpack and numpy promise nothing about what they raise
        raise ConfigError(f"a record is damaged ({str(error)[:200] or 'no fields'}): {REMEDY}") from error
    return fields


def from_png(data: bytes) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) uint8 of a PNG."""
    return np.asarray(Image.open(io.BytesIO(data)))


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """ConfigError where records cannot be written: array_record has no error of its own for a full disk."""
    try:
        yield
    except RuntimeError as error:
        if not (failed := re.search(r"\w+\(\) failed: ([^;]+); writing", str(error))):
            raise
        raise ConfigError(f"records in '{folder}' cannot be written ({failed[1]}): make room and run again") from None


def write(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows to one file, atomically, and returns how many. One record a group: damage stays local."""
    count = 0
    open_writer = lambda part: contextlib.closing(ArrayRecordWriter(str(part), "group_size:1"))
    with writing(path.parent), replacing(path) as part, open_writer(part) as writer:
        for row in rows:
            writer.write(encode(row))
            count += 1
    return count


def raw(paths: Sequence[pathlib.Path]) -> Sequence[bytes]:
    """Random access to the undecoded records of files; ConfigError where one is missing or cut short."""
    for path in paths:
        try:
            open_regular(path).close()  # a pipe would be waited for
            grain.sources.ArrayRecordDataSource([str(path)])
        except (RuntimeError, OSError, ValueError) as error:  # array_record has no error of its own
            why = str(error) or "cut short"
            raise ConfigError(f"the record file '{path}' cannot be opened ({why}): {REMEDY}") from None
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


def whole(path: pathlib.Path) -> bool:
    """Whether a file is there and every record of it can be read."""
    try:
        return not unreadable([path])
    except ConfigError:
        return False


class Records:
    """Random access to the rows of one file, or of several one after another."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._source = raw(paths)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return decode(self._source[row])


class SkippedRows:
    """A view of a source of `total` rows without the given ones; `numbers` are those, in the source, that are left."""

    def __init__(self, source: Rows, without: Collection[int]):
        self._source, self.total = source, len(source)
        self.numbers = [row for row in range(len(source)) if row not in without]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._source[self.numbers[row]]


class PermutedFields:
    """Rows some of whose fields come from another row: control experiments that must bring accuracy to chance."""

    def __init__(self, source: Rows, fields: Sequence[str], seed: int):
        self._source, self._fields = source, fields
        self._order = np.random.default_rng(seed).permutation(len(source))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        other = self._source[int(self._order[row])]
        return {**self._source[row], **{name: other[name] for name in self._fields}}


class Worded:
    """The rows of a source, each as often as it has captions, with one of them; `fields` hold one a caption."""

    def __init__(self, source: Rows, fields: Sequence[str]):
        self._source, self._fields, self._count = source, fields, len(source[0][fields[0]])

    def __len__(self) -> int:
        return len(self._source) * self._count

    def __getitem__(self, row: int) -> dict[str, Any]:
        found, place = self._source[row // self._count], row % self._count
        return {**found, **{name: found[name][place] for name in self._fields}}


class ZippedRecords:
    """Random access to rows whose fields come from several sources; ConfigError where these differ in length."""

    def __init__(self, sources: Mapping[str, Rows]):
        self._sources = list(sources.values())
        lengths = {name: len(source) for name, source in sources.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"records differ in length: {lengths}: {REMEDY}")

    def __len__(self) -> int:
        return len(self._sources[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: value for source in self._sources for name, value in source[row].items()}


class InMemory:
    """Rows that are read once and kept, as long as they fit into `limit` bytes; else they are read each time."""

    def __init__(self, source: Rows, limit: int = 1 << 30):
        self._source, self._kept = source, dict[int, dict[str, Any]]()
        values = source[0].values() if len(source) else ()
        self._fits = len(source) * sum(v.nbytes for v in values if isinstance(v, np.ndarray)) <= limit

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not self._fits:
            return self._source[row]
        if row not in self._kept:
            self._kept[row] = self._source[row]
        return self._kept[row]
