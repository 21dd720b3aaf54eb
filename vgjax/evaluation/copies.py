"""Copies of training pictures, found though they were mirrored, shifted, scaled, dimmed, compressed or made noisy.

A picture is compared with the few training pictures that are nearest by coarse descriptors of its mirrored, scaled and
shifted variants. What then remains of the best variant, brought to the other's brightness and contrast, is told as a
share of what altered copies of such a picture differ by: more where it has much detail, which they lose.
"""

import io
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance

from vgjax import seeds
from vgjax.context import Context, Producer
from vgjax.data.records import Rows, from_png
from vgjax.evaluation.neighbours import Nearest, nearest
from vgjax.store import Artefact

SIDE, MARGIN = 32, 3  # pixels of a thumbnail, and of its rim, which a shift may have brought in from outside
WINDOW, CELL = SIDE - 2 * MARGIN, 2
SHIFT, SCALE, TONE = 0.04, 0.05, 0.1  # largest alterations, as shares of side, size, brightness and contrast
NOISE, QUALITY = 2.0, 75  # levels; of JPEG
COARSE = 3  # pixels of a cell of a descriptor
FINE, STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0), (0.25, 0.125)  # of the largest alterations; then about the best of them
CANDIDATES, CHUNK = 8, 64  # that are looked at closely; pictures whose variants lie in memory
LUMA, COLOUR = (0.299, 0.587, 0.114), 2.0  # grey of red, green, blue; weight of what the mean colour differs by
FLOOR, DETAIL = 1.5, 0.05  # levels, and share of a picture's own detail, by which altered copies differ
HELD_OUT = 1000  # most validation pictures that fix the threshold
FALSE_ALARMS, RECALL = 0.0075, 0.99  # at the threshold, the lower of the two


class Known(NamedTuple):
    """What pictures are compared with: thumbnails (N, SIDE, SIDE, 3) uint8 and their descriptors (N, F)."""

    thumbnails: np.ndarray
    descriptors: np.ndarray

    def nearest(self, pictures: Iterable[np.ndarray]) -> Nearest:
        """Of each picture (H, W, 3) uint8, the one that it is likeliest a copy of, and its distance, (N,) each."""
        pictures, found = iter(pictures), []
        while chunk := list(itertools.islice(pictures, CHUNK)):
            thumbs = np.stack(list(map(thumbnail, chunk)))
            variants = np.asarray(_coarse(thumbs)).reshape(-1, self.descriptors.shape[1])
            near = nearest(variants, self.descriptors, min(CANDIDATES, len(self.descriptors)))
            rows, distances = (x.reshape(len(chunk), -1) for x in near)
            for thumb, numbers, order in zip(thumbs, rows, np.argsort(distances, axis=1, kind="stable"), strict=True):
                chosen = np.resize(list(dict.fromkeys(numbers[order]))[:CANDIDATES], CANDIDATES)
                apart = np.asarray(_remainder(thumb, self.thumbnails[chosen]))
                found.append((chosen[apart.argmin()], apart.min()))
        return Nearest(*map(np.array, zip(*found, strict=True)))


def known(pictures: Iterable[np.ndarray]) -> Known:
    """Pictures to be compared with."""
    thumbs = np.stack(list(map(thumbnail, pictures)))
    parts = (_inner(thumbs[at : at + CHUNK].astype(np.float32)) for at in range(0, len(thumbs), CHUNK))
    return Known(thumbs, np.concatenate([np.asarray(_descriptors(jnp.asarray(part))) for part in parts]))


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, each pixel the mean of what it covers."""
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX))


def _inner(x: Any) -> Any:
    return x[..., MARGIN:-MARGIN, MARGIN:-MARGIN, :]


def _resampling(scales: jax.Array, shifts: jax.Array) -> jax.Array:
    """Cubic weights (S, T, WINDOW, SIDE) that undo a scaling by 1 + s and a shift by t sides (Keys 1981)."""
    places = jnp.arange(WINDOW) + MARGIN + 0.5 - SIDE / 2
    at = (1 + scales)[:, None, None] * places[None, None] + ((shifts + 0.5) * SIDE - 0.5)[None, :, None]
    x = jnp.abs(at[..., None] - jnp.arange(SIDE)[None, None, None])
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def _variants(thumbs_FHWC: jax.Array, scales: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Pictures scaled and shifted in all ways, as shares of the largest alterations, (F S R C, WINDOW, WINDOW, 3)."""
    weights = [_resampling(SCALE * scales, SHIFT * shifts) for shifts in (rows, columns)]
    order: Any = {"optimize": "optimal", "precision": jax.lax.Precision.HIGHEST}
    found = jnp.einsum("syik,sxjl,fklc->fsyxijc", *weights, thumbs_FHWC, **order)
    return found.reshape(-1, *found.shape[-3:])


def _pooled(x: jax.Array, cell: int) -> jax.Array:
    """Means over cells, those that fit in whole, (N, F)."""
    count = x.shape[-2] // cell
    x = x[:, : count * cell, : count * cell].reshape(-1, count, cell, count, cell, 3)
    return x.mean((2, 4)).reshape(len(x), -1)


def _sides(thumb_HWC: jax.Array) -> jax.Array:
    """A picture and its mirror image."""
    return jnp.stack([thumb_HWC, thumb_HWC[:, ::-1]]).astype(jnp.float32)


def _descriptors(windows: jax.Array) -> jax.Array:
    """Coarse pixels (N, F) of one contrast, and the mean brightness, which changes less."""
    x = _pooled(windows, COARSE)
    mean = x.mean(1, keepdims=True)
    x = x - mean
    x = 20 * x / jnp.maximum(jnp.sqrt(jnp.square(x).mean(1, keepdims=True)), 4.0)
    return jnp.concatenate([x, 0.1 * x.shape[1] ** 0.5 * mean], 1)


