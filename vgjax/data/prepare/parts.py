"""Decoding in parallel, resumable: each chunk of pictures leaves one file, and is not redone while that is there."""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
from tqdm import tqdm

from vgjax.data.entries import Entry, Skip
from vgjax.data.read.decode import Settings, decode_many

CHUNK = 64  # pictures a file: seconds of work
FEW = 2 * CHUNK  # starting processes takes longer than decoding this many

Row = dict[str, Any]


class Parts:
    """Decoded pictures on disk, in the order of the entries.

    Attributes:
      skipped: pictures that could not be decoded.
    """

    def __init__(self, folder: pathlib.Path, entries: Sequence[Entry], settings: Settings):
        """Plans the chunks; a file's name holds a digest of all that decides its content."""
        self._folder, self._settings = folder, settings
        self._chunks = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
        self._paths = [folder / f"{_digest(chunk, settings)}.msgpack" for chunk in self._chunks]
        self.skipped: list[Skip] = []

    def decode(self, workers: int) -> None:
        """Decodes what is missing, removes files of other settings, and reads who was skipped.

        Args:
          workers: processes; 0: one a core.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in set(self._folder.iterdir()) - set(self._paths):
            stale.unlink()
        missing = [(path, chunk) for path, chunk in zip(self._paths, self._chunks, strict=True) if not path.exists()]
        total, done = sum(map(len, self._chunks)), sum(map(len, self._chunks)) - sum(len(chunk) for _, chunk in missing)
        with tqdm(total=total, initial=done, desc="decoding", unit="image", mininterval=1.0) as bar:
            for path, rows in self._results(missing, workers):
                part = path.with_suffix(".part")
                part.write_bytes(msgpack.packb(rows))
                part.replace(path)
                bar.update(len(rows))
        self.skipped = [Skip(*row["skip"]) for row in self._all() if "skip" in row]

    def __iter__(self) -> Iterator[Row]:
        """The rows that could be decoded, one chunk in memory at a time."""
        return (row for row in self._all() if "skip" not in row)

    def remove(self) -> None:
        """Deletes the files."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._folder.rmdir()

    def _all(self) -> Iterator[Row]:
        for path in self._paths:
            yield from msgpack.unpackb(path.read_bytes())

    def _results(
        self, missing: list[tuple[pathlib.Path, Sequence[Entry]]], workers: int
    ) -> Iterator[tuple[pathlib.Path, list[Row]]]:
        if workers == 1 or sum(len(chunk) for _, chunk in missing) <= FEW:
            for path, chunk in missing:
                yield path, _packed(chunk, self._settings)
            return
        # A forked child would inherit JAX's threads in an unknown state.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
            waiting = {pool.submit(_packed, chunk, self._settings): path for path, chunk in missing}
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()


def _packed(chunk: Sequence[Entry], settings: Settings) -> list[Row]:
    found = decode_many(chunk, settings)
    return [{"skip": list(row)} if isinstance(row, Skip) else row for row in found]


def _digest(chunk: Sequence[Entry], settings: Settings) -> str:
    stamps = [_stamp(path) for entry in chunk for path in (entry.image, *entry.masks) if isinstance(path, pathlib.Path)]
    return hashlib.sha256(repr((chunk, settings, stamps)).encode(errors="surrogatepass")).hexdigest()[:24]


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of a file, so that a replaced one is decoded again."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
