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
    """Size and strength of an adapter.

    Attributes:
      rank: of every update.
      alpha: the update counts alpha / rank, or alpha / sqrt(rank) where `rank_stabilised` (Kalajdzievski 2023).
      targets: names of modules to adapt, in torch's spelling; a module is adapted if its name is one of them or ends in
        a dot and one of them.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def adapts(self, name: str) -> bool:
        """Whether the module of this (torch) name is adapted."""
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
    flat = traverse_util.flatten_dict(adapter_params)
    return traverse_util.unflatten_dict({path: a * scale if path[-1] == "up" else a for path, a in flat.items()})


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
    """A linear layer, with an adapter where the collection "lora" has one for it.

    Attributes:
      features: width of the output.
      kernel_init: initialiser of the kernel; the bias starts at zero.
    """

    features: int
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., in) -> (..., features)."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x @ kernel.astype(x.dtype) + _like(bias, x)
        if self.has_variable(COLLECTION, "down"):
            down, up = _halves(self, x.dtype)
            y = y + (x @ down) @ up
        return y


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel's size, with an adapter where the collection "lora" has one for it.

    Attributes:
      features: width of the output.
      patch: side of the kernel in pixels.
    """

    features: int
    patch: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / patch, W / patch, features)."""
        channels = x_BHWC.shape[-1]
        shape = (self.patch, self.patch, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(x_BHWC.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        out = self._convolve(x_BHWC, kernel) + _like(bias, x_BHWC)
        if self.has_variable(COLLECTION, "down"):
            down, up = _halves(self, x_BHWC.dtype)
            out = out + self._convolve(x_BHWC, down) @ up
        return out

    def _convolve(self, x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        strides = (self.patch, self.patch)
        return jax.lax.conv_general_dilated(
            x_BHWC, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


def _halves(module: nn.Module, dtype: Any) -> tuple[jax.Array, jax.Array]:
    down: jax.Array = module.get_variable(COLLECTION, "down")
    up: jax.Array = module.get_variable(COLLECTION, "up")
    return down.astype(dtype), up.astype(dtype)


def _like(bias: jax.Array, x: jax.Array) -> jax.Array:
    """The bias with the rank and dtype of the features that it is added to."""
    return bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
