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

from __future__ import annotations

import os
import pathlib

from vgjax.config import ConfigError
from vgjax.data.caption.words import LUNGS
from vgjax.data.entries import Entry, Index, Skip, fault, find, home, inside, shown
from vgjax.data.prepare.plan import FileSource
from vgjax.data.prepare.splits import merged
from vgjax.data.read.tables import MAX_TEXT, table_rows, tidy

HOLDS = "the folder that holds metadata.csv and images/"
TABLE = "metadata.csv"
REQUIRED = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif")
RADIOGRAPH = "x-ray"
FRONTAL = ("PA", "AP", "APS")  # the first word of views such as "AP Supine" and "AP Erect"

Rows = list[dict[str, str]]


def check(root: str) -> None:
    """Validates the layout by names alone.

    Raises:
      ConfigError: the folder is missing, has another layout, or holds no picture.
    """
    base = home(root, HOLDS)
    absent = [name for name in (TABLE, "images") if not os.path.exists(base / name)]
    if absent:
        # Archives of the repository unpack into a folder of their own.
        _, folders, _ = next(os.walk(base), ("", [], []))
        inner = next((name for name in sorted(folders) if os.path.isfile(base / name / TABLE)), None)
        remedy = f"did you mean '{base / inner}'?" if inner else f"name {HOLDS}"
        raise ConfigError(f"config key 'data.root': folder '{root}' has no {' and no '.join(absent)}: {remedy}")
    if not inside(base, base / "images"):
        raise ConfigError(
            f"config key 'data.root': '{base / 'images'}' links out of '{root}': replace it by the folder itself"
        )
    if not find(base / "images", SUFFIXES):
        raise ConfigError(f"config key 'data.root': '{base / 'images'}' holds no picture: download the dataset again")


def index(root: str) -> Index:
    """All pictures in images/ and all rows.

    Raises:
      ConfigError: see `check`; or the table cannot be read or lacks a column; or no picture can be used.
    """
    check(root)
    base = home(root, HOLDS)
    skipped: list[Skip] = []
    images = find(base / "images", SUFFIXES)
    rows = _rows(base, set(images), skipped)
    # Patient ids that share a picture, directly or through others, are one person.
    groups = merged([patient for row in told if (patient := tidy(row["patientid"]))] for told in rows.values())
    entries = []
    for image in images:
        told = rows.get(image, [])
        mask = _mask(base, image)
        texts = dict.fromkeys(text for row in told if (text := tidy(row["clinical_notes"])) and text.lower() != "todo")
        text = " ".join(texts)
        reason, detail = _refusal(told)
        if not reason and mask is None:
            reason = "no lung mask"
        elif not reason and mask and not inside(base, mask):
            reason, detail = "outside the root", "its mask"
        elif not reason and len(text) > MAX_TEXT:
            reason, detail = "caption too long", f"{len(text)} characters, at most {MAX_TEXT}"
        if fault(base, image):
            reason, detail = fault(base, image), ""
        if reason or mask is None:
            skipped.append(Skip(shown(base, image), reason, detail))
            continue
        name = image.relative_to(base / "images").as_posix()
        label = next((label for row in told if (label := _label(row["finding"]))), "")
        patient = next((patient for row in told if (patient := tidy(row["patientid"]))), "")
        entries.append(Entry(name, image, (mask,), text, label, groups.get(patient, patient)))
    return Index(tuple(sorted(entries, key=lambda e: e.id)), tuple(skipped), len(images)).check(root)


SOURCE = FileSource(check, index, LUNGS)


def _rows(base: pathlib.Path, images: set[pathlib.Path], skipped: list[Skip]) -> dict[pathlib.Path, Rows]:
    """Rows by their picture; those without one, and all but the first of each, go to `skipped`."""
    rows: dict[pathlib.Path, Rows] = {}
    for number, row in enumerate(table_rows(base, base / TABLE, REQUIRED, skipped), 1):
        name, folder = row["filename"].strip(), row.get("folder", "").strip()
        image = pathlib.Path(os.path.normpath(base / "images" / name))
        told = tidy(name)[:200] or f"{TABLE} row {number}"
        if os.path.isabs(name) or not image.is_relative_to(base):
            skipped.append(Skip(told, "outside the root", f"{TABLE} row {number}", picture=False))
        elif folder not in ("", "images") or image not in images:
            skipped.append(
                Skip(told, "row without image", f"folder {tidy(folder)[:40]}" if folder else "", picture=False)
            )
        else:
            if image in rows:
                skipped.append(Skip(told, "further row of an image", "its text is joined", picture=False))
            rows.setdefault(image, []).append(row)
    return rows


def _refusal(told: Rows) -> tuple[str, str]:
    """Reason and detail for not using the picture of these rows; "" where there is none."""
    if not told:
        return "image without row", ""
    modality, view = tidy(told[0]["modality"]), tidy(told[0]["view"])
    if modality.lower() != RADIOGRAPH:
        return "not a radiograph", modality[:40] or "modality unknown"
    if view.upper().split()[:1] not in [[name] for name in FRONTAL]:
        return "not a frontal view", view[:40] or "view unknown"
    return "", ""


def _mask(base: pathlib.Path, image: pathlib.Path) -> pathlib.Path | None:
    """The lung mask of a picture; None where it has none."""
    name = image.relative_to(base / "images")
    drawn = base / "semantic_masks_v7labs_lungs" / name
    predicted = base / "annotations" / "lungVAE-masks" / name.with_name(f"{name.stem}_mask.png")
    return next((path for path in (drawn, predicted) if os.path.lexists(path)), None)


def _label(finding: str) -> str:
    label = tidy(finding.split(",")[0])
    return "" if label.lower() == "todo" else label
