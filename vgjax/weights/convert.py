"""The one strict, two-way converter between torch's tensors and our variables; each network only brings a table.

Linear (out, in) <-> kernel (in, out), convolution OIHW <-> HWIO, norms' weight <-> scale, running statistics <->
`batch_stats`; layers that we scan over are stacked along the leading axis.
"""

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
LEAVES = {
    **dict.fromkeys(("kernel", "scale", "embedding"), "weight"),
    **{"mean": "running_mean", "var": "running_var", "down": "lora_A.weight", "up": "lora_B.weight"},
}
# Counts training batches; nothing computes with it, but torch's strict loading asks for it.
COUNTER = "num_batches_tracked"


class WeightsError(ConfigError):
    """Weights that cannot be used: the message says which, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Table:
    """How one network's parameters are called in torch.

    The rows are ordered (pattern, name) over our module paths ("blocks/attn1/to_q"); the first full match gives torch's
    name of the module, with groups filled in. "{layer}" stands for the index along the leading, stacked axis.
    """

    rows: tuple[tuple[str, str], ...]
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) on torch's names first: prefixes, old spellings
    ignored: str = ""  # torch names, after renaming, that are no part of our network

    def torch_module(self, path: Path) -> str:
        """torch's name of our module at `path`, with "{layer}" where layers are stacked.

        Raises:
          LookupError: no row matches, a fault of the table.
        """
        name = "/".join(path)
        for pattern, template in self.rows:
            if match := re.fullmatch(pattern, name):
                return match.expand(template)
        raise LookupError(f"no row of the table matches '{name}'")

    def stacked(self, path: Path) -> bool:
        """Whether our module at `path` holds several of torch's along the leading axis."""
        return "{layer}" in self.torch_module(path)

    def torch_names(self, path: Path, layers: int) -> list[str]:
        """Names of the tensors that make up our leaf at `path` (collection first), one a layer where stacked."""
        *modules, leaf = path[1:]
        module = self.torch_module(tuple(modules))
        name = f"{module}.{LEAVES.get(leaf, leaf)}".removeprefix(".")
        return [name.replace("{layer}", str(i)) for i in range(layers if "{layer}" in name else 1)]

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
    return traverse_util.flatten_dict(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)))


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
        stacked = table.stacked(path[1:-1])
        if stacked and not 1 <= leaf.shape[0] <= len(tensors):
            raise WeightsError(f"{where}: {leaf.shape[0]} layers of {len(tensors)} tensors: fetch its own config.json")
        shape = leaf.shape[1:] if stacked else leaf.shape
        axes = torch_axes(path[-1], len(shape))
        torch_shape = tuple(shape[axis] for axis in axes)
        parts = []
        for name in table.torch_names(path, leaf.shape[0] if stacked else 1):
            if name not in rest:
                errors.append(f"{name} is missing")
                continue
            tensor = floating(rest.pop(name))
            if tensor.shape != torch_shape:
                errors.append(f"{name} has shape {tensor.shape} instead of {torch_shape}")
            parts.append(tensor)
        if not errors:
            ours = [part.transpose(np.argsort(axes)) for part in parts]
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
        parts = list(value) if table.stacked(path[1:-1]) else [value]
        for name, part in zip(table.torch_names(path, len(parts)), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part.transpose(torch_axes(path[-1], part.ndim)))
            if name.endswith(".running_mean"):
                tensors[name.removesuffix("running_mean") + COUNTER] = np.zeros((), np.int64)
    return tensors


def floating(tensor: np.ndarray) -> np.ndarray:
    """The tensor in float32; float64 stays."""
    return tensor if tensor.dtype == np.float64 else np.asarray(tensor, np.float32)


def torch_axes(leaf: str, rank: int) -> tuple[int, ...]:
    """The axes of our leaf of this name in torch's order; the halves of an adapter are laid out as kernels are."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)} if leaf in ("kernel", "down", "up") else {}
    return axes.get(rank, tuple(range(rank)))


class Sizes:
    """Shapes of tensors by name; a network's size is read from them, so that no config has to be trusted.

    Raises:
      WeightsError: asked for the shape of a tensor that is not there.
    """

    def __init__(self, tensors: Tensors, where: str):
        self._tensors, self._where = tensors, where

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise WeightsError(f"{self._where}: {name} is missing: give the weights of the whole network")
        return self._tensors[name].shape

    def has(self, name: str) -> bool:
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


@dataclasses.dataclass(frozen=True)
class Network:
    """One kind of network that can be brought in and taken out."""

    table: Table
    # (tensors by today's names, values of config.json) -> our module of that size, and example inputs (shapes count) of
    # its `__call__`.
    build: Callable[[Sizes, Mapping[str, Any]], tuple[nn.Module, tuple[Any, ...]]]
