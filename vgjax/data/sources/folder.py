"""Any folder of pictures with captions, in the image-folder convention of Hugging Face's datasets.

    root/metadata.csv or metadata.jsonl   columns file_name and text; optional: label, mask, group, split
    root/images/..., root/masks/...       or pictures right beside the table; the table may also lie in images/
    root/train/, validation/, test/       optional: each as above, with a table of its own or none

`file_name` and `mask` are relative to the table's folder, or to images/ and masks/ beside it. In JSON lines `mask` may
be a list, whose union is the mask. Without the column a picture's mask is the file of its name in masks/, and where
there is such a folder a picture without mask is left out; an empty cell of the column means an empty mask, on purpose.
The split is the column's, else that of the folder. Without any table every picture is an entry without text. The id of
a picture is its path, so that adding or losing one changes no other's.
"""

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vgjax.config import ConfigError
from vgjax.data.caption.words import ANY
from vgjax.data.entries import Entry, Index, Listing, bad_root, fault, find, home, shown
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.tables import open_text, table_rows, tidy
from vgjax.types import SPLITS

HOLDS = "the folder that holds metadata.csv or the pictures"
TABLES = ("metadata.csv", "metadata.jsonl")
IMAGES, MASKS = "images", "masks"
REQUIRED = ("file_name", "text")
KEYS = (*REQUIRED, "label", "group", "split")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom", ".nii", ".nii.gz")

Files = tuple[pathlib.Path, ...]
Found = tuple[Files, str, str]  # masks, or reason and detail
Cells = tuple[str, Mapping[str, str], tuple[str, ...] | None]  # where they stand, by column, masks


class Place(NamedTuple):
    """Where a picture or mask lies; the two have section and name in common."""

    section: str  # split folder, "" for the root itself
    folder: str  # images or masks in it, "" for neither
    name: str  # path there, less suffix


class Row(NamedTuple):
    """One row of a table; what it names is not looked up yet."""

    home: pathlib.Path  # the table's folder
    above: pathlib.Path  # holds images/ and masks/: the table's folder, or the one above where that is images/
    where: str = ""  # table and row, for messages
    file_name: str = ""
    text: str = ""
    masks: tuple[str, ...] | None = None  # None where the table has no such column
    label: str = ""
    group: str = ""
    split: str = ""


def check(root: str) -> pathlib.Path:
    """The root; ConfigError where it is missing, holds no picture or has a table where none is expected."""
    base = home(root, HOLDS)
    if not find(base, SUFFIXES):
        raise bad_root(f"'{root}' holds no picture: name the folder that holds them")
    _tables(base)
    return base


def index(root: str) -> Index:
    """All pictures and rows below the root; masks count as no pictures.

    Raises:
      ConfigError: see `check`; or a table cannot be read, lacks a column or names an unknown split; or no picture can
        be used.
    """
    base = check(root)
    listing, tables, files = Listing(base), _tables(base), find(base, SUFFIXES)
    places = {path: _place(base, path) for path in files}
    masks = {path for path, place in places.items() if place.folder == MASKS}
    by_name = collections.defaultdict[tuple[str, str], Files](tuple)
    for path in sorted(masks):
        by_name[places[path].section, places[path].name] += (path,)
    rows = _named(listing, tables, set(files) - masks)
    others = set(files) - rows.keys()  # a mask may lie anywhere, but what has a row of its own is a picture
    drawn = {path: _masks(base, row, others) for path, row in rows.items() if row.masks is not None}
    masks.update(*(found for found, _, _ in drawn.values()))
    used: set[pathlib.Path] = set()
    for image in (path for path in files if path not in masks):
        listing.present += 1
        row, place = rows.get(image, Row(base, base)), places[image]
        found, reason, detail = drawn.get(image) or _of_same_name(base, place, by_name)
        used.update(found)
        if refusal := fault(base, image) or ("image without row" if tables and image not in rows else ""):
            reason, detail = refusal, ""
        if not reason and place.section and row.split not in ("", place.section):
            raise ConfigError(
                f"{row.where} says split '{row.split}' of a picture in folder '{place.section}': correct one of them"
            )
        name, split = image.relative_to(base).as_posix(), row.split or place.section
        listing.add(Entry(name, image, found, row.text, row.label, row.group, split), reason, detail)
    for path in sorted(masks - used):
        listing.skip(path, "mask without image", picture=False)
    return listing.index(root)


SOURCE = FileSource(check, index, ANY)


def _tables(base: pathlib.Path) -> list[pathlib.Path]:
    """The tables of the root and of its split folders, or of images/ in them."""
    inner = (path for path in base.iterdir() if path.is_dir() and not path.is_symlink() and path.name != IMAGES)
    tables = []
    for folder in (base, *sorted(inner)):
        places = [folder / within / name for within in ("", IMAGES) for name in TABLES]
        found = [place for place in places if os.path.lexists(place) and not os.path.islink(place.parent)]
        if len(found) > 1:
            held = " and ".join(str(place.relative_to(folder)) for place in found)
            raise bad_root(f"'{folder}' holds {held}: keep one of them")
        if found and folder != base and folder.name not in SPLITS:
            raise bad_root(
                f"table '{found[0]}' lies in a folder that is no split: name the folder {', '.join(SPLITS[:-1])} or"
                f" {SPLITS[-1]}, or move the table to '{base}'"
            )
        tables += found
    return tables


