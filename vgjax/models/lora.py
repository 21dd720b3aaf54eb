"""Low-rank adaptation (Hu et al. 2021): W + scale * A B beside frozen weights, with the conventions of PEFT.

An adapter is a tree of its own, a sibling of "params": {"down": (..., in, rank), "up": (..., rank, out)} in the place
of each adapted kernel (..., in, out). Training applies it unmerged, so that no gradient of a full kernel is computed;
inference merges it once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from vgjax.config import ConfigError

COLLECTION = "lora"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Size and strength of an adapter of the modules whose names, in torch's spelling, end in one of the `targets`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Factor of A B: alpha / rank, or alpha / sqrt(rank) where `rank_stabilised` (Kalajdzievski 2023)."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def adapts(self, name: str) -> bool:
        """Whether the module of this (torch) name is a target, or ends in a dot and one."""
        return any(f".{name}".endswith(f".{target}") for target in self.targets)


def init(key: jax.Array, params: Mapping[str, Any], adapter: Adapter, name_of: Callable[[tuple[str, ...]], str]) -> Any:
    """A fresh adapter, which changes nothing: A is Gaussian with standard deviation 1 / rank, B is zero.

    Args:
      params: the adapted network's parameters (shapes suffice).
      name_of: our module path -> torch's name of it.

    Raises:
      ConfigError: no kernel matches a target.
    """
    flat: dict[tuple[str, ...], Any] = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[-1] != "kernel" or not adapter.adapts(name_of(path[:-1])):
            continue
        *front, features = leaf.shape
        down = jax.random.normal(jax.random.fold_in(key, len(flat)), (*front, adapter.rank), leaf.dtype) / adapter.rank
        # One `up` a layer of a stack; a convolution's is shared by the taps of its kernel.
        stack = leaf.shape[:1] if leaf.ndim == 3 else ()
        flat[(*path[:-1], "down")] = down
        flat[(*path[:-1], "up")] = jnp.zeros((*stack, adapter.rank, features), leaf.dtype)
    if not flat:
        raise ConfigError(f"config key 'denoiser.lora.targets' is {adapter.targets}, which match no layer: name one")
    return traverse_util.unflatten_dict(flat)


def scaled(adapter_params: Any, scale: float) -> Any:
    """The collection that `Dense` and `PatchConv` read: `up` with the scale multiplied in."""
    return traverse_util.path_aware_map(lambda path, a: a * scale if path[-1] == "up" else a, adapter_params)


def merge(params: Mapping[str, Any], adapter_params: Any, scale: float) -> dict[str, Any]:
    """Parameters with the adapter added to their kernels; the network then runs without one."""
    flat = dict(traverse_util.flatten_dict(params))
    adapters = traverse_util.flatten_dict(adapter_params)
    for path, down in adapters.items():
        if path[-1] == "down":
            kernel = (*path[:-1], "kernel")
            flat[kernel] = flat[kernel] + scale * jnp.matmul(down, adapters[(*path[:-1], "up")])
    return traverse_util.unflatten_dict(flat)


class Dense(nn.Module):
    """A linear layer, with an adapter where the collection "lora" has one for it; the bias starts at zero."""

    features: int
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., in) -> (..., features)."""
        return _affine(self, x, jnp.matmul, self.param("kernel", self.kernel_init, (x.shape[-1], self.features)))


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel's size, with an adapter where the collection "lora" has one for it."""

    features: int
    patch: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / patch, W / patch, features)."""
        size, layout = (self.patch, self.patch), ("NHWC", "HWIO", "NHWC")
        convolve = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, size, "VALID", dimension_numbers=layout)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*size, x_BHWC.shape[-1], self.features))
        return _affine(self, x_BHWC, convolve, kernel)


def _affine(module: nn.Module, x: jax.Array, times: Callable[..., jax.Array], kernel: jax.Array) -> jax.Array:
    """The module's output: `times` applies a kernel, its own or the adapter's first half, to the input."""
    bias = module.param("bias", nn.initializers.zeros, kernel.shape[-1:]).astype(x.dtype)
    y = times(x, kernel.astype(x.dtype)) + jnp.expand_dims(bias, range(x.ndim - 1))
    if module.has_variable(COLLECTION, "down"):
        down, up = (jnp.asarray(module.get_variable(COLLECTION, side), x.dtype) for side in ("down", "up"))
        y = y + times(x, down) @ up
    return y
