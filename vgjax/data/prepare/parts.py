"""Decoding in parallel, resumable: each chunk of pictures leaves one file, and is not redone while that is whole."""

import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import msgpack
from tqdm import tqdm

from vgjax.atomic import open_regular, replacing
from vgjax.config import ConfigError
from vgjax.data.entries import Entry, Skip
from vgjax.data.read import decode
from vgjax.data.read.decode import Settings

CHUNK = 64  # pictures a file: seconds of work
FEW = 2 * CHUNK  # starting processes takes longer than decoding this many

Row = dict[str, Any]
Chunks = Mapping[pathlib.Path, Sequence[Entry]]  # by the file that holds their rows


class Parts:
    """Decoded pictures on disk, in the order of the entries, and those `skipped` that could not be decoded."""

    def __init__(self, folder: pathlib.Path, entries: Sequence[Entry], settings: Settings):
        self._folder, self._settings = folder, settings
        chunks = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
        # A file's name holds a digest of all that decides its content.
        self._chunks = {folder / f"{_digest(chunk, settings)}.msgpack": chunk for chunk in chunks}
        self.skipped: list[Skip] = []

    def decode(self, workers: int) -> None:
        """Decodes what is missing in so many processes (0: one a core), and removes files of other settings."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in set(self._folder.iterdir()) - self._chunks.keys():
            stale.unlink()
        missing = {path: chunk for path, chunk in self._chunks.items() if _content(path) is None}
        total, left = (sum(map(len, chunks.values())) for chunks in (self._chunks, missing))
        with tqdm(total=total, initial=total - left, desc="decoding", unit="image", disable=not total) as bar:
            for path, rows in self._results(missing, 1 if left <= FEW else workers):
                with replacing(path) as part:
                    packed = msgpack.packb(rows)
                    part.write_bytes(hashlib.sha256(packed).digest() + packed)
                bar.update(len(rows))
        self.skipped = [Skip(*row["skip"]) for row in self._all() if "skip" in row]

    def __iter__(self) -> Iterator[Row]:
        """The rows that could be decoded, one chunk in memory at a time."""
        return (row for row in self._all() if "skip" not in row)

    def _all(self) -> Iterator[Row]:
        for path in self._chunks:
            yield from msgpack.unpackb(_content(path))

    def _results(self, missing: Chunks, workers: int) -> Iterator[tuple[pathlib.Path, list[Row]]]:
        if workers == 1:
            yield from ((path, _packed(chunk, self._settings)) for path, chunk in missing.items())
            return
        # A forked child would inherit JAX's threads in an unknown state.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context, initializer=_end_with_parent)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: an interrupt is for us to tell
        try:
            waiting = {pool.submit(_packed, chunk, self._settings): path for path, chunk in missing.items()}
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise ConfigError(
                "a process that decodes was killed, which a lack of memory does: lower data.workers or data.max_pixels"
                " and run again; what is decoded is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _content(path: pathlib.Path) -> bytes | None:
    """What a chunk's file holds after its digest; None where it is missing or damaged, and so to be decoded again."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        if file.read(32) == hashlib.sha256(packed := file.read()).digest():
            return packed
    return None


def _end_with_parent() -> None:
    """Makes this process end with the one that started it, however that ends."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _packed(chunk: Sequence[Entry], settings: Settings) -> list[Row]:
    found = [decode.decode(entry, settings) for entry in chunk]
    return [{"skip": list(row)} if isinstance(row, Skip) else row for row in found]


def _digest(chunk: Sequence[Entry], settings: Settings) -> str:
    stamps = [_stamp(path) for entry in chunk for path in (entry.image, *entry.masks) if isinstance(path, pathlib.Path)]
    return hashlib.sha256(repr((chunk, settings, stamps)).encode(errors="surrogatepass")).hexdigest()[:24]


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of a file, so that a replaced one is decoded again."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
