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
from vgjax.config import Config, ConfigError
from vgjax.context import VARIABLES, Context, Producer
from vgjax.evaluation.domain import DOMAIN, forward
from vgjax.models import inception
from vgjax.weights import WeightsError, from_torch
from vgjax.weights import load as read_weights
from vgjax.weights.read import cached, read_json

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
    if name in NETWORK_FILES:
        return from_file(name, getattr(context.config.networks, name), context.mesh)
    return {"pixel": _pixel, "domain": _domain}[name](context)


def check(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Reads the files of weights; ConfigError where one cannot be used."""
    for name in config.networks.use:
        if name in NETWORK_FILES:
            from_file(name, getattr(config.networks, name), mesh)


def in_batches(
    forward: Callable[[Any, Any], jax.Array],
    variables: Any,
    mesh: jax.sharding.Mesh,
    prepare: Callable[[np.ndarray], np.ndarray],
    pictures: Iterable[np.ndarray],
) -> np.ndarray:
    """Features (N, F) float32: what `forward` makes of variables and prepared pictures.

    In batches of one size, the last filled up, split over the mesh.
    """
    size = BATCH * mesh.shape["data"] * mesh.shape["fsdp"]
    apply, rest, found = jax.jit(forward), iter(pictures), []
    variables = jax.device_put(variables, parallel.replicated(mesh))
    with jax.set_mesh(mesh):
        while batch := [prepare(picture) for picture in itertools.islice(rest, size)]:
            filled = np.stack(batch + batch[-1:] * (size - len(batch)))
            rows = parallel.to_global(filled[parallel.process_rows(size)], mesh)
            found.append(np.asarray(parallel.gather(apply(variables, rows)), np.float32)[: len(batch)])
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
    side, variables = c.domain.image_size, context.variables("domain")
    run = functools.partial(in_batches, functools.partial(forward, c), variables, context.mesh, np.asarray)
    return FeatureNetwork("domain", _sha256(path), side, f"linearly to {side} x {side}", run)


def _sha256(*paths: pathlib.Path) -> str:
    """Of a file, or of several one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def from_file(name: str, source: str, mesh: jax.sharding.Mesh) -> FeatureNetwork:
    """A network of weights trained elsewhere, given pictures as its authors did; ConfigError where they are others."""
    try:
        path = pathlib.Path(source) if pathlib.Path(source).exists() else cached(source)
        tensors, values = read_weights(path)
        if name == "inception":
            module, variables = from_torch("inception", tensors, where=source)
            apply = lambda variables, image: module.apply(variables, inception.resize(image))[0]
            size, resize = inception.SIDE, "bilinearly from the corner to 299 x 299, as TensorFlow 1"
            prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
        else:
            module, variables = from_torch("dinov2", tensors, values, where=source)
            apply = module.apply
            size, resize, prepare = _preparation(path / "preprocessor_config.json")
    except WeightsError as error:
        raise ConfigError(f"config key 'networks.{name}': {error}") from None
    digest = _sha256(*(sorted(path.glob("*.safetensors")) if path.is_dir() else [path]))
    return FeatureNetwork(name, digest, size, resize, functools.partial(in_batches, apply, variables, mesh, prepare))


def _preparation(path: pathlib.Path) -> tuple[int, str, Callable[[np.ndarray], np.ndarray]]:
    """Pixels a side, words and function of what a model's preprocessor_config.json does with a square picture."""
    values = read_json(path)
    try:
        edge, size, filter_ = values["size"]["shortest_edge"], values["crop_size"]["height"], values["resample"]
        mean, std = (np.array(values[f"image_{name}"], np.float32)[None, None] for name in ("mean", "std"))
        factor, method, start = np.float32(values["rescale_factor"]), Image.Resampling(filter_), (edge - size) // 2
        assert mean.shape == std.shape == (1, 1, 3) and start >= 0
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        told = "size.shortest_edge, crop_size.height, resample, rescale_factor, image_mean and image_std"
        raise WeightsError(f"'{path}' gives no usable {told} ({error}): fetch the model's own") from None

    def prepare(picture: np.ndarray) -> np.ndarray:
        whole = np.asarray(Image.fromarray(picture).resize((edge, edge), method), np.float32)
        return (whole[start : start + size, start : start + size] * factor - mean) / std

    return size, f"{method.name.lower()} to {edge} x {edge}, of which the middle {size} x {size}", prepare