def _named(listing: Listing, tables: Iterable[pathlib.Path], images: set[pathlib.Path]) -> dict[pathlib.Path, Row]:
    """Rows by the picture that they name; those that name none, or one again, are skipped."""
    named: dict[pathlib.Path, Row] = {}
    for row in itertools.chain.from_iterable(_rows(listing, table) for table in tables):
        image, reason = _lookup(listing.base, (row.home, row.above / IMAGES), row.file_name, images)
        if image is None or image in named:
            name = tidy(row.file_name)[:200] or row.where
            listing.skip(name, reason or ("row twice" if image else "row without image"), row.where, picture=False)
        else:
            named[image] = row
    return named


def _rows(listing: Listing, table: pathlib.Path) -> Iterator[Row]:
    """The rows of a table; ConfigError where it is unreadable or lacks a column, or a split is none."""
    home = table.parent
    above = home.parent if home.name == IMAGES and home != listing.base else home
    for where, cells, masks in (_csv if table.suffix == ".csv" else _json_lines)(listing, table):
        file_name, text, label, group, split = (cells.get(key, "") for key in KEYS)
        split = split.strip().lower()
        if split not in ("", *SPLITS):
            raise ConfigError(
                f"table '{table}' has an unknown split '{tidy(split)[:40]}' ({where}): write {', '.join(SPLITS)} or"
                " nothing"
            )
        yield Row(home, above, where, file_name.strip(), tidy(text), masks, tidy(label), tidy(group), split)


def _csv(listing: Listing, table: pathlib.Path) -> Iterator[Cells]:
    for number, cells in enumerate(table_rows(listing, table, REQUIRED), 1):
        name = cells.get("mask")
        masks = None if name is None else (name,) if name.strip() else ()
        yield f"{shown(listing.base, table)} row {number}", cells, masks


def _json_lines(listing: Listing, table: pathlib.Path) -> Iterator[Cells]:
    """Rows of JSON lines; what is no object of plain values is skipped."""
    try:
        with open_text(listing.base, table) as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise ConfigError(f"table '{table}' cannot be read ({error.strerror}): make it readable") from error
    parsed: list[tuple[str, dict[str, Any]]] = []
    for number, line in lines:
        where = f"{shown(listing.base, table)}:{number}"
        try:
            # NaN is how a table with gaps is often written.
            row = json.loads(line, parse_constant=lambda _: None, object_pairs_hook=_once)
            wrong = "" if _usable(row) else "no object of plain values"
        except (ValueError, RecursionError) as error:
            wrong = f"no JSON: {str(error)[:200]}"
        if wrong:
            listing.skip(where, "unreadable row", wrong, picture=False)
        else:
            parsed.append((where, row))
    if absent := [name for name in REQUIRED if not any(name in row for _, row in parsed)]:
        raise ConfigError(f"table '{table}' has no key {', '.join(absent)} in any line: give each line both")
    has_masks = any("mask" in row for _, row in parsed)
    for where, row in parsed:
        cells = {key: "" if row.get(key) is None else str(row[key]) for key in KEYS}
        yield where, cells, _mask_names(row) if has_masks else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return row


def _usable(row: Any) -> bool:
    """Whether a line of JSON is an object whose values are words or numbers, and its masks words."""
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str | int | float | None) for key in KEYS)
        and all(isinstance(name, str) for name in _mask_names(row))
    )


def _mask_names(row: dict[str, Any]) -> tuple[str, ...]:
    value = row.get("mask")
    return tuple(name for name in (value if isinstance(value, list) else [value]) if name)


def _lookup(
    base: pathlib.Path, homes: Iterable[pathlib.Path], name: str, files: set[pathlib.Path]
) -> tuple[pathlib.Path | None, str]:
    """The one of `files` that a table names, or None and perhaps why; nothing is looked up on disk."""
    for folder in homes:
        path = pathlib.Path(os.path.normpath(folder / name))
        if not os.path.isabs(name) and path in files:
            return path, ""
        if os.path.isabs(name) or not path.is_relative_to(base):
            return None, "outside the root"
    return None, ""


def _masks(base: pathlib.Path, row: Row, files: set[pathlib.Path]) -> Found:
    """The masks that a row names."""
    found: Files = ()
    for name in row.masks or ():
        path, reason = _lookup(base, (row.above / MASKS, row.above, row.home), name, files)
        if path is None or (reason := fault(base, path)):
            return (), reason or "no mask", f"mask '{tidy(name)[:200]}'"
        found += (path,)
    return found, "", ""


def _of_same_name(base: pathlib.Path, place: Place, by_name: Mapping[tuple[str, str], Files]) -> Found:
    """The masks that share a picture's section and name."""
    found = by_name.get((place.section, place.name), ())
    if reason := next(filter(None, (fault(base, path) for path in found)), ""):
        return (), reason, "its mask"
    return found, "no mask" if not found and any(section == place.section for section, _ in by_name) else "", ""


def _place(base: pathlib.Path, path: pathlib.Path) -> Place:
    *folders, name = path.relative_to(base).parts
    section = folders.pop(0) if folders and folders[0] in SPLITS else ""
    folder = folders.pop(0) if folders and folders[0] in (IMAGES, MASKS) else ""
    stem, _ = os.path.splitext(name[:-3] if name.lower().endswith(".nii.gz") else name)
    return Place(section, folder, "/".join((*folders, stem)))
