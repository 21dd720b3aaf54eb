"""The device mesh and where arrays live on it: one ordered (pattern, spec) table over parameter names."""

import collections
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vgjax.config import ConfigError
from vgjax.config import Mesh as MeshConfig
from vgjax.provenance import memory_bytes

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Calls under way at once, where virtual CPU devices share threads: one computes and one waits, so no device idles. With
# 32, XLA's own limit, all threads may come to wait in one device's collectives, and none is left for the other's.
IN_FLIGHT = 2

# First match wins. Kernels of stacked transformer blocks have a leading layer axis. The adaLN kernel stays off
# `tensor`: slices of a tensor-sharded modulation vector come back permuted on three-axis meshes (openxla/xla#40034).
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/.*(to_q|to_k|to_v|ff_in)/kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/.*(to_out|ff_out)/kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/.*(to_q|to_k|to_v|ff_in)/bias$", PartitionSpec(None, "tensor")),
    (r"adaln/kernel$", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),
)


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """A mesh over all devices, axes (data, fsdp, tensor).

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    others = config.fsdp * config.tensor
    data = count // others if config.data == -1 else config.data
    if data < 1 or data * others != count:
        raise ConfigError(
            f"config group 'mesh' asks for {config.data} x {config.fsdp} x {config.tensor} devices"
            f" (data, fsdp, tensor), but there are {count}: choose axes whose product is {count}, or mesh.data=-1"
        )
    return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_of(mesh: jax.sharding.Mesh, small: bool) -> jax.sharding.Mesh:
    """For a small network the mesh's first device alone, unless several processes must take part; else the mesh."""
    if not small or jax.process_count() > 1:
        return mesh
    return jax.sharding.Mesh(mesh.devices[:1, :1, :1], AXES, axis_types=mesh.axis_types)


def check_batch(mesh: jax.sharding.Mesh, key: str, batch_size: int) -> None:
    """Raises ConfigError unless `batch_size` divides over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise ConfigError(
            f"config key '{key}' is {batch_size}: it must be a multiple of {shards}, the devices along data x fsdp"
        )


def path_name(path: tuple[Any, ...]) -> str:
    """`blocks/attn1/to_q/kernel` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    """`spec` for this shape: too long for its rank means replicated; axes that do not divide are dropped."""
    if len(spec) > len(shape):
        return PartitionSpec()
    axes = [a if a is None or size % mesh.shape[a] == 0 else None for a, size in zip(spec, shape, strict=False)]
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or shapes), by its name."""

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        return NamedSharding(mesh, _fit(spec, np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes with the shardings that arrays of them shall have."""
    places = shardings(shapes, mesh)
    return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """Arrays split over any devices of any process -> whole numpy arrays, on every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def process_rows(count: int) -> slice:
    """The rows of a global batch of `count` that this process reads; processes share it evenly."""
    share = count // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_global(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """This process's rows (a tree of numpy arrays) -> arrays split over the batch axes of the mesh."""
    place = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(place, rows), batch)


def fitting(jitted: Any, key: str, devices: int) -> Callable[..., Any]:
    """A jitted function, compiled for each value of its first, static argument, if memory holds what it then takes.

    The result's calls raise ConfigError, which names config key `key`, where XLA sets aside more than all devices have.
    """
    programs: dict[Any, Any] = {}

    def call(static: Any, *arguments: Any) -> Any:
        if static not in programs:
            programs[static] = jitted.lower(static, *arguments).compile()
            if sizes := programs[static].memory_analysis():  # of each device; some backends have none
                once = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
                need, there = devices * (once + sizes.temp_size_in_bytes), memory_bytes()
                if need > there:
                    told = f"needs {need / 1e9:.3g} GB of memory and there are {there / 1e9:.3g} GB"
                    raise ConfigError(f"config key '{key}': a step of this size {told}: lower it")
        return programs[static](*arguments)

    return call


def few_in_flight(step: Callable[..., tuple[Any, Any]], mesh: jax.sharding.Mesh) -> Callable[..., tuple[Any, Any]]:
    """A compiled step that waits for its call before last, on a mesh of several CPU devices; elsewhere `step` itself.

    `step` returns what the next call may take over, and what stays.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return step
    under_way: collections.deque[Any] = collections.deque()

    def waiting(*arguments: Any) -> tuple[Any, Any]:
        if len(under_way) == IN_FLIGHT:
            jax.block_until_ready(under_way.popleft())
        carried, kept = step(*arguments)
        under_way.append(kept)
        return carried, kept

    return waiting
