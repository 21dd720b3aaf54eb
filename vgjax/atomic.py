"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed into it."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; what the block writes there takes the place of `path` in one step.

    If the block raises, an older file stays as it was. If the process is killed, a hidden `.part` file may be left.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, so that two processes cannot rename each other's half; without the suffix, so that no glob finds it.
    part = path.with_name(f".{path.stem[:50]}-{uuid.uuid4().hex}.part")
    try:
        yield part
        with part.open("rb") as file:
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
