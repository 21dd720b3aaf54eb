"""Streams batches with Grain: deterministic, shuffled over the whole dataset, resumable on any number of processes."""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from vgjax.data.records import Rows

Example = dict[str, np.ndarray]
GRAIN_SEEDS = 1 << 32


def training_batches(
    source: Rows, to_example: Callable[[dict[str, Any]], Example], batch_size: int, seed: int, in_memory: bool = False
):
    """An endless iterator over this process's rows of global batches, which are of `batch_size` over all processes.

    The order, from a seed of 64 bits, does not depend on the number of processes; nor does the state, one integer.
    Threads read ahead, unless the rows are `in_memory`: handing these over would cost more than reading them.
    """
    rows = grain.MapDataset.source(source).seed(seed % GRAIN_SEEDS).shuffle().repeat(None).map(to_example)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0) if in_memory else grain.ReadOptions()
    return iter(
        grain.experimental.ElasticIterator(rows, batch_size, grain.sharding.ShardByJaxProcess(), read_options=options)
    )


def ordered_batches(
    source: Rows, to_example: Callable[[dict[str, Any]], Example], batch_size: int
) -> Iterator[tuple[Example, int]]:
    """All rows once, in order; the last batch is filled up by repeating its last row. Yields (batch, valid rows)."""
    for start in range(0, len(source), batch_size):
        rows = [to_example(source[i]) for i in range(start, min(start + batch_size, len(source)))]
        valid = len(rows)
        rows += [rows[-1]] * (batch_size - valid)
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}, valid
