"""The networks that pictures are compared in, by the name that config key `networks.use` takes."""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from vgjax import parallel
from vgjax.compatibility import NETWORK_FILES
from vgjax.config import Config
from vgjax.context import VARIABLES, Context, Producer
from vgjax.evaluation.domain import DOMAIN, forward

BATCH = 16  # pictures a device
SIDE = 32  # pixels of "pixel"
KEYS = ("networks.*", "domain.*", "-domain.train.*")  # config keys that `load` reads


class FeatureNetwork(NamedTuple):
    """A network that is given pictures.

    Attributes:
      sha256: of its weights; empty where it has none.
      size: pixels a side that it looks at.
      resize: how pictures come to that size, in words.
      apply: pictures (H, W, 3) uint8, all of one size -> features (N, F) float32.
    """

    name: str
    sha256: str
    size: int
    resize: str
    apply: Callable[[Iterable[np.ndarray]], np.ndarray]


def producers(config: Config) -> dict[str, Producer]:
    """The artefacts that `load` reads."""
    return {"domain": DOMAIN} if "domain" in config.networks.use else {}


def files(config: Config) -> list[str]:
    """Files and folders of weights that `load` reads."""
    return [getattr(config.networks, name) for name in config.networks.use if name in NETWORK_FILES]


def load(name: str, context: Context) -> FeatureNetwork:
    """A network of `networks.use`.

    Raises:
      ConfigError: its weights cannot be used.
    """
    return {"pixel": _pixel, "domain": _domain}[name](context)


def in_batches(
    forward: Callable[[Any], jax.Array],
    mesh: jax.sharding.Mesh,
    prepare: Callable[[np.ndarray], np.ndarray],
    pictures: Iterable[np.ndarray],
) -> np.ndarray:
    """Features (N, F) float32 of prepared pictures, in batches of one size, the last filled up, split over the mesh."""
    size = BATCH * mesh.shape["data"] * mesh.shape["fsdp"]
    apply, rest, found = jax.jit(forward), iter(pictures), []
    with jax.set_mesh(mesh):
        while batch := [prepare(picture) for picture in itertools.islice(rest, size)]:
            filled = np.stack(batch + batch[-1:] * (size - len(batch)))
            rows = parallel.to_global(filled[parallel.process_rows(size)], mesh)
            found.append(np.asarray(parallel.gather(apply(rows)), np.float32)[: len(batch)])
    return np.concatenate(found)


def reduced(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 as vectors (N, 3 SIDE^2), root mean square differences of which are their distances."""
    small = [np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BOX)).ravel() for p in pictures]
    return np.stack(small).astype(np.float64) / (255 * np.sqrt(small[0].size))


def _pixel(context: Context) -> FeatureNetwork:
    resize = f"means over boxes to {SIDE} x {SIDE}"
    return FeatureNetwork("pixel", "", SIDE, resize, lambda pictures: reduced(pictures).astype(np.float32))


def _domain(context: Context) -> FeatureNetwork:
    c, path = context.config, context.artefact("domain").path(VARIABLES)
    apply = forward(c, context.variables("domain"))
    side = c.domain.image_size
    run = functools.partial(in_batches, apply, context.mesh, np.asarray)
    return FeatureNetwork("domain", _sha256(path), side, f"linearly to {side} x {side}", run)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
