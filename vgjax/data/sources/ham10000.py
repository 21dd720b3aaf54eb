"""HAM10000 (Tschandl et al., Scientific Data, 2018): dermatoscopic pictures, with masks (Tschandl et al., 2020).

    HAM10000_metadata.csv                               or .tab, .tsv, .txt, or without extension, any case
    HAM10000_images_part_1/<image_id>.jpg               and part 2
    HAM10000_segmentations_lesion_tschandl/<image_id>_segmentation.png

Archives unpack into folders of their own, once more or not at all: files are known by their names, wherever below the
root they lie. Several pictures may show one lesion, which is their group. The dataset has no text: of the table only
image_id, lesion_id and dx are read, for the rest says how the picture was taken and the finding confirmed.
"""

import csv
import io
import pathlib

from vgjax.data.caption.words import SKIN
from vgjax.data.entries import SUFFIXES, Entry, Index, Listing, bad_root, fault, find, home
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.tables import read_text

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MASK = "_segmentation"
TABLES = tuple("ham10000_metadata" + suffix for suffix in ("", ".csv", ".tab", ".tsv", ".txt"))
COLUMNS = ("image_id", "lesion_id", "dx")


def check(root: str) -> pathlib.Path:
    """The root; ConfigError where it is missing, or holds no table, no image or no mask."""
    base = home(root, "the folder that holds HAM10000_metadata.csv")
    _tables(base)
    kinds = {_kind_and_id(path)[0] for path in find(base, SUFFIXES)}
    if "image" not in kinds:
        raise bad_root(f"'{root}' holds no image: unpack HAM10000_images_part_1 and 2 there")
    if "mask" not in kinds:
        raise bad_root(f"'{root}' holds no mask: unpack HAM10000_segmentations_lesion_tschandl there")
    return base


def index(root: str) -> Index:
    """All images, masks and rows below the root; an id is compared with names of files, never looked up as a path.

    Raises:
      ConfigError: see `check`; or the table cannot be read or lacks a column; or no picture can be used.
    """
    base = check(root)
    listing = Listing(base)
    table, *others = _tables(base)
    for path in others:
        listing.skip(path, "another table", picture=False)
    rows = _read(listing, table)
    images, masks = listing.images_and_masks(_kind_and_id)
    for name, image in sorted(images.items()):
        lesion, label = rows.get(name) or ("", "")
        if name not in rows:
            listing.skip(image, "image without row")
        elif rows[name] is None:
            listing.skip(image, "rows disagree")
        elif not lesion:  # it could cross splits
            listing.skip(image, "row without lesion")
        elif label not in (*CLASSES, ""):  # the fields of the row have shifted
            listing.skip(image, "unknown class", label[:200])
        elif name not in masks:
            listing.skip(image, "no mask")
        else:
            listing.add(Entry(name, image, (masks[name],), label=label, group=lesion))
    for name in sorted(rows.keys() - images.keys()):
        listing.skip(name[:200], "row without image", picture=False)
    for name in sorted(masks.keys() - images.keys()):
        listing.skip(masks[name], "mask without image", picture=False)
    return listing.index(root)


SOURCE = FileSource(check, index, SKIN, symmetries=8)


def _read(listing: Listing, table: pathlib.Path) -> dict[str, tuple[str, str] | None]:
    """Lesion and class by image id, None where rows contradict one another; all but the first of an id are skipped."""
    lines = _lines(read_text(table))
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if wrong := [name for name in COLUMNS if header.count(name) != 1]:
        raise bad_root(f"table '{table}' needs one column {', '.join(wrong)}: take the archive's own table")
    columns = [header.index(name) for name in COLUMNS]
    rows: dict[str, tuple[str, str] | None] = {}
    for line in lines[1:]:
        name, lesion, label = (line[i].strip() if i < len(line) else "" for i in columns)
        if not name:
            listing.skip(table, "row without image_id", ",".join(line)[:200], picture=False)
        elif name in rows:
            listing.skip(name[:200], "row twice", picture=False)
            rows[name] = rows[name] if rows[name] == (lesion, label) else None
        else:
            rows[name] = lesion, label
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
    tables = [path for path in find(base, TABLES) if path.name.lower() in TABLES and not fault(base, path)]
    if not tables:
        raise bad_root(f"'{base}' has no HAM10000_metadata.csv: name the folder that has it and the images")
    return sorted(tables, key=lambda path: (len(path.parts), path))


def _kind_and_id(path: pathlib.Path) -> tuple[str, str]:
    return ("mask", path.stem[: -len(MASK)]) if path.stem.lower().endswith(MASK) else ("image", path.stem)
