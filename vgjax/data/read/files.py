"""Opening files that nobody vouches for: what is not a plain file below the root is refused, decoders are contained."""

import contextlib
import errno
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from vgjax.atomic import open_regular
from vgjax.config import ConfigError

MAX_BYTES = 500_000_000
MIN_SIDE = 8  # pixels; the coarsest map of the networks has one cell for so many
HEAD = 544  # bytes; the longest header that a format is known by is NIfTI-2's

# What decoders say of files that end too early.
TRUNCATED = ("truncated", "less than expected", "not enough data")
REASONS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ELOOP: "circle of links",
    errno.ENAMETOOLONG: "impossible name",
    errno.EINVAL: "not a file",  # but a folder, say
}


class ImageError(ValueError):
    """A file, or what `path` stands for, that cannot be used; reason and detail are those of `entries.Skip`."""

    def __init__(self, path: str, reason: str, detail: str):
        # All three are arguments of the exception, so that it crosses from one process to another.
        super().__init__(path, reason, detail)
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        # repr: names may hold line breaks and bytes that are no text.
        return f"{self.path!r} cannot be used, {self.reason}: {self.detail}"


@contextlib.contextmanager
def opened(path: str | pathlib.Path, root: str | pathlib.Path) -> Iterator[tuple[BinaryIO, bytes]]:
    """A regular file and its first bytes; whatever its decoder raises becomes an ImageError."""
    name = str(path)
    try:
        with silence, _open(name, root) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_BYTES:
                raise ImageError(name, "too large", f"{size} bytes, at most {MAX_BYTES} are read")
            if not size:
                raise ImageError(name, "empty file", "0 bytes")
            head = stream.read(HEAD)
            stream.seek(0)
            yield stream, head
    except (ImageError, ConfigError):
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(name, "too large", words(error)) from error
    # Decoders promise nothing about what they raise on damaged files: Pillow, pydicom and nibabel together manage most
    # of the built-in exceptions.
    except Exception as error:
        detail = words(error)
        short = isinstance(error, EOFError) or any(sign in detail.lower() for sign in TRUNCATED)
        raise ImageError(name, "truncated" if short else "damaged", detail) from error


def _open(name: str, root: str | pathlib.Path) -> BinaryIO:
    """Opens what is a file below the root, without following a link that was swapped in meanwhile."""
    try:
        home, real = os.path.realpath(root), os.path.realpath(name)
        if os.path.commonpath([home, real]) != home:
            raise ImageError(name, "outside the root", f"it leads to {real!r}")
        return open_regular(real, os.O_NOFOLLOW)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(name, REASONS.get(error.errno or 0, "unreadable"), str(error.strerror)) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(name, "impossible name", words(error)) from error


class _Silence:
    """Warnings of decoders are no news: what matters becomes an ImageError.

    Python's filters belong to the whole process, so the first thread that comes in sets them aside and the last one out
    puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._ignored = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._ignored.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._ignored.close()


silence = _Silence()


def words(error: BaseException) -> str:
    """What an exception says, on one line that any encoding can hold."""
    text = " ".join(f"{type(error).__name__} {error}".split())
    return text.encode("utf-8", "backslashreplace").decode()[:200]


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """ImageError where a side is below `MIN_SIDE` or the picture above `max_pixels`."""
    if min(width, height) < MIN_SIDE:
        raise ImageError(name, "too small", f"{width}x{height} pixels, each side needs {MIN_SIDE}")
    if width * height > max_pixels:
        raise ImageError(name, "too large", f"{width}x{height} pixels, at most {max_pixels} in all are decoded")
