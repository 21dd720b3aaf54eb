"""Derived columns: what is computed once of every picture's row and then joined to it by the row's number.

A column is as long as the pictures are; the record of a row that could not be read is empty, and the row is listed as
absent. Shards make the work resumable.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from vgjax.data import records
from vgjax.data.records import SkippedRows

SHARD_ROWS = 4096
TRAINING_SPLITS = ("train", "validation")

Row = dict[str, Any]
Fields = dict[str, np.ndarray]
Compute = Callable[[Sequence[Row]], Iterable[Fields]]  # rows -> the new fields of each


def write_column(
    folder: pathlib.Path, name: str, sources: dict[str, SkippedRows], compute: Compute, batch: int
) -> dict[str, Any]:
    """Writes folder/<split>-<shard>.array_record from the rows of each split, at most `batch` of them at a time.

    Whole shards of an earlier, broken off call stay as they are; `name` is for the progress bar.

    Returns:
      What the artefact's manifest says: the absent rows of each split.
    """
    for split, source in sources.items():
        with tqdm(total=source.total, desc=f"{name}, {split}", unit="row", mininterval=1.0) as bar:
            for start in range(0, source.total, SHARD_ROWS):
                path = folder / f"{split}-{start // SHARD_ROWS:05d}.array_record"
                if not records.whole(path):
                    shard = range(start, min(start + SHARD_ROWS, source.total))
                    records.write(path, _records(source, shard, compute, batch, bar))
    return {"absent": {split: sorted(set(range(s.total)) - set(s.numbers)) for split, s in sources.items()}}


def _records(source: SkippedRows, shard: range, compute: Compute, batch: int, bar: tqdm) -> Iterator[Fields]:
    """Those of a shard's rows, of absent ones empty."""
    places = [place for place, number in enumerate(source.numbers) if number in shard]
    found: dict[int, Fields] = {}
    for first in range(0, len(places), batch):
        chunk = places[first : first + batch]
        numbers = [source.numbers[place] for place in chunk]
        found |= zip(numbers, compute([source[place] for place in chunk]), strict=True)
        bar.update(len(chunk))
    return (found.get(number, {}) for number in shard)


def pictures(rows: Sequence[Row], batch: int, field: str = "image") -> np.ndarray:
    """The rows' pictures or masks, the last one repeated up to `batch` of them: compiled functions see one shape."""
    images = [records.from_png(row[field]) for row in rows]
    return np.stack([*images, *[images[-1]] * (batch - len(images))])
