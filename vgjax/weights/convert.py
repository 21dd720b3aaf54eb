"""The one strict, two-way converter between torch's tensors and our variables; each network only brings a table.

Linear (out, in) <-> kernel (in, out), convolution OIHW <-> HWIO, norms' weight <-> scale, running statistics <->
`batch_stats`; layers that we scan over are stacked along the leading axis.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from vgjax.config import ConfigError

Tensors = Mapping[str, np.ndarray]
Path = tuple[str, ...]

# Our leaf names -> torch's; any other leaf keeps its name.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
# Counts training batches; nothing computes with it, but torch's strict loading asks for it.
COUNTER = "num_batches_tracked"


class WeightsError(ConfigError):
    """Weights that cannot be used: the message says which, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Table:
    """How one network's parameters are called in torch.

    Attributes:
      rows: ordered (pattern, name) over our module paths ("blocks/attn1/to_q"); the first full match gives torch's
        name of the module, with groups filled in. "{layer}" stands for the index along the leading, stacked axis.
      renames: (pattern, replacement) on torch's names before anything else: prefixes, older spellings.
      ignored: torch names, after renaming, that are no part of our network.
    """

    rows: tuple[tuple[str, str], ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = ""

    def torch_module(self, path: Path) -> str:
        """torch's name of our module at `path`, with "{layer}" where layers are stacked.

        Raises:
          LookupError: no row matches, a fault of the table.
        """
        name = "/".join(path)
        for pattern, template in self.rows:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(template)
        raise LookupError(f"no row of the table matches '{name}'")

    def torch_names(self, path: Path, layers: int) -> list[str]:
        """Names of the tensors that make up our leaf at `path` (collection first), one a layer where stacked."""
        *modules, leaf = path[1:]
        module = self.torch_module(tuple(modules))
        name = f"{module}.{LEAVES.get(leaf, leaf)}".removeprefix(".")
        return [name.replace("{layer}", str(i)) for i in range(layers)] if "{layer}" in name else [name]

    def renamed(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """Tensors under today's names, without the ignored ones.

        Raises:
          WeightsError: two tensors of one name that differ.
        """
        result: dict[str, np.ndarray] = {}
        for old, tensor in tensors.items():
            name = old
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name.endswith(COUNTER) or (self.ignored and re.fullmatch(self.ignored, name)):
                continue
            if name in result and not np.array_equal(result[name], tensor):
                raise WeightsError(f"two different tensors are both '{name}' (the second as '{old}'): keep one of them")
            result[name] = tensor
        return result


def shapes_of(module: nn.Module, inputs: tuple[Any, ...]) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes of the module's variables by path, collection first."""
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return traverse_util.flatten_dict(abstract)


def import_tensors(table: Table, tensors: Tensors, expected: Mapping[Path, Any], where: str) -> dict[str, Any]:
    """Our variables from torch's tensors, float32 (float64 stays).

    Args:
      tensors: by torch name, already renamed.
      expected: our paths and shapes.
      where: what the tensors are, for messages.

    Raises:
      WeightsError: listing every tensor that is missing, unexpected or of another shape.
    """
    rest, flat, errors = dict(tensors), {}, []
    for path, leaf in expected.items():
        names = table.torch_names(path, leaf.shape[0] if leaf.shape else 0)
        stacked = "{layer}" in table.torch_module(path[1:-1])
        shape = leaf.shape[1:] if stacked else leaf.shape
        parts = []
        for name in names:
            if name not in rest:
                errors.append(f"{name} is missing")
                continue
            tensor = _floating(rest.pop(name))
            if tensor.shape != _torch_shape(path, shape):
                errors.append(f"{name} has shape {tensor.shape} instead of {_torch_shape(path, shape)}")
            parts.append(tensor)
        if not errors:
            ours = [_flip(path, part) for part in parts]
            flat[path] = np.stack(ours) if stacked else ours[0]
    errors += [f"{name} is unexpected" for name in sorted(rest)]
    if errors:
        raise WeightsError(f"{where}: {'; '.join(errors)}: give the weights of the same network")
    return traverse_util.unflatten_dict(flat)


def export_tensors(table: Table, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `import_tensors`; batch norms get a counter of zero, which torch's strict loading expects."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        value = np.asarray(leaf)
        stacked = "{layer}" in table.torch_module(path[1:-1])
        parts = list(value) if stacked else [value]
        for name, part in zip(table.torch_names(path, len(parts)), parts, strict=True):
            tensors[name] = np.ascontiguousarray(_flip_back(path, part))
            if name.endswith(".running_mean"):
                tensors[name.removesuffix("running_mean") + COUNTER] = np.zeros((), np.int64)
    return tensors


def _floating(tensor: np.ndarray) -> np.ndarray:
    return tensor if tensor.dtype == np.float64 else np.asarray(tensor, np.float32)


def _flip(path: Path, tensor: np.ndarray) -> np.ndarray:
    """torch's layout -> ours."""
    if path[-1] != "kernel":
        return tensor
    return tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)


def _flip_back(path: Path, tensor: np.ndarray) -> np.ndarray:
    """Our layout -> torch's."""
    if path[-1] != "kernel":
        return tensor
    return tensor.T if tensor.ndim == 2 else tensor.transpose(3, 2, 0, 1)


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])


@dataclasses.dataclass(frozen=True)
class Network:
    """One kind of network that can be brought in and taken out.

    Attributes:
      table: names.
      build: (tensors by today's names, values of config.json) -> our module of that size, and example inputs (shapes
        count) of its `__call__`.
    """

    table: Table
    build: Callable[[Sizes, Mapping[str, Any]], tuple[nn.Module, tuple[Any, ...]]]


class Sizes:
    """Shapes of tensors by name; a network's size is read from them, so that no config has to be trusted."""

    def __init__(self, tensors: Tensors, where: str):
        self._tensors, self._where = tensors, where

    def __call__(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
          WeightsError: there is none of that name.
        """
        if name not in self._tensors:
            raise WeightsError(f"{self._where}: {name} is missing: give the weights of the whole network")
        return self._tensors[name].shape

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._tensors

    def count(self, pattern: str) -> int:
        """How many different first groups the pattern finds in the names: layers, blocks, levels.

        Raises:
          WeightsError: none at all.
        """
        found = {match[1] for name in self._tensors if (match := re.match(pattern, name))}
        if not found:
            raise WeightsError(f"{self._where}: no tensor matches {pattern}: give the weights of the whole network")
        return len(found)
