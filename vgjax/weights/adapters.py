"""LoRA adapters of a PixArt transformer in the layouts of PEFT and diffusers, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from vgjax.models.lora import Adapter
from vgjax.weights.convert import Path, Tensors, WeightsError, export_tensors, import_tensors
from vgjax.weights.diffusers import PIXART

# Without what stands before the module's name in PEFT's own files and diffusers' pipelines, and an adapter's name.
TABLE = dataclasses.replace(
    PIXART.table,
    renames=((r"^(base_model\.model\.|transformer\.)+", ""), (r"\.default\.weight$", ".weight")),
    ignored="",
)


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
      WeightsError: listing every tensor that is missing (the other half, or in one layer of a stack), unknown or of the
        wrong shape.
    """
    # A convolution's B is 1 x 1.
    squeezed = lambda name, tensor: tensor[:, :, 0, 0] if "lora_B" in name and tensor.ndim == 4 else tensor
    named = {name: squeezed(name, tensor) for name, tensor in TABLE.renamed(tensors).items()}
    expected: dict[Path, Any] = {}
    for (*module, leaf), kernel in traverse_util.flatten_dict(params).items():
        down, up = (("params", *module, side) for side in ("down", "up"))
        *front, features = kernel.shape
        downs, ups = (TABLE.torch_names(half, kernel.shape[0]) for half in (down, up))
        if leaf == "kernel" and not named.keys().isdisjoint(downs + ups):
            rank = next((named[name].shape[:1] for name in downs if name in named), (0,))
            stack = front[: TABLE.stacked(tuple(module))]
            expected[down] = jax.ShapeDtypeStruct((*front, *rank), np.float32)
            expected[up] = jax.ShapeDtypeStruct((*stack, *rank, features), np.float32)
    return import_tensors(TABLE, named, expected, where).get("params", {})


def adapter_to_torch(adapter_params: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """The inverse of `adapter_from_torch`.

    Args:
      prefix: "base_model.model." for PEFT, "transformer." for diffusers' pipelines.
    """
    one_by_one = lambda path, leaf: leaf[None, None] if path == ("pos_embed_proj", "up") else leaf
    ours = traverse_util.path_aware_map(one_by_one, jax.device_get(adapter_params))
    return {prefix + name: tensor for name, tensor in export_tensors(TABLE, {"params": ours}).items()}
