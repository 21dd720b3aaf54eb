"""The nearest of all pictures: searched in float32 on the devices, the best few compared again in float64.

Either side is sliced, a block at a time, so that features may also lie in a file (numpy.memmap).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 256  # rows a device at a time
SPARE = 15  # best ones that are compared again, beyond those asked for


class Nearest(NamedTuple):
    """Of each query, numbers of the nearest references, nearest first, (N, k), and their distances, (N, k) float64."""

    rows: np.ndarray
    distances: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, k: int = 1) -> Nearest:
    """The exact k nearest by Euclidean distance of features (N, F) among (M, F), M >= k; of equal ones, the first.

    Where rounding in float32 could have hidden one of them, the query is compared with all references in float64.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("rows",), (jax.sharding.AxisType.Auto,), devices=devices)
    split, block = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")), BLOCK * len(devices)
    keep, centre = min(k + SPARE, len(references)), references[:block].mean(0, dtype=np.float64)
    centred = lambda rows: (rows - centre).astype(np.float32)
    found = []
    for start in range(0, len(queries), block):
        rows, longest = centred(queries[start : start + block]), 0.0
        asked = jax.device_put(np.pad(rows, ((0, block - len(rows)), (0, 0))), split)
        best, at = np.empty((len(rows), 0)), np.empty((len(rows), 0), np.int64)
        for first in range(0, len(references), block):
            some = centred(references[first : first + block])
            longest = max(longest, float(np.sqrt(np.square(some).sum(1).max())))
            squares, places = _closest(asked, np.pad(some, ((0, block - len(some)), (0, 0))), len(some), keep)
            best, at = np.hstack([best, squares[: len(rows)]]), np.hstack([at, first + places[: len(rows)]])
            order = np.argsort(best, axis=1, kind="stable")[:, :keep]
            best, at = np.take_along_axis(best, order, 1), np.take_along_axis(at, order, 1)
        # Of a sum of F products in float32, whatever their order (Higham 2002, section 3.1), twice over.
        errors = (rows.shape[1] + 8) * 2.0**-23 * np.square(np.linalg.norm(rows, axis=1) + longest)
        for query, squares, places, error in zip(queries[start : start + block], best, at, errors, strict=True):
            chosen, distances = _exact(query, references, places, k)
            if keep < len(references) and distances[-1] ** 2 >= squares[-1] - error:
                chosen, distances = _exact(query, references, np.arange(len(references)), k)
            found.append((chosen, distances))
    return Nearest(*map(np.stack, zip(*found, strict=True)))


@functools.partial(jax.jit, static_argnums=3)
def _closest(queries: jax.Array, references: jax.Array, count: jax.Array, keep: int) -> tuple[jax.Array, jax.Array]:
    """Squared distances (N, keep) to the nearest of the first `count` references, and their numbers; inf beyond."""
    products = jnp.matmul(queries, references.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(queries).sum(1)[:, None] + jnp.square(references).sum(1)[None] - 2 * products
    squares = jnp.where(jnp.arange(len(references))[None] < count, squares, jnp.inf)
    least, places = jax.lax.top_k(-squares, min(keep, len(references)))
    return -least, places


def _exact(query: np.ndarray, references: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of some rows, in float64."""
    parts = [references[rows[at : at + BLOCK]].astype(np.float64) for at in range(0, len(rows), BLOCK)]
    distances = np.concatenate([np.sqrt(np.square(part - query).sum(1)) for part in parts])
    order = np.lexsort((rows, distances))[:k]
    return rows[order], distances[order]
