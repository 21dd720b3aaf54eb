"""Any folder of pictures with captions, in the image-folder convention of Hugging Face's datasets.

    root/metadata.csv or metadata.jsonl   columns file_name and text; optional: label, mask, group, split
    root/images/..., root/masks/...       or pictures right beside the table
    root/train/, validation/, test/       optional: each as above, with a table of its own or none

`file_name` and `mask` are relative to the table's folder, or to images/ and masks/ in it. In JSON lines `mask` may be a
list, whose union is the mask. Without the column a picture's mask is the file of its name in masks/, and where there is
such a folder a picture without mask is left out; an empty cell of the column means an empty mask, on purpose. The split
is the column's, else that of the folder. Without any table every picture is an entry without text. The id of a picture
is its path, so that adding or losing one changes no other's.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from vgjax.config import ConfigError
from vgjax.data.caption.words import ANY
from vgjax.data.entries import Entry, Index, Skip, fault, find, home, shown
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.tables import MAX_TEXT, open_text, table_rows, tidy
from vgjax.types import SPLITS

HOLDS = "the folder that holds metadata.csv or the pictures"
TABLES = ("metadata.csv", "metadata.jsonl")
REQUIRED = ("file_name", "text")
KEYS = (*REQUIRED, "label", "group", "split")
# .gz stands for .nii.gz, see `pictures`.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom", ".nii", ".gz")


class Row(NamedTuple):
    """One row of a table; what it names is not looked up yet.

    Attributes:
      home: the table's folder.
      where: table and row, for messages.
      masks: None where the table has no such column.
    """

    home: pathlib.Path
    where: str
    file_name: str
    text: str
    masks: tuple[str, ...] | None
    label: str
    group: str
    split: str


def check(root: str) -> None:
    """Validates the layout by names alone.

    Raises:
      ConfigError: the folder is missing or holds no picture, or a table lies where none is expected.
    """
    base = home(root, HOLDS)
    if not pictures(base):
        raise ConfigError(f"config key 'data.root': '{root}' holds no picture: name the folder that holds them")
    _tables(base)


def index(root: str) -> Index:
    """All pictures and rows below the root.

    Files that macOS leaves behind ("__MACOSX", "._x.jpg") count as no pictures, nor do masks.

    Raises:
      ConfigError: see `check`; or a table cannot be read, lacks a column or names an unknown split; or no picture can
        be used.
    """
    check(root)
    base = home(root, HOLDS)
    skipped: list[Skip] = []
    files = pictures(base)
    masks = {path for path in files if _in_masks(base, path)}
    tables = _tables(base)
    rows = _named(base, tables, set(files) - masks, skipped)
    # A mask may lie anywhere, but what has a row of its own is a picture.
    drawn = {path: _masks(base, row, set(files) - rows.keys()) for path, row in rows.items()}
    masks |= {path for found in drawn.values() if found for path in found[0]}
    by_name = _by_name(base, masks)
    entries: list[Entry] = []
    used: set[pathlib.Path] = set()
    images = [path for path in files if path not in masks]
    for image in images:
        row = rows.get(image, Row(base, "", "", "", None, "", "", ""))
        found, reason, detail = drawn.get(image) or _of_same_name(base, image, by_name)
        used.update(found)
        if tables and image not in rows:
            reason, detail = "image without row", ""
        elif len(row.text) > MAX_TEXT:
            reason, detail = "caption too long", f"{len(row.text)} characters, at most {MAX_TEXT}"
        reason = fault(base, image) or reason
        if reason:
            skipped.append(Skip(shown(base, image), reason, detail))
            continue
        name = image.relative_to(base).as_posix()
        split = _split(base, image, row)
        entries.append(Entry(name, image, tuple(found), row.text, row.label, row.group, split))
    for path in sorted(masks - used):
        skipped.append(Skip(shown(base, path), "mask without image", picture=False))
    return Index(tuple(sorted(entries, key=lambda e: e.id)), tuple(skipped), len(images)).check(root)


SOURCE = FileSource(check, index, ANY)


def pictures(base: pathlib.Path) -> list[pathlib.Path]:
    """All files named like pictures below a folder, sorted."""
    paths = find(base, SUFFIXES)
    return [path for path in paths if path.suffix.lower() != ".gz" or path.name.lower().endswith(".nii.gz")]


def _tables(base: pathlib.Path) -> list[pathlib.Path]:
    """The tables of the root and of its split folders."""
    _, folders, _ = next(os.walk(base), ("", [], []))
    tables = []
    inner = (base / name for name in sorted(folders) if not os.path.islink(base / name))
    for folder in (base, *inner):
        found = [folder / name for name in TABLES if os.path.lexists(folder / name)]
        if len(found) > 1:
            raise ConfigError(f"config key 'data.root': '{folder}' holds {' and '.join(TABLES)}: keep one of them")
        if found and folder != base and folder.name not in SPLITS:
            raise ConfigError(
                f"config key 'data.root': table '{found[0]}' lies in a folder that is no split: name the folder"
                f" {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, or move the table to '{base}'"
            )
        tables += found
    return tables


def _named(
    base: pathlib.Path, tables: Sequence[pathlib.Path], images: set[pathlib.Path], skipped: list[Skip]
) -> dict[pathlib.Path, Row]:
    """Rows by the picture that they name; those that name none, or one again, go to `skipped`."""
    named: dict[pathlib.Path, Row] = {}
    for table in tables:
        read = _csv if table.suffix == ".csv" else _json_lines
        for row in read(base, table, skipped):
            homes = row.home, row.home / "images"
            image, reason = _lookup(base, homes, row.file_name, images, "row without image")
            if image is None or image in named:
                skipped.append(
                    Skip(tidy(row.file_name)[:200] or row.where, reason or "row twice", row.where, picture=False)
                )
            else:
                named[image] = row
    return named


def _csv(base: pathlib.Path, table: pathlib.Path, skipped: list[Skip]) -> Iterator[Row]:
    for number, cells in enumerate(table_rows(base, table, REQUIRED, skipped), 1):
        name = cells.get("mask")
        masks = None if name is None else (name,) if name.strip() else ()
        yield _row(table, f"{shown(base, table)} row {number}", cells, masks)


def _json_lines(base: pathlib.Path, table: pathlib.Path, skipped: list[Skip]) -> list[Row]:
    """Rows of JSON lines; what is no object of plain values goes to `skipped`.

    Raises:
      ConfigError: the table is unreadable, or no line has the required columns.
    """
    parsed: list[tuple[str, dict[str, Any]]] = []
    try:
        with open_text(base, table) as file:
            lines = [(f"{shown(base, table)}:{number}", line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise ConfigError(f"table '{table}' cannot be read ({error.strerror}): make it readable") from error
    for where, line in lines:
        try:
            # NaN is how a table with gaps is often written.
            row = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            skipped.append(Skip(where, "unreadable row", f"no JSON: {str(error)[:200]}", picture=False))
            continue
        if _usable(row):
            parsed.append((where, row))
        else:
            skipped.append(Skip(where, "unreadable row", "no object of plain values", picture=False))
    absent = [name for name in REQUIRED if not any(name in row for _, row in parsed)]
    if absent:
        raise ConfigError(f"table '{table}' has no key {', '.join(absent)} in any line: give each line both")
    has_masks = any("mask" in row for _, row in parsed)
    rows = []
    for where, row in parsed:
        cells = {key: "" if row.get(key) is None else str(row[key]) for key in KEYS}
        rows.append(_row(table, where, cells, _mask_names(row) if has_masks else None))
    return rows


def _usable(row: Any) -> bool:
    """Whether a line of JSON is an object whose values are words or numbers, and its masks words."""
    return (
        isinstance(row, dict)
        and all(row.get(key) is None or isinstance(row[key], str | int | float) for key in KEYS)
        and all(isinstance(name, str) for name in _mask_names(row))
    )


def _mask_names(row: dict[str, Any]) -> tuple[str, ...]:
    value = row.get("mask")
    return tuple(name for name in (value if isinstance(value, list) else [value]) if name)


def _row(table: pathlib.Path, where: str, cells: dict[str, str], masks: tuple[str, ...] | None) -> Row:
    """A row of words.

    Raises:
      ConfigError: the split is none.
    """
    file_name, text, label, group, split = (cells.get(key, "") for key in KEYS)
    split = split.strip().lower()
    if split and split not in SPLITS:
        raise ConfigError(
            f"table '{table}' has an unknown split '{tidy(split)[:40]}' ({where}): write {', '.join(SPLITS)} or nothing"
        )
    return Row(table.parent, where, file_name.strip(), tidy(text), masks, tidy(label), tidy(group), split)


def _lookup(
    base: pathlib.Path, homes: Iterable[pathlib.Path], name: str, files: set[pathlib.Path], absent: str
) -> tuple[pathlib.Path | None, str]:
    """The one of `files` that a table names, or why there is none; nothing is looked up on disk."""
    if os.path.isabs(name):
        return None, "outside the root"
    for folder in homes:
        path = pathlib.Path(os.path.normpath(folder / name))
        if path in files:
            return path, ""
        if not path.is_relative_to(base):
            return None, "outside the root"
    return None, absent


Found = tuple[tuple[pathlib.Path, ...], str, str]


def _masks(base: pathlib.Path, row: Row, files: set[pathlib.Path]) -> Found | None:
    """The masks that a row names, or reason and detail; None where the table names none."""
    if row.masks is None:
        return None
    found = []
    for name in row.masks:
        path, reason = _lookup(base, (row.home / "masks", row.home), name, files, "no mask")
        reason = reason if path is None else fault(base, path)
        if path is None or reason:
            return (), reason, f"mask '{tidy(name)[:200]}'"
        found.append(path)
    return tuple(found), "", ""


def _of_same_name(
    base: pathlib.Path, image: pathlib.Path, by_name: dict[tuple[str, str], tuple[pathlib.Path, ...]]
) -> Found:
    """The masks that share a picture's name, or reason and detail."""
    section, parts = _section(base, image)
    found = by_name.get((section, _stem("/".join(parts[1:] if parts[0] == "images" else parts))), ())
    reason = next((reason for path in found if (reason := fault(base, path))), "")
    if not found and any(key[0] == section for key in by_name):
        reason = "no mask"
    return ((), reason, "its mask" if found else "") if reason else (found, "", "")


