"""What a prepared dataset holds:  python -m vgjax.data.inspect --config=configs/X.py --config.data.root=FOLDER.

Prepares the dataset where that has not happened yet, then prints splits and classes, lengths of the texts, what was
skipped and why, and whether anything stands on both sides of a split; writes a contact sheet with masks and captions.
"""

import json
import pathlib
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from vgjax.atomic import replacing
from vgjax.boundary import guarded, leave, read_config
from vgjax.config import Config, from_config_dict
from vgjax.context import open_rows
from vgjax.data.prepare import pictures, splits
from vgjax.data.prepare.duplicates import pixel_hash
from vgjax.data.records import Rows, SkippedRows, from_png
from vgjax.store import Store
from vgjax.types import SPLITS

SHEET_COLUMNS, SHEET_ROWS = 5, 4
CAPTION_WIDTH, CAPTION_LINES = 38, 6  # characters, lines
TILE, GAP, LINE = 220, 12, 14  # pixels

Facts = Sequence[Mapping[str, Any]]


def inspect(config: Config, workdir: pathlib.Path, store: Store) -> list[str]:
    """Lines of the report; writes workdir/contact_sheet.png, and prepares the pictures where the store lacks them.

    Raises:
      ConfigError: the dataset cannot be prepared, or its records are damaged beyond use.
    """
    recipe = pictures.PICTURES.recipe(config, {})
    if not store.find(recipe):
        pictures.check(config)
    artefact = store.get(recipe, lambda folder: pictures.prepare(config, folder))
    report = json.loads(artefact.path(pictures.REPORT).read_text())
    opened = {split: open_rows(artefact, split) for split in SPLITS}
    rows = {split: SkippedRows(source, lost) for split, (source, lost) in opened.items()}
    facts = [_facts(split, source[i]) for split, source in rows.items() for i in range(len(source))]
    sheet = workdir / "contact_sheet.png"
    _sheet(sheet, rows)
    damaged = sum(len(lost) for _, lost in opened.values())
    return [*_counts(facts), *_texts(facts), *_account(report, damaged), *_leaks(facts), str(sheet)]


def _facts(split: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is counted of one picture, read from the records themselves."""
    kept = {name: row[name] for name in ("id", "label", "group", "caption")}
    measured = {"hash": pixel_hash(from_png(row["image"])), "lesion": float((from_png(row["mask"]) > 0).mean())}
    return {"split": split, **kept, **measured}


def _counts(facts: Facts) -> list[str]:
    counts = Counter((row["split"], row["label"]) for row in facts)
    labels = sorted({row["label"] for row in facts})
    width = max([len("no class"), *map(len, labels)])
    line = lambda name, cells: f"{name:{width}} " + " ".join(f"{cell:>10}" for cell in cells)
    table = [line(label or "no class", [counts[split, label] for split in SPLITS]) for label in labels]
    whole = line("all", [sum(row["split"] == split for row in facts) for split in SPLITS])
    area = [row["lesion"] for row in facts if row["lesion"]]
    masks = f"masks: {len(facts) - len(area)} empty; the others cover {np.mean(area or [0]):.1%} on average"
    return [line("class", SPLITS), *table, whole, masks]


def _texts(facts: Facts) -> list[str]:
    captions = [row["caption"] for row in facts]
    words = np.percentile([len(caption.split()) for caption in captions], (0, 25, 50, 75, 100)).round().astype(int)
    times = Counter(captions)
    return [
        f"words a caption (least, quartiles, most): {', '.join(map(str, words))}",
        f"{len(times)} different captions of {len(captions)}; the commonest stands {max(times.values())} times",
    ]


def _account(report: dict[str, Any], damaged: int) -> list[str]:
    used, skipped, present = report["used"], report["skipped_pictures"], report["present"]
    verdict = "every picture accounted for" if used + skipped == present else "PICTURES ARE LOST"
    lines = [f"present {present} = used {used} + skipped {skipped}: {verdict}"]
    if views := report.get("views"):
        lines.append(f"{views} training records are further views of pictures: mirrored, turned or cropped")
    lines += [f"  skipped, {reason}: {count}" for reason, count in report["skipped_by_reason"].items()]
    if damaged:
        lines.append(f"damaged records left out: {damaged}")
    return lines


def _leaks(facts: Facts) -> list[str]:
    places, groups, hashes = ({row["id"]: row[name] for row in facts} for name in ("split", "group", "hash"))
    found = splits.leaks(places, groups, hashes)
    count = len({*groups.values()} - {""})
    return [f"groups {count}, leaks between splits {len(found)}", *(f"  {leak}" for leak in found)]


def _sheet(path: pathlib.Path, rows: Mapping[str, Rows]) -> None:
    """Pictures spread over the splits, masks outlined, captions below."""
    chosen = [(split, number) for split, source in rows.items() for number in _spread(range(len(source)))]
    height = TILE + LINE * (CAPTION_LINES + 1)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (TILE + GAP), SHEET_ROWS * (height + GAP)), "white")
    font, draw = ImageFont.load_default(LINE - 3), ImageDraw.Draw(sheet)
    for place, (split, number) in enumerate(_spread(chosen)):
        row = rows[split][number]
        left, top = (place % SHEET_COLUMNS) * (TILE + GAP), (place // SHEET_COLUMNS) * (height + GAP)
        sheet.paste(_outlined(row), (left, top))
        lines = textwrap.wrap(row["caption"], CAPTION_WIDTH, max_lines=CAPTION_LINES)
        for below, line in enumerate([f"{split}: {row['label']}".rstrip(": "), *lines]):
            draw.text((left, top + TILE + below * LINE), line, "black", font)
    with replacing(path) as part:
        sheet.save(part, "PNG")


def _outlined(row: dict[str, Any]) -> Image.Image:
    """The picture with the edge of its mask in yellow."""
    image = Image.fromarray(from_png(row["image"])).resize((TILE, TILE), Image.Resampling.BICUBIC)
    mask = Image.fromarray((from_png(row["mask"]) > 0).astype(np.uint8) * 255).resize((TILE, TILE))
    inside = np.asarray(mask) > 127
    pixels = np.array(image)
    pixels[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = (255, 220, 0)
    return Image.fromarray(pixels)


def _spread(among: Sequence[Any]) -> list[Any]:
    """As many as a sheet holds, evenly spaced; all where there are fewer."""
    places = np.linspace(0, len(among) - 1, min(len(among), SHEET_COLUMNS * SHEET_ROWS)).astype(int)
    return [among[place] for place in places.tolist()]


@guarded
def main(argv: Sequence[str]) -> int:
    """Prints the report; returns the exit status: 2 for bad input, 1 for a leak or a lost picture."""
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config name>.")
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))  # configs/ stands beside the package
    config = from_config_dict(read_config(argv))
    folder = pathlib.Path(workdir.value or f"runs/{config.name}")
    lines = inspect(config, folder, Store(folder.parent / "store"))
    print("\n".join(lines))
    return int(any("LOST" in line or line.startswith("  the ") for line in lines))


if __name__ == "__main__":
    leave(main(sys.argv))
