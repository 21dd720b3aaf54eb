"""Files that someone names are opened only where they are regular ones, and those of ours are whole or absent."""

import contextlib
import errno
import io
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Iterator
from typing import Any


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> io.BufferedReader:
    """Opens a file for reading without ever waiting for it, as for a pipe; OSError where it is no regular file."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "an impossible name", str(path)) from None
    if not regular:
        raise OSError(errno.EINVAL, "not a file but a folder, a pipe, a socket or a device", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags), "rb")


def read_regular(path: str | os.PathLike[str], most: int = 1 << 30) -> bytes:
    """All of a file; OSError as of `open_regular`, or it is larger than `most` bytes."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {most} are read", str(path))
        return file.read()


def nearest(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest folder above it that is there: where it would be made."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; what the block writes there is flushed and takes the place of `path`.

    If the block raises, an older file stays as it was. If the process is killed, a hidden `.part` file may be left.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, so that two processes cannot rename each other's half; without the suffix, so that no glob finds it.
    part = path.with_name(f".{path.stem[:50]}-{uuid.uuid4().hex}.part")
    part.touch()  # shows what mode the umask asks for; some writers, safetensors' among them, would keep others out
    mode = part.stat().st_mode
    part.unlink()
    try:
        yield part
        with part.open("rb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 with its line breaks as they are."""
    with replacing(path) as part:
        part.write_bytes(text.encode())


def write_json(path: str | os.PathLike[str], values: Any, **options: Any) -> None:
    """Writes `values` as indented JSON; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(values, indent=1, **options) + "\n")
