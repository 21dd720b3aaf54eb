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

Row = dict[str, Any]


def write_column(
    folder: pathlib.Path,
    name: str,
    sources: dict[str, SkippedRows],
    compute: Callable[[Sequence[Row]], Iterable[dict[str, np.ndarray]]],
    batch: int,
) -> dict[str, Any]:
    """Writes folder/<split>-<shard>.array_record; shards of an earlier, broken off call stay as they are.

    Args:
      name: for the progress bar.
      sources: split -> the rows to compute from.
      compute: rows, at most `batch` of them -> the new fields of each.

    Returns:
      What the artefact's manifest says: the absent rows of each split.
    """
    for split, source in sources.items():
        with tqdm(total=source.total, desc=f"{name}, {split}", unit="row", mininterval=1.0) as bar:
            for start in range(0, source.total, SHARD_ROWS):
                path = folder / f"{split}-{start // SHARD_ROWS:05d}.array_record"
                stop = min(start + SHARD_ROWS, source.total)
                if not path.exists():
                    records.write(path, _shard(source, start, stop, compute, batch, bar))
    return {"absent": {split: sorted(set(range(s.total)) - set(s.numbers)) for split, s in sources.items()}}


def _shard(
    source: SkippedRows,
    start: int,
    stop: int,
    compute: Callable[[Sequence[Row]], Iterable[dict[str, np.ndarray]]],
    batch: int,
    bar: tqdm,
) -> Iterator[dict[str, np.ndarray]]:
    """The records of rows start..stop, those of absent rows empty."""
    places = {number: place for place, number in enumerate(source.numbers) if start <= number < stop}
    numbers = list(places)
    found: dict[int, dict[str, np.ndarray]] = {}
    for first in range(0, len(numbers), batch):
        chunk = numbers[first : first + batch]
        found |= zip(chunk, compute([source[places[number]] for number in chunk]), strict=True)
        bar.update(len(chunk))
    return (found.get(number, {}) for number in range(start, stop))


def filled(arrays: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Stacked arrays, the last one repeated up to `batch` rows: compiled functions see one shape."""
    return np.stack([*arrays, *[arrays[-1]] * (batch - len(arrays))])
