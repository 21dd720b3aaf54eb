"""MIMIC-CXR-JPG (Johnson et al., 2019): chest radiographs with reports; lung masks of CheXmask (Gaggion et al., 2024).

    mimic-cxr-2.0.0-split.csv, -metadata.csv            or .csv.gz; other versions likewise
    mimic-cxr-2.0.0-chexpert.csv                        optional: labels (Irvin et al., 2019)
    files/p10/p10000032/s50414267/<dicom id>.jpg        or .png, .dcm
    files/p10/p10000032/s50414267.txt                   reports, or below mimic-cxr-reports/
    chexmask/**/*.csv, CheXmask/**/*.csv, MIMIC*.csv    optional, or .csv.gz: OriginalResolution, never Preprocessed

Used are frontal views (PA, AP). The caption is findings and impression of the study's report, the label the first
finding that CheXpert calls positive, the group the patient. The mask is both lungs; CheXmask's heart is not part of it.
Where CheXmask is there, a picture without a mask of quality (mean Dice of reverse classification accuracy of at least
0.7, as its authors advise) is left out; without CheXmask pictures have no masks. Any subset of the files will do.

Tables are read row by row, and only what concerns a present file is kept. On one core 100,000 pictures with 50,000
reports take a minute and 80 MB, 100,000 rows of CheXmask (6 GB) another two minutes, or five and 0.3 to 0.5 GB where
their pictures are present.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from vgjax.config import ConfigError
from vgjax.data.caption.reports import caption
from vgjax.data.caption.words import LUNGS
from vgjax.data.entries import Entry, Index, Listing, RunLengths, bad_root, check_links, fault, find, home, inside
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.tables import table_rows, tidy

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
FRONTAL = ("PA", "AP")
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion"),
    *("Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax"),
    "Support Devices",
)
LUNG_COLUMNS = ("Left Lung", "Right Lung")
QUALITY = "Dice RCA (Mean)"
MIN_QUALITY = 0.7
CHEXMASK = ("dicom_id", QUALITY, *LUNG_COLUMNS, "Height", "Width")
MAX_REPORT = 1_000_000  # characters; what is beyond is not read
HOLDS = "the folder that holds files/ and the tables of MIMIC-CXR-JPG (a PhysioNet download's innermost folder)"

T = TypeVar("T")


class PackedRunLengths(RunLengths):
    """Run lengths whose `text` is unpacked when it is read; packed they take a tenth.

    Lungs of one radiograph take 50 kB as text, which for all of MIMIC-CXR is more than most machines' memory.
    """

    __slots__ = ()

    @classmethod
    def pack(cls, text: str, height: int, width: int) -> PackedRunLengths:
        """Packs "start length start length ...".

        Raises:
          ValueError, OverflowError: the text is no sequence of pairs of numbers.
        """
        runs = np.fromiter(map(int, text.split()), np.int64).reshape(-1, 2)
        # Neighbouring rows of an outline differ little, so steps from run to run are small and compress well.
        steps = np.diff(runs, axis=0, prepend=np.zeros((1, 2), np.int64)).T
        return cls(zlib.compress(steps.astype("<i8").tobytes(), 1).decode("latin-1"), height, width)

    @property
    def text(self) -> str:
        steps = np.frombuffer(zlib.decompress(self[0].encode("latin-1")), "<i8").reshape(2, -1)
        return " ".join(map(str, steps.cumsum(axis=1).T.ravel().tolist()))


Masks = tuple[RunLengths, ...]


class Image(NamedTuple):
    """What the tables say of one image."""

    path: pathlib.Path
    subject: str
    study: str
    split: str


def check(root: str) -> pathlib.Path:
    """The root; ConfigError where it is missing, is laid out otherwise or is linked outwards."""
    base = home(root, HOLDS)
    absent = [] if os.path.isdir(base / "files") else ["folder files/"]
    absent += [f"mimic-cxr-*-{kind}.csv" for kind in ("split", "metadata") if not _table(base, kind)]
    if absent:
        raise bad_root(f"'{root}' has no {' and no '.join(absent)}: name {HOLDS}")
    check_links(base, ["files"])
    return base


def index(root: str) -> Index:
    """All images below files/.

    Rows of the tables whose image is not there are counted in one line; of several rows of an image the first counts.

    Raises:
      ConfigError: see `check`; or a table cannot be read or lacks a column; or there are tables of CheXmask but none of
        MIMIC-CXR; or no picture can be used.
    """
    listing = Listing(check(root))
    images = _frontal(listing)
    labels = _labels(listing, {image.study for image in images.values()})
    masks = _masks(listing, images)
    report = functools.cache(_report)
    for name, (path, subject, study, split) in sorted(images.items()):
        text, reason, detail = report(listing.base, path.parent)
        shapes = masks.get(name, ()) if masks is not None else ()
        if masks is not None and not shapes:
            reason, detail = "no lung mask of quality", ""
        listing.add(Entry(name, path, shapes, text, labels.get(study, ""), subject, split), reason, detail)
    return listing.index(root)


SOURCE = FileSource(check, index, LUNGS)


def _table(base: pathlib.Path, kind: str) -> pathlib.Path | None:
    """The newest version of a table; of that rather the one that is not compressed."""
    pattern = re.compile(rf"(mimic-cxr-\d[\w.]*-{kind}\.csv)(\.gz)?", re.IGNORECASE)
    found = [match for name in os.listdir(base) if (match := pattern.fullmatch(name))]
    return base / max(found, key=lambda match: (match[1], not match[2]))[0] if found else None


def _collect(
    rows: Iterable[dict[str, str]], key: str, wanted: Container[str], value: Callable[[dict[str, str]], T]
) -> tuple[dict[str, T], int]:
    """Values of the wanted rows by key, the first of each; and how many rows are not wanted."""
    found: dict[str, T] = {}
    others = 0
    for row in rows:
        name = row[key].strip()
        others += name not in wanted
        if name in wanted and name not in found:
            found[name] = value(row)
    return found, others


def _frontal(listing: Listing) -> dict[str, Image]:
    """Frontal images that the tables know, by id."""
    base = listing.base
    present: dict[str, pathlib.Path] = {}
    for path in find(base / "files", SUFFIXES):
        listing.present += 1
        if reason := fault(base, path) or ("same image twice" if path.stem in present else ""):
            listing.skip(path, reason)
        else:
            present[path.stem] = path
    columns = ("dicom_id", "study_id", "subject_id", "split")
    split_table, metadata = (_table(base, kind) or base for kind in ("split", "metadata"))  # both are there: `check`
    rows = table_rows(listing, split_table, columns)
    ids, others = _collect(rows, "dicom_id", present, lambda row: [row[name].strip() for name in columns[1:]])
    if others:
        listing.skip(split_table.name, "row without image", f"{others} rows", picture=False)
    rows = table_rows(listing, metadata, ("dicom_id", "ViewPosition"))
    views, _ = _collect(rows, "dicom_id", present, lambda row: tidy(row["ViewPosition"]).upper()[:40])
    images = {}
    for name, path in present.items():
        study, subject, split = ids.get(name, ("", "", ""))
        if name not in ids or name not in views:
            listing.skip(path, "image without row", (metadata if name in ids else split_table).name)
        elif (path.parent.name, path.parent.parent.name) != (f"s{study}", f"p{subject}"):
            # The folder leads to the report, the table to the patient: a caption of another patient would be worse.
            listing.skip(path, "folder and table disagree", tidy(f"p{subject}/s{study}")[:80])
        elif split not in SPLITS:
            listing.skip(path, "unknown split", tidy(split)[:40])
        elif views[name] not in FRONTAL:
            listing.skip(path, "not a frontal view", views[name] or "view unknown")
        else:
            images[name] = Image(path, subject, study, SPLITS[split])
    return images


def _labels(listing: Listing, studies: Container[str]) -> dict[str, str]:
    """The label of each study; empty where there is no table."""
    if table := _table(listing.base, "chexpert"):
        return _collect(table_rows(listing, table, ("study_id", *FINDINGS)), "study_id", studies, label_of)[0]
    return {}


def label_of(row: Mapping[str, str]) -> str:
    """The first finding that is positive (1; 0 is negative, -1 uncertain, blank not mentioned); "" where none is."""
    return next((name for name in FINDINGS if _number(row[name]) == 1), "")


def _masks(listing: Listing, wanted: Container[str]) -> dict[str, Masks] | None:
    """Both lungs of each image, none at all where they are not of quality; None where there is no CheXmask."""
    if not (tables := _chexmask(listing.base)):
        return None
    rows = itertools.chain.from_iterable(table_rows(listing, table, CHEXMASK) for table in tables)
    return _collect(rows, "dicom_id", wanted, lungs_of)[0]


def lungs_of(row: Mapping[str, str]) -> Masks:
    """Left and right lung of a row of CheXmask; nothing where quality is too low or a lung is missing or unreadable."""
    if not _number(row[QUALITY]) >= MIN_QUALITY:
        return ()
    try:
        height, width = int(float(row["Height"])), int(float(row["Width"]))
        lungs = tuple(PackedRunLengths.pack(row[name], height, width) for name in LUNG_COLUMNS)
    except (ValueError, OverflowError):
        return ()
    return lungs if all(row[name].strip() for name in LUNG_COLUMNS) else ()


def _chexmask(base: pathlib.Path) -> list[pathlib.Path]:
    """Tables of CheXmask for these images, in their own resolution.

    Raises:
      ConfigError: there is a folder for them, but none in it.
    """
    _, folders, names = next(os.walk(base), ("", [], []))
    homes = [base / name for name in sorted(folders) if name.lower() == "chexmask"]
    inner = [path for folder in homes for path in find(folder, (".csv", ".gz"))]
    outer = [base / name for name in sorted(names) if re.fullmatch(r"(?i)mimic(?!-cxr-\d).*\.csv(\.gz)?", name)]
    tables, refusal = [], "no .csv"
    for path in inner + outer:
        # Those of Preprocessed/ belong to pictures of another geometry.
        if "preprocessed" in str(path.relative_to(base)).lower():
            continue
        try:
            next(table_rows(Listing(base), path, CHEXMASK), None)
            tables.append(path)
        except ConfigError as error:
            refusal = str(error)
    if homes and not tables:
        raise bad_root(
            f"'{homes[0]}' holds no table of MIMIC-CXR masks ({refusal}): download CheXmask's"
            " OriginalResolution/MIMIC-CXR-JPG.csv, or remove the folder"
        )
    return tables


def _report(base: pathlib.Path, study: pathlib.Path) -> tuple[str, str, str]:
    """Caption of a study's report, "" where there is none; or reason and detail for not using the study."""
    name = study.relative_to(base).with_name(study.name + ".txt")
    path = next(filter(os.path.lexists, (base / name, base / "mimic-cxr-reports" / name)), None)
    if not path:
        return "", "", ""
    if not inside(base, path):
        return "", "outside the root", "its report"
    if not os.path.isfile(path):
        return "", "unreadable report", "not a file"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return tidy(caption(file.read(MAX_REPORT))), "", ""
    except OSError as error:
        return "", "unreadable report", str(error.strerror)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
