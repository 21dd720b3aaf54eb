"""What a prepared dataset holds:  python -m vgjax.data.inspect --config=configs/X.py --config.data.root=FOLDER.

Prepares the dataset where that has not happened yet, then prints splits and classes, lengths of the texts, what was
skipped and why, and whether anything stands on both sides of a split; writes a contact sheet with masks and captions.
"""

from __future__ import annotations

import json
import pathlib
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from vgjax.config import Config, ConfigError, from_config_dict
from vgjax.data.prepare import pictures as preparation
from vgjax.data.prepare import splits
from vgjax.data.prepare.builder import Pictures
from vgjax.data.prepare.duplicates import pixel_hash
from vgjax.data.records import Rows, SkippedRows, from_png
from vgjax.types import SPLITS

SHEET_COLUMNS, SHEET_ROWS = 5, 4
CAPTION_WIDTH, CAPTION_LINES = 38, 6  # characters, lines
TILE, GAP, LINE = 220, 12, 14  # pixels
QUARTILES = (0, 25, 50, 75, 100)


def inspect(config: Config, folder: pathlib.Path) -> list[str]:
    """Lines of the report; writes folder/contact_sheet.png.

    Args:
      folder: of the records, prepared here if need be.

    Raises:
      ConfigError: the dataset cannot be prepared, or its records are damaged beyond use.
    """
    preparation.check(config)
    preparation.prepare(config, folder)
    damaged = preparation.verify(config, folder)
    report = json.loads((folder / "prepare_report.json").read_text())
    rows: dict[str, Rows] = {
        split: SkippedRows(Pictures(folder, config.data.source, split), damaged[split]) for split in SPLITS
    }
    facts = {split: [_facts(source[i]) for i in range(len(source))] for split, source in rows.items()}
    _sheet(folder / "contact_sheet.png", rows)
    return [*_counts(facts), *_texts(facts), *_account(report, damaged), *_leaks(facts), f"{folder}/contact_sheet.png"]


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """What is counted of one picture, read from the records themselves."""
    kept = {name: row[name] for name in ("id", "label", "group", "caption")}
    return {**kept, "hash": pixel_hash(from_png(row["image"])), "lesion": float((from_png(row["mask"]) > 0).mean())}


def _counts(facts: dict[str, list[dict[str, Any]]]) -> list[str]:
    labels = sorted({row["label"] for rows in facts.values() for row in rows})
    width = max([len("no class"), *(len(label) for label in labels)])
    lines = [f"{'class':{width}} " + " ".join(f"{split:>10}" for split in SPLITS)]
    for label in labels:
        counts = (sum(row["label"] == label for row in facts[split]) for split in SPLITS)
        lines.append(f"{label or 'no class':{width}} " + " ".join(f"{count:10}" for count in counts))
    lines.append(f"{'all':{width}} " + " ".join(f"{len(facts[split]):10}" for split in SPLITS))
    area = [row["lesion"] for rows in facts.values() for row in rows]
    empty = sum(share == 0 for share in area)
    return [*lines, f"masks: {empty} empty; the others cover {np.mean([a for a in area if a] or [0]):.1%} on average"]


def _texts(facts: dict[str, list[dict[str, Any]]]) -> list[str]:
    captions = [row["caption"] for rows in facts.values() for row in rows]
    words = np.percentile([len(caption.split()) for caption in captions], QUARTILES).round().astype(int)
    most = Counter(captions).most_common(1)[0]
    return [
        f"words a caption (least, quartiles, most): {', '.join(map(str, words))}",
        f"{len(set(captions))} different captions of {len(captions)}; the commonest stands {most[1]} times",
    ]


def _account(report: dict[str, Any], damaged: dict[str, list[int]]) -> list[str]:
    used, skipped, present = report["used"], report["skipped_pictures"], report["present"]
    verdict = "every picture accounted for" if used + skipped == present else "PICTURES ARE LOST"
    lines = [f"present {present} = used {used} + skipped {skipped}: {verdict}"]
    lines += [f"  skipped, {reason}: {count}" for reason, count in report["skipped_by_reason"].items()]
    if lost := sum(map(len, damaged.values())):
        lines.append(f"damaged records left out: {lost}")
    return lines


def _leaks(facts: dict[str, list[dict[str, Any]]]) -> list[str]:
    by_id = {row["id"]: (split, row["group"], row["hash"]) for split, rows in facts.items() for row in rows}
    places, groups, hashes = ({item: values[i] for item, values in by_id.items()} for i in range(3))
    found = splits.leaks(places, groups, hashes)
    count = len(set(groups.values()) - {""})
    return [f"groups {count}, leaks between splits {len(found)}", *(f"  {leak}" for leak in found)]


def _sheet(path: pathlib.Path, rows: dict[str, Rows]) -> None:
    """Pictures spread over the splits, masks outlined, captions below."""
    chosen = [(split, row) for split, source in rows.items() for row in _spread(source, SHEET_COLUMNS * SHEET_ROWS)]
    picks = np.linspace(0, len(chosen) - 1, min(len(chosen), SHEET_COLUMNS * SHEET_ROWS)).astype(int)
    height = TILE + LINE * (CAPTION_LINES + 1)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (TILE + GAP), SHEET_ROWS * (height + GAP)), "white")
    font, draw = ImageFont.load_default(LINE - 3), ImageDraw.Draw(sheet)
    for place, pick in enumerate(picks):
        split, row = chosen[pick]
        left, top = (place % SHEET_COLUMNS) * (TILE + GAP), (place // SHEET_COLUMNS) * (height + GAP)
        sheet.paste(_outlined(row), (left, top))
        lines = textwrap.wrap(row["caption"], CAPTION_WIDTH, max_lines=CAPTION_LINES)
        for number, line in enumerate([f"{split}: {row['label']}".rstrip(": "), *lines]):
            draw.text((left, top + TILE + number * LINE), line, "black", font)
    sheet.save(path)


def _outlined(row: dict[str, Any]) -> Image.Image:
    """The picture with the edge of its mask in yellow."""
    image = Image.fromarray(from_png(row["image"])).resize((TILE, TILE), Image.Resampling.BICUBIC)
    mask = Image.fromarray((from_png(row["mask"]) > 0).astype(np.uint8) * 255).resize((TILE, TILE))
    inside = np.asarray(mask) > 127
    pixels = np.array(image)
    pixels[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = (255, 220, 0)
    return Image.fromarray(pixels)


def _spread(source: Rows, count: int) -> list[dict[str, Any]]:
    return [source[i] for i in sorted({int(i) for i in np.linspace(0, max(len(source) - 1, 0), count)}) if len(source)]


def main(argv: Sequence[str]) -> int:
    """Prints the report; returns the exit status: 2 for bad input, 1 for a leak or a lost picture."""
    config_flag = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/busi.py.")
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config name>.")
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))  # configs/ stands beside the package
    try:
        flags.FLAGS(list(argv))
        if config_flag.value is None:
            raise flags.Error("--config is missing: name a config file, e.g. --config=configs/busi.py")
        config = from_config_dict(config_flag.value)
        folder = pathlib.Path(workdir.value or f"runs/{config.name}") / "records"
        lines = inspect(config, folder)
    except (flags.Error, ConfigError, AttributeError, OSError, ImportError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print("\n".join(lines))
    return int(any("LOST" in line or line.startswith("  the ") for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
