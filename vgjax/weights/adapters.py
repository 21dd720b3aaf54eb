"""LoRA adapters of a PixArt transformer in the layouts of PEFT and diffusers, both ways."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from vgjax.models.lora import Adapter
from vgjax.weights.convert import Path, Tensors, WeightsError, floating, torch_axes
from vgjax.weights.diffusers import PIXART

# What stands before and after the module's name: PEFT's own files, diffusers' pipelines, and an adapter's name.
_PREFIXES = r"^(base_model\.model\.|transformer\.)+"
_NAME = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_SIDES = {"A": "down", "B": "up"}


def torch_module(path: Path) -> str:
    """torch's name of a module of the transformer; in a stack, that of the first layer."""
    return PIXART.table.torch_module(path).replace("{layer}", "0")


def adapter_from_config(values: Mapping[str, Any], where: str) -> Adapter:
    """Reads PEFT's adapter_config.json.

    Raises:
      WeightsError: a kind of adapter that is not built here.
    """
    unsupported = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if values.get(key)]
    if unsupported or values.get("peft_type", "LORA") != "LORA" or values.get("bias", "none") != "none":
        raise WeightsError(f"'{where}' asks for {', '.join(unsupported) or 'another kind of adapter'}: give plain LoRA")
    targets, rank, alpha = (values.get(key) for key in ("target_modules", "r", "lora_alpha"))
    if not (isinstance(targets, list) and isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise WeightsError(f"'{where}' gives no usable r, lora_alpha and list of target_modules: fetch it again")
    return Adapter(rank, float(alpha), tuple(targets), bool(values.get("use_rslora")))


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The inverse of `adapter_from_config`."""
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": list(adapter.targets),
        "use_rslora": adapter.rank_stabilised,
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.0,
        "bias": "none",
    }


def adapter_from_torch(tensors: Tensors, params: Mapping[str, Any], where: str = "the adapter") -> dict[str, Any]:
    """An adapter tree from PEFT's or diffusers' tensors.

    Args:
      params: parameters of the transformer that it adapts (shapes suffice).

    Raises:
      WeightsError: listing every tensor without its other half, unknown, of the wrong shape, or adapting only some of
        the layers of a stack.
    """
    rest = _split(tensors, where)
    flat, errors = {}, []
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[-1] != "kernel":
            continue
        names = PIXART.table.torch_names(("params", *path), leaf.shape[0])
        modules = [name.removesuffix(".weight") for name in names]
        found = [module for module in modules if module in rest]
        if not found:
            continue
        if len(found) < len(modules):
            errors.append(f"{modules[0]} is adapted in {len(found)} of {len(modules)} layers")
        pairs = [rest.pop(module) for module in found]
        stacked = PIXART.table.stacked(path[:-1])
        shape = leaf.shape[1:] if stacked else leaf.shape
        errors += [
            f"{m} does not fit a kernel {shape}" for m, pair in zip(found, pairs, strict=True) if not _fits(pair, shape)
        ]
        if not errors:
            for side in _SIDES.values():
                parts = [pair[side] for pair in pairs]
                flat[(*path[:-1], side)] = np.stack(parts) if stacked else parts[0]
    errors += [f"{module} is no layer of the transformer" for module in sorted(rest)]
    if errors:
        raise WeightsError(f"{where}: {'; '.join(errors)}: give an adapter of this transformer")
    return traverse_util.unflatten_dict(flat)


def adapter_to_torch(adapter_params: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """The inverse of `adapter_from_torch`.

    Args:
      prefix: "base_model.model." for PEFT, "transformer." for diffusers' pipelines.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(jax.device_get(adapter_params)).items():
        template, letter = PIXART.table.torch_module(path[:-1]), {"down": "A", "up": "B"}[path[-1]]
        if path == ("pos_embed_proj", "up"):  # a convolution's B is 1 x 1
            leaf = leaf[None, None]
        for i, part in enumerate(leaf if PIXART.table.stacked(path[:-1]) else [leaf]):
            name = f"{prefix}{template.replace('{layer}', str(i))}.lora_{letter}.weight"
            tensors[name] = np.ascontiguousarray(part.transpose(torch_axes(path[-1], part.ndim)))
    return tensors


def _split(tensors: Tensors, where: str) -> dict[str, dict[str, np.ndarray]]:
    """Both halves in our layout, by torch module and by our name of the half."""
    halves: dict[str, dict[str, np.ndarray]] = {}
    errors = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(re.sub(_PREFIXES, "", name))
        if not match:
            errors.append(f"{name} is unexpected")
            continue
        side = _SIDES[match[2]]
        ours = floating(tensor).transpose(np.argsort(torch_axes(side, tensor.ndim)))
        # A convolution's B is 1 x 1.
        halves.setdefault(match[1], {})[side] = ours[0, 0] if side == "up" and ours.ndim == 4 else ours
    errors += [f"{module} lacks lora_A or lora_B" for module, sides in halves.items() if len(sides) < 2]
    if errors:
        raise WeightsError(f"{where}: {'; '.join(errors)}: give both halves of every layer")
    return halves


def _fits(pair: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> bool:
    down, up = pair["down"], pair["up"]
    return down.shape[:-1] == shape[:-1] and up.shape == (down.shape[-1], shape[-1])