@jax.jit
def _coarse(thumbs: jax.Array) -> jax.Array:
    """Descriptors of coarse variants of each picture, (B, V, F)."""
    ways = jnp.array([0.8, -0.8]), *[jnp.array([0.6, -0.6])] * 2
    found = lambda sides: jnp.concatenate([_inner(sides), _variants(sides, *ways)])
    return jax.vmap(lambda thumb: _descriptors(found(_sides(thumb))))(thumbs)


def _rest(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squares (V,) of what remains of variants (V, F) against a picture (F,), brought to its tones."""
    means, mean = x.mean(1), y.mean()
    x, y = x - means[:, None], y - mean
    # Contrast and brightness both scale; brightness moves the mean besides.
    most, power = (1 + TONE) / (1 - TONE), jnp.maximum(jnp.square(x).mean(1), 1e-3)
    gain = jnp.clip((x * y[None]).mean(1) / power, 1 / most, most)
    moved = jnp.maximum(jnp.abs(means - mean) - TONE * 255, 0.0)
    rest = (gain[:, None] * x - y[None]).reshape(len(x), WINDOW // CELL, WINDOW // CELL, 3)
    square = lambda part: jnp.square(part).reshape(len(x), -1).mean(1)
    # Noise and compression leave coarse greys, and colours in the mean, as they were; another picture does not.
    grey, colour = rest @ jnp.array(LUMA), rest.mean((1, 2)) - rest.mean((1, 2, 3))[:, None]
    coarse = grey[:, :12, :12].reshape(len(x), 6, 2, 6, 2).mean((2, 4))
    return (square(grey) + 4 * square(coarse)) / 3 + COLOUR * square(colour) + jnp.square(moved)


@jax.jit
def _remainder(thumb: jax.Array, candidates: jax.Array) -> jax.Array:
    """What remains of the best variant of a picture against each of the candidates, (C,)."""
    sides, grid = _sides(thumb), jnp.array(FINE)
    first = _pooled(_variants(sides, grid, grid, grid), CELL)

    def closest(candidate: jax.Array) -> jax.Array:
        window = _inner(candidate.astype(jnp.float32))
        y = _pooled(window[None], CELL)[0]
        rest = _rest(first, y)
        side, *place = jnp.unravel_index(rest.argmin(), (2, *[len(FINE)] * 3))
        places = [grid[i] for i in place]
        for step in STEPS:
            near = [place + step * jnp.array([0.0, -1.0, 1.0]) for place in places]
            rest = _rest(_pooled(_variants(sides[side][None], *near), CELL), y)
            places = [ways[i] for ways, i in zip(near, jnp.unravel_index(rest.argmin(), (3, 3, 3)), strict=True)]
        detail = jnp.maximum(window.var() - y.var(), 0.0)
        return jnp.sqrt(rest.min() / (FLOOR**2 + DETAIL * detail))

    return jax.vmap(closest)(candidates)


def altered(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy (H, W, 3) uint8 that was mirrored or not, and altered in all other ways at random, as far as they go."""
    height, width = picture.shape[:2]
    rim, size = max(height, width) // 8, np.array((width, height))
    scale, (dx, dy) = 1 + SCALE * rng.uniform(-1, 1), SHIFT * rng.uniform(-1, 1, 2) * size
    x, y = size / 2 + rim - (size / 2 + (dx, dy)) / scale
    copy = Image.fromarray(np.pad(picture[:, :: rng.choice((-1, 1))], ((rim, rim), (rim, rim), (0, 0)), "edge"))
    affine = (1 / scale, 0, x, 0, 1 / scale, y)
    copy = copy.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        copy = enhance(copy).enhance(1 + TONE * rng.uniform(-1, 1))
    noisy = np.asarray(copy) + rng.normal(0, NOISE, picture.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def threshold(held_out: np.ndarray, copies: np.ndarray) -> float:
    """The distance below which a picture counts as a copy.

    Args:
      held_out: distances (N,) of real pictures that were not trained on.
      copies: those of altered copies of such, (M,).
    """
    return float(min(np.quantile(held_out, FALSE_ALARMS), np.quantile(copies, RECALL)))


def pictures_of(rows: Rows) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8, read when they are wanted."""
    return (from_png(rows[i]["image"]) for i in range(len(rows)))


def _make(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Keeps what is compared with, and fixes the threshold by validation pictures, which are not compared with."""
    training, rows = known(pictures_of(context.rows(["pictures"], "train"))), context.rows(["pictures"], "validation")
    held_out = list(itertools.islice(pictures_of(rows), HELD_OUT))
    rng = np.random.default_rng(seeds.derive(context.config.seed, "copies"))
    apart, own = training.nearest(held_out).distances, known(held_out)
    found = Known(*map(np.concatenate, zip(training, own, strict=True))).nearest([altered(x, rng) for x in held_out])
    for name, array in training._asdict().items():
        np.save(folder / f"{name}.npy", array)
    bound = threshold(apart, found.distances)
    told = {
        "threshold": bound,
        "false_alarms": float((apart < bound).mean()),
        "recall": float((found.distances < bound).mean()),
    }
    return {**told, "held_out": len(held_out)}


def load(artefact: Artefact) -> tuple[Known, float]:
    """The training pictures, and the distance below which another one is a copy of one of them."""
    arrays = [np.load(artefact.path(f"{name}.npy"), mmap_mode="r") for name in Known._fields]
    return Known(*arrays), artefact.manifest["info"]["threshold"]


COPIES = Producer("copies", _make, keys=("seed",), needs=("pictures",))
