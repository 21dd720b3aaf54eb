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

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Self, TypeVar

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
    def pack(cls, text: str, height: int, width: int) -> Self:
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
    base = check(root)
    listing = Listing(base)
    frontal = _frontal(listing)
    studies = {entry.image.parent.name[1:] for entry in frontal.values()}
    labels, _ = _collect(listing, _table(base, "chexpert"), ("study_id", *FINDINGS), studies, label_of)
    chexmask = _chexmask(base)
    masks, _ = _collect(listing, chexmask, CHEXMASK, frontal, lungs_of)
    report = functools.cache(_report)
    for name, entry in sorted(frontal.items()):
        text, reason, detail = report(base, entry.image.parent)
        lungs = masks.get(name, ())
        if chexmask and not lungs:
            reason, detail = "no lung mask of quality", ""
        label = labels.get(entry.image.parent.name[1:], "")
        listing.add(dataclasses.replace(entry, masks=lungs, text=text, label=label), reason, detail)
    return listing.index(root)


SOURCE = FileSource(check, index, LUNGS)


def _table(base: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """The newest version of a table, of that rather the one that is not compressed; nothing where there is none."""
    pattern = re.compile(rf"(mimic-cxr-\d[\w.]*-{kind}\.csv)(\.gz)?", re.IGNORECASE)
    found = [match for name in os.listdir(base) if (match := pattern.fullmatch(name))]
    return [base / max(found, key=lambda match: (match[1], not match[2]))[0]] if found else []


def _collect(
    listing: Listing,
    tables: Iterable[pathlib.Path],
    columns: Sequence[str],
    wanted: Container[str],
    value: Callable[[dict[str, str]], T],
) -> tuple[dict[str, T], int]:
    """Values of the wanted rows by the first of the columns, the first of each; and how many rows are not wanted."""
    found: dict[str, T] = {}
    others = 0
    for row in itertools.chain.from_iterable(table_rows(listing, table, columns) for table in tables):
        name = row[columns[0]].strip()
        others += name not in wanted
        if name in wanted and name not in found:
            found[name] = value(row)
    return found, others


def _frontal(listing: Listing) -> dict[str, Entry]:
    """Frontal images that the tables know, by id; each lies in the folder "s<study id>"."""
    base = listing.base
    present: dict[str, pathlib.Path] = {}
    for path in find(base / "files", SUFFIXES):
        listing.present += 1
        if reason := fault(base, path) or ("same image twice" if path.stem in present else ""):
            listing.skip(path, reason)
        else:
            present[path.stem] = path
    columns = ("dicom_id", "study_id", "subject_id", "split")
    (split_table,), (metadata,) = (_table(base, kind) for kind in ("split", "metadata"))  # both are there: `check`
    values = lambda row: [row[name].strip() for name in columns[1:]]
    ids, others = _collect(listing, [split_table], columns, present, values)
    if others:
        listing.skip(split_table.name, "row without image", f"{others} rows", picture=False)
    view = lambda row: tidy(row["ViewPosition"]).upper()[:40]
    views, _ = _collect(listing, [metadata], ("dicom_id", "ViewPosition"), present, view)
    frontal = {}
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
            frontal[name] = Entry(name, path, group=subject, split=SPLITS[split])
    return frontal


def label_of(row: Mapping[str, str]) -> str:
    """The first finding that is positive (1; 0 is negative, -1 uncertain, blank not mentioned); "" where none is."""
    return next((name for name in FINDINGS if _number(row[name]) == 1), "")


def lungs_of(row: Mapping[str, str]) -> tuple[RunLengths, ...]:
    """Left and right lung of a row of CheXmask; nothing where quality is too low or a lung is missing or unreadable."""
    if not (_number(row[QUALITY]) >= MIN_QUALITY and all(row[name].strip() for name in LUNG_COLUMNS)):
        return ()
    try:
        height, width = int(float(row["Height"])), int(float(row["Width"]))
        return tuple(PackedRunLengths.pack(row[name], height, width) for name in LUNG_COLUMNS)
    except (ValueError, OverflowError):
        return ()


def _chexmask(base: pathlib.Path) -> list[pathlib.Path]:
    """CheXmask's tables for these images, in their own resolution; ConfigError where a folder for them has none."""
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
        with open(path, encoding="utf-8") as file:
            return tidy(caption(file.read(MAX_REPORT))), "", ""
    except UnicodeDecodeError:
        return "", "unreadable report", "not UTF-8"
    except OSError as error:
        return "", "unreadable report", str(error.strerror)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
