"""Tables that come with datasets: read row by row, whatever stands in them."""

import contextlib
import csv
import errno
import gzip
import io
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator

from vgjax.atomic import open_regular, read_regular
from vgjax.config import ConfigError
from vgjax.data.entries import Listing, bad_root, inside, shown

MAX_FIELD = 1 << 24  # characters of one field of a table; run lengths of a mask take some 10^5
MAX_ROW = 1 << 26  # of one row, whatever lines it takes: a small .gz may hold an endless one


def tidy(text: str) -> str:
    """Words with single blanks between them; control characters and what could not be decoded are blanks."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]", " ", text).split())


def table_rows(listing: Listing, path: pathlib.Path, required: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a table with commas, by column, one at a time; `.gz` is decompressed on the way.

    Fields that a row lacks at its end are "", surplus ones are dropped, blank rows left out. A field beyond `MAX_FIELD`
    costs its row, which is skipped.

    Raises:
      ConfigError: the table is unreadable, truncated, no UTF-8 or outside the root, or lacks a column or has one twice.
    """
    csv.field_size_limit(MAX_FIELD)
    try:
        with open_text(listing.base, path) as file:
            row = _Row(file)
            reader = csv.reader(row)
            header = [name.strip() for name in next(reader, [])]
            if absent := [name for name in required if name not in header]:
                raise ConfigError(
                    f"table '{path}' has no column {', '.join(absent)} (it has"
                    f" {', '.join(header)[:300] or 'none'}): name its columns in the first line"
                )
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise ConfigError(f"table '{path}' has the column {', '.join(twice)} twice: keep one")
            while True:
                row.taken = 0
                try:
                    line = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    where = f"{shown(listing.base, path)}:{reader.line_num}"
                    listing.skip(where, "unreadable row", str(error), picture=False)
                    continue
                if any(line):
                    yield dict(itertools.zip_longest(header, line[: len(header)], fillvalue=""))
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"table '{path}' cannot be read to its end ({reason}): permit it or download it again"
        ) from error


class _Row:
    """The lines of a file; OSError once more than `MAX_ROW` characters are `taken`."""

    def __init__(self, file: io.TextIOBase):
        self._file, self.taken = file, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_ROW + 1):
            self.taken += len(line)
            if self.taken > MAX_ROW:
                raise OSError(errno.EFBIG, f"a row of more than {MAX_ROW} characters")
            yield line


def read_text(path: pathlib.Path) -> str:
    """All of a text file of the dataset, bytes that are no UTF-8 as U+FFFD; ConfigError where it cannot be read."""
    try:
        return read_regular(path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise bad_root(f"'{path}' cannot be read ({error.strerror}): make it readable") from error


@contextlib.contextmanager
def open_text(base: pathlib.Path, path: pathlib.Path) -> Iterator[io.TextIOBase]:
    """A UTF-8 file, decompressed where it is .gz; ConfigError where it is none, or no file inside `base`."""
    if not os.path.isfile(path) or not inside(base, path):
        raise ConfigError(f"table '{path}' is no file inside '{base}': replace it by the file itself")
    try:
        with open_regular(path) as file:
            stream = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError:
        raise ConfigError(f"table '{path}' is not UTF-8: save it as UTF-8 text") from None


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Id -> caption of a file of JSON lines with at least "id" and "caption"; a last line cut short is left out.

    Raises:
      ConfigError: the file cannot be read, a line is something else, or an id has two captions.
    """
    captions: dict[str, str] = {}
    for row in caption_rows(pathlib.Path(path))[0]:
        if captions.setdefault(row["id"], row["caption"]) != row["caption"]:
            raise ConfigError(f"'{path}' holds a second caption of {row['id']!r}: leave one of them")
    return captions


def caption_rows(path: pathlib.Path) -> tuple[list[dict[str, str]], int]:
    """The rows of a file, and how many of its bytes hold them: the rest is a last line that was cut short."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read '{path}': {error.strerror}: name a file of captions, one JSON a line"
        ) from error
    rows: list[dict[str, str]] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and isinstance(row["id"], str) and isinstance(row["caption"], str)):
                raise KeyError("id")
            (row["id"] + row["caption"]).encode()  # halves of a character have no place in a record
        except (ValueError, KeyError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            if number == len(lines):
                return rows, len(data) - len(line)
            raise ConfigError(
                f"'{path}' line {number} is not a JSON object with the texts 'id' and 'caption': mend or remove it"
            ) from error
        rows.append(row)
    return rows, len(data)
