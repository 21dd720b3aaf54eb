"""A miniature MIMIC-CXR-JPG in the exact layout: drawn radiographs, tables, reports and CheXmask rows, all made up."""

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion"),
    *("Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax"),
    "Support Devices",
)
DRAWN = {"": "No Finding", "heart": "Cardiomegaly", "effusion": "Pleural Effusion", "opacity": "Lung Opacity"}
WORDS = {
    "": "The lungs are clear.  There is no pleural effusion or pneumothorax.  The\n cardiac silhouette is normal.",
    "heart": "The heart is severely enlarged.  The lungs are clear.",
    "effusion": "There is a {size} {side} pleural effusion with adjacent atelectasis.\n The heart size is normal.",
    "opacity": "A {size} round opacity projects over the {side} mid lung.  No pleural\n effusion is seen.",
}
SUMMARY = {
    "": "No acute cardiopulmonary process.",
    "heart": "Cardiomegaly without edema.",
    "effusion": "{size} {side} pleural effusion.",
    "opacity": "{size} {side} opacity, new since ___.",
}
SPLITS = ("train", "train", "train", "train", "validate", "test")  # of patients, in turn
LOW_QUALITY = 0.55


def make(
    root: Path, patients: int = 12, side: int = 64, seed: int = 0, chexmask: bool = True, packed: bool = False
) -> Path:
    """Writes the tree and returns its root.

    Every patient has one or two studies, each with a frontal image (PA or AP in turn), every third study a lateral one,
    too. Of every seventh study CheXmask's quality is low. Images are portrait or landscape, the shorter side `side`.

    Args:
      chexmask: whether there are masks.
      packed: whether the tables are .csv.gz.
    """
    rng = np.random.default_rng(seed)
    tables: dict[str, list[dict[str, Any]]] = {"split": [], "metadata": [], "chexpert": [], "chexmask": []}
    number = 0
    for patient in range(patients):
        subject = 10_000_032 + 100_003 * patient
        for _ in range(1 + patient % 2):
            study = 50_414_267 + 1_009 * number
            home = root / "files" / f"p{subject // 1_000_000}" / f"p{subject}" / f"s{study}"
            home.mkdir(parents=True)
            kind, where, size = rng.choice(list(DRAWN)), rng.choice(["left", "right"]), rng.choice(["small", "large"])
            home.with_name(f"s{study}.txt").write_text(report(number, kind, where, size))
            tables["chexpert"].append({"subject_id": subject, "study_id": study, **labels(kind)})
            for view in ("PA" if number % 2 else "AP", *(["LATERAL"] if number % 3 == 0 else [])):
                height, width = (side * 5 // 4, side) if number % 2 else (side, side * 5 // 4)
                pixels, regions = draw(height, width, kind, where, size, rng)
                name = "-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5))
                Image.fromarray(pixels).save(home / f"{name}.jpg", quality=90)
                ids = {"dicom_id": name, "subject_id": subject, "study_id": study}
                tables["split"].append({**ids, "split": SPLITS[patient % len(SPLITS)]})
                tables["metadata"].append({**ids, "ViewPosition": view, "Rows": height, "Columns": width})
                quality = LOW_QUALITY if number % 7 == 6 else 0.9
                tables["chexmask"].append(mask_row(name, quality, regions, height, width))
            number += 1
    for kind in ("split", "metadata", "chexpert"):
        write(root / f"mimic-cxr-2.0.0-{kind}.csv{'.gz' if packed else ''}", tables[kind])
    if chexmask:
        folder = root / "chexmask" / "OriginalResolution"
        folder.mkdir(parents=True)
        write(folder / f"MIMIC-CXR-JPG.csv{'.gz' if packed else ''}", tables["chexmask"])
    return root


def draw(
    height: int, width: int, kind: str, where: str, size: str, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A radiograph (H, W) uint8 and its regions (H, W) bool; the patient's left is on the right of the picture."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    tilt = rng.uniform(-0.02, 0.02)
    lungs = {}
    for name, centre in (("Left Lung", 0.70), ("Right Lung", 0.30)):
        spread = rng.uniform(0.14, 0.17) * (0.7 + 0.5 * y)  # wider towards the base
        lungs[name] = (((x - centre - tilt) / spread) ** 2 + ((y - 0.48) / 0.34) ** 2 < 1) & (y < 0.78)
    heart = ((x - 0.56) / (0.24 if kind == "heart" else 0.14)) ** 2 + ((y - 0.64) / 0.17) ** 2 < 1
    lung = lungs["Left Lung"] | lungs["Right Lung"]
    body = ((x - 0.5) / 0.47) ** 2 + ((y - 0.6) / 0.62) ** 2 < 1
    light = np.where(body, 0.62, 0.04)
    light = np.where(lung, 0.24 + 0.05 * np.sin(40 * y), light)  # ribs
    light = np.where((np.abs(x - 0.5) < 0.05) & body, 0.8, light)  # spine
    light = np.where(heart, 0.75, light)
    side = lungs["Left Lung" if where == "left" else "Right Lung"]
    if kind == "effusion":
        light = np.where(side & (y > (0.52 if size == "large" else 0.66)), 0.72, light)
    if kind == "opacity":
        radius = 0.1 if size == "large" else 0.05
        spot = (x - (0.70 if where == "left" else 0.30)) ** 2 + (y - 0.45) ** 2 < radius**2
        light = np.where(side & spot, 0.6, light)
    light = light + rng.normal(0, 0.02, light.shape)
    return (255 * light.clip(0, 1)).astype(np.uint8), {**lungs, "Heart": heart}


def run_lengths(mask: np.ndarray) -> str:
    """ "start length ..." of a (H, W) mask, row by row, the first pixel being 1."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]])))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


def mask_row(name: str, quality: float, regions: dict[str, np.ndarray], height: int, width: int) -> dict[str, Any]:
    """A row of CheXmask, its columns in their order."""
    row: dict[str, Any] = {"dicom_id": name, "Dice RCA (Max)": quality + 0.03, "Dice RCA (Mean)": quality}
    row["Landmarks"] = "[[12 34]\n [56 78]]"
    row |= {region: run_lengths(mask) for region, mask in regions.items()}
    return row | {"Height": height, "Width": width}


def labels(kind: str) -> dict[str, str]:
    """CheXpert's 14 columns: 1.0 what is drawn, 0.0 and -1.0 here and there, else blank."""
    row = dict.fromkeys(FINDINGS, "")
    if kind:
        row |= {"Atelectasis": "-1.0", "Pneumothorax": "0.0"}
    return row | {DRAWN[kind]: "1.0"}


def report(number: int, kind: str, where: str, size: str) -> str:
    """A report in one of four shapes."""
    named = WORDS[kind].format(side=where, size=size)
    short = SUMMARY[kind].format(side=where, size=size)
    head = "                                 FINAL REPORT\n EXAMINATION:  CHEST RADIOGRAPH\n \n"
    asked = " INDICATION:  ___ year old patient with dyspnea  // pneumonia?\n \n"
    if number % 4 == 0:
        return f"{head}{asked} COMPARISON:  ___.\n \n FINDINGS: \n \n {named}\n \n IMPRESSION: \n \n {short}\n"
    if number % 4 == 1:
        return (
            f"{head}{asked} FINDINGS AND IMPRESSION:  {named}\n \n NOTIFICATION:  Dr. ___ by telephone on ___ at ___.\n"
        )
    if number % 4 == 2:
        return f"{head}{asked} IMPRESSION:  {named}  Discussed with Dr. ___ at 3:15 pm on ___.\n"
    return f"{head}{asked} As compared to ___, the technique is the same.\n \n {named}\n"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table with commas; .gz is compressed."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows that `write` wrote."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