def _by_name(base: pathlib.Path, masks: Iterable[pathlib.Path]) -> dict[tuple[str, str], tuple[pathlib.Path, ...]]:
    """Files of each masks/ by the split folder and the name, less suffix, of the picture that they belong to."""
    by_name: dict[tuple[str, str], tuple[pathlib.Path, ...]] = {}
    for path in sorted(path for path in masks if _in_masks(base, path)):
        section, parts = _section(base, path)
        key = section, _stem("/".join(parts[1:]))
        by_name[key] = (*by_name.get(key, ()), path)
    return by_name


def _split(base: pathlib.Path, image: pathlib.Path, row: Row) -> str:
    section, _ = _section(base, image)
    if section and row.split and section != row.split:
        raise ConfigError(
            f"{row.where} says split '{row.split}' of a picture in folder '{section}': correct one of them"
        )
    return row.split or section


def _section(base: pathlib.Path, path: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """The split folder that a file lies in ("" for the root itself), and the parts of its path there."""
    parts = path.relative_to(base).parts
    return (parts[0], parts[1:]) if parts[0] in SPLITS and len(parts) > 1 else ("", parts)


def _in_masks(base: pathlib.Path, path: pathlib.Path) -> bool:
    _, parts = _section(base, path)
    return len(parts) > 1 and parts[0] == "masks"


def _stem(name: str) -> str:
    return os.path.splitext(name[:-3] if name.lower().endswith(".nii.gz") else name)[0]
