"""The COVID-19 image data collection (Cohen et al., 2020): chest X-rays with clinical notes, finding and lung masks.

    metadata.csv                                        columns as its SCHEMA.md says
    images/<file name>
    semantic_masks_v7labs_lungs/<file name>             drawn by annotators; PNG whatever the name says
    annotations/lungVAE-masks/<stem>_mask.png           drawn by a network; taken where the first is missing

Used are frontal radiographs with a lung mask, which stage 1 learns its anatomy from; a picture without one is left out.
The caption is the clinical notes. They often name the diagnosis and say what the picture cannot show (age, symptoms,
course). A picture may have several rows, one a patient id: they become one entry with the texts joined, and pictures of
patient ids that share one form one group, since these ids are one person.
"""

import os
import pathlib
from collections.abc import Sequence

from vgjax.data.caption.words import LUNGS
from vgjax.data.entries import Entry, Index, Listing, bad_root, check_links, fault, find, home, inside, remedy
from vgjax.data.prepare.plan import FileSource
from vgjax.data.prepare.splits import merged
from vgjax.data.read.tables import table_rows, tidy

HOLDS = "the folder that holds metadata.csv and images/"
TABLE = "metadata.csv"
REQUIRED = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif")
RADIOGRAPH = "x-ray"
FRONTAL = ("PA", "AP", "APS")  # the first word of views such as "AP Supine" and "AP Erect"

Rows = list[dict[str, str]]


def check(root: str) -> pathlib.Path:
    """The root; ConfigError where it is missing, is laid out otherwise, holds no picture or is linked outwards."""
    base = home(root, HOLDS)
    if absent := [name for name in (TABLE, "images") if not os.path.exists(base / name)]:
        raise bad_root(f"folder '{root}' has no {' and no '.join(absent)}: {remedy(base, (TABLE,), HOLDS)}")
    check_links(base, ["images"])
    if not find(base / "images", SUFFIXES):
        raise bad_root(f"'{base / 'images'}' holds no picture: download the dataset again")
    return base


def index(root: str) -> Index:
    """All pictures in images/ and all rows.

    Raises:
      ConfigError: see `check`; or the table cannot be read or lacks a column; or no picture can be used.
    """
    base = check(root)
    listing = Listing(base)
    images = find(base / "images", SUFFIXES)
    listing.present = len(images)
    rows = _rows(listing, set(images))
    # Patient ids that share a picture, directly or through others, are one person.
    groups = merged(_values(told, "patientid") for told in rows.values())
    for image in images:
        name = image.relative_to(base / "images")
        told, masks = rows.get(image, []), _masks(base, name)
        text = " ".join(dict.fromkeys(_values(told, "clinical_notes")))
        label, patient = (next(iter(_values(told, column)), "") for column in ("finding", "patientid"))
        entry = Entry(name.as_posix(), image, masks, text, label, groups.get(patient, ""))
        listing.add(entry, *_refusal(base, image, told, masks))
    return listing.index(root)


SOURCE = FileSource(check, index, LUNGS)


def _values(told: Rows, column: str) -> list[str]:
    """What the rows of a picture say in a column, of several findings the first."""
    texts = [tidy(row[column].split(",")[0] if column == "finding" else row[column]) for row in told]
    return [text for text in texts if text and (column == "patientid" or text.lower() != "todo")]


def _rows(listing: Listing, images: set[pathlib.Path]) -> dict[pathlib.Path, Rows]:
    """Rows by their picture; those without one, and all but the first of each, are skipped."""
    rows: dict[pathlib.Path, Rows] = {}
    for number, row in enumerate(table_rows(listing, listing.base / TABLE, REQUIRED), 1):
        name, folder = row["filename"].strip(), row.get("folder", "").strip()
        image = pathlib.Path(os.path.normpath(listing.base / "images" / name))
        where, reason, detail = f"{TABLE} row {number}", "", ""
        if os.path.isabs(name) or not image.is_relative_to(listing.base):
            reason, detail = "outside the root", where
        elif folder not in ("", "images") or image not in images:
            reason, detail = "row without image", f"folder {tidy(folder)[:40]}" if folder else ""
        else:
            if image in rows:
                reason, detail = "further row of an image", "its text is joined"
            rows.setdefault(image, []).append(row)
        if reason:
            listing.skip(tidy(name)[:200] or where, reason, detail, picture=False)
    return rows


def _refusal(base: pathlib.Path, image: pathlib.Path, told: Rows, masks: Sequence[pathlib.Path]) -> tuple[str, str]:
    """Reason and detail for not using a picture with these rows and masks; "" where there is none."""
    if broken := fault(base, image):
        return broken, ""
    if not told:
        return "image without row", ""
    modality, view = tidy(told[0]["modality"]), tidy(told[0]["view"])
    if modality.lower() != RADIOGRAPH:
        return "not a radiograph", modality[:40] or "modality unknown"
    if view.upper().split(" ")[0] not in FRONTAL:
        return "not a frontal view", view[:40] or "view unknown"
    if not masks:
        return "no lung mask", ""
    return ("", "") if inside(base, masks[0]) else ("outside the root", "its mask")


def _masks(base: pathlib.Path, name: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The lung mask of a picture, if it has one."""
    drawn = base / "semantic_masks_v7labs_lungs" / name
    predicted = base / "annotations" / "lungVAE-masks" / name.with_name(f"{name.stem}_mask.png")
    return tuple(filter(os.path.lexists, (drawn, predicted)))[:1]
