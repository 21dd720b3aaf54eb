"""HAM10000 (Tschandl et al., Scientific Data, 2018): dermatoscopic pictures, with masks (Tschandl et al., 2020).

    HAM10000_metadata.csv                               or .tab, .tsv, .txt, or without extension, any case
    HAM10000_images_part_1/<image_id>.jpg               and part 2
    HAM10000_segmentations_lesion_tschandl/<image_id>_segmentation.png

Archives unpack into folders of their own, once more or not at all: files are known by their names, wherever below the
root they lie. Several pictures may show one lesion, which is their group. The dataset has no text: of the table only
image_id, lesion_id and dx are read, for the rest says how the picture was taken and the finding confirmed.
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
from typing import NamedTuple

from vgjax.config import ConfigError
from vgjax.data.caption.words import SKIN
from vgjax.data.entries import Entry, Index, Skip, fault, find, home, shown
from vgjax.data.prepare.plan import FileSource

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MASK = "_segmentation"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
TABLE = "ham10000_metadata"
TABLE_SUFFIXES = ("", ".csv", ".tab", ".tsv", ".txt")


class Row(NamedTuple):
    """What the table says of an image."""

    lesion: str
    label: str


def check(root: str) -> None:
    """Validates the layout by names alone.

    Raises:
      ConfigError: the folder is missing, or holds no table, no image or no mask.
    """
    base = home(root, "the folder that holds HAM10000_metadata.csv")
    _tables(base)
    masks = [_is_mask(path) for path in find(base, SUFFIXES)]
    if all(masks):
        raise ConfigError(f"config key 'data.root': '{root}' holds no image: unpack HAM10000_images_part_1 and 2 there")
    if not any(masks):
        raise ConfigError(
            f"config key 'data.root': '{root}' holds no mask: unpack HAM10000_segmentations_lesion_tschandl there"
        )


def index(root: str) -> Index:
    """All images, masks and rows below the root.

    A name that leads nowhere or out of the root counts as a present picture; what macOS leaves behind ("__MACOSX",
    "._x.jpg") does not. An id of the table is compared with names of files, and never looked up as a path.

    Raises:
      ConfigError: see `check`; or the table cannot be read or lacks a column; or no picture can be used.
    """
    check(root)
    base = home(root, "the folder that holds HAM10000_metadata.csv")
    table, *others = _tables(base)
    skipped = [Skip(shown(base, path), "another table", picture=False) for path in others]
    rows = _read(base, table, skipped)
    images, masks, present = _files(base, skipped)
    entries = []
    for name, image in sorted(images.items()):
        row = rows.get(name)
        if name not in rows:
            skipped.append(Skip(shown(base, image), "image without row"))
        elif row is None:
            skipped.append(Skip(shown(base, image), "rows disagree"))
        elif not row.lesion:  # it could cross splits
            skipped.append(Skip(shown(base, image), "row without lesion"))
        elif row.label not in (*CLASSES, ""):  # the fields of the row have shifted
            skipped.append(Skip(shown(base, image), "unknown class", row.label[:200]))
        elif name not in masks:
            skipped.append(Skip(shown(base, image), "no mask"))
        else:
            entries.append(Entry(id=name, image=image, masks=(masks[name],), label=row.label, group=row.lesion))
    for name in sorted(rows.keys() - images.keys()):
        skipped.append(Skip(name[:200], "row without image", picture=False))
    for name in sorted(masks.keys() - images.keys()):
        skipped.append(Skip(shown(base, masks[name]), "mask without image", picture=False))
    return Index(tuple(entries), tuple(skipped), present).check(root)


SOURCE = FileSource(check, index, SKIN)


def _files(base: pathlib.Path, skipped: list[Skip]) -> tuple[dict[str, pathlib.Path], dict[str, pathlib.Path], int]:
    """Images and masks by image id, and how many images there are; the unusable go to `skipped`."""
    images: dict[str, pathlib.Path] = {}
    masks: dict[str, pathlib.Path] = {}
    present = 0
    for path in find(base, SUFFIXES):
        is_mask = _is_mask(path)
        name = path.stem[: -len(MASK)] if is_mask else path.stem
        files = masks if is_mask else images
        reason = fault(base, path)
        if not reason and name in files:
            reason = f"same {'mask' if is_mask else 'image'} twice"
        if reason:
            skipped.append(Skip(shown(base, path), reason, picture=not is_mask))
        else:
            files[name] = path
        present += not is_mask
    return images, masks, present


def _read(base: pathlib.Path, table: pathlib.Path, skipped: list[Skip]) -> dict[str, Row | None]:
    """Rows by image id, None where several contradict one another; all but the first of an id go to `skipped`.

    Raises:
      ConfigError: the table is unreadable or empty, or lacks a column.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"config key 'data.root': table '{table}' cannot be read ({error.strerror}): make it readable"
        ) from error
    lines = _lines(text)
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    absent = [name for name in ("image_id", "lesion_id", "dx") if name not in header]
    if absent:
        raise ConfigError(
            f"config key 'data.root': table '{table}' has no column {', '.join(absent)}: take the archive's own table"
        )
    columns = [header.index(name) for name in ("image_id", "lesion_id", "dx")]
    rows: dict[str, Row | None] = {}
    where = shown(base, table)
    for line in lines[1:]:
        name, *said = (line[i].strip() if i < len(line) else "" for i in columns)
        row = Row(*said)
        if not name:
            skipped.append(Skip(where, "row without image_id", ",".join(line)[:200], picture=False))
        elif name in rows:
            skipped.append(Skip(name[:200], "row twice", picture=False))
            rows[name] = row if row == rows[name] else None
        else:
            rows[name] = row
    return rows


def _lines(text: str) -> list[list[str]]:
    """The rows of a table separated by tabs, commas or semicolons, blank ones left out."""
    head = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t,;", key=head.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        # A quote left open swallows all rows after it, so here a row ends with its line and quotes are characters.
        lines = [[cell.strip(' "\n') for cell in line.split(delimiter)] for line in io.StringIO(text, newline=None)]
    return [line for line in lines if any(cell.strip() for cell in line)]


def _tables(base: pathlib.Path) -> list[pathlib.Path]:
    """Usable files named like the table, the least nested first; at least one."""
    named = (path for path in find(base, TABLE_SUFFIXES) if os.path.splitext(path.name)[0].lower() == TABLE)
    tables = [path for path in named if not fault(base, path)]
    if not tables:
        raise ConfigError(
            f"config key 'data.root': '{base}' has no HAM10000_metadata.csv: name the folder that has it and the images"
        )
    return sorted(tables, key=lambda path: (len(path.parts), path))


def _is_mask(path: pathlib.Path) -> bool:
    return path.stem.lower().endswith(MASK)
