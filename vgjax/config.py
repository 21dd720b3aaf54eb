"""ConfigDict -> frozen dataclasses, with every check that needs no device.

`configs/base.py` holds each key once with its default; `vgjax/schema.py` is the schema. `from_config_dict` refuses
unknown keys and wrong types, `validate` refuses values that cannot work together, both before any long work.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import typing
from typing import Any

import ml_collections

from vgjax.schema import Config


class ConfigError(ValueError):
    """Something the user can mend: the message is one sentence saying what, where and the remedy."""


CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("phantom", "ham10000", "kvasir_seg", "busi", "mimic", "covid_cxr", "folder"),
    "data.aspect": ("crop", "pad", "stretch"),
    "data.captions": ("own", "measured", "both"),
    "data.intensity": ("dataset", "per_image"),
    "text_encoder.kind": ("hashing", "bert"),
    "prior.variant": ("default", "reference"),
    "disentangler.alignment": ("scaled", "cosine"),
    "denoiser.condition": ("factors", "published", "class_label"),
    "autoencoder.kind": ("pixel", "kl", "tiny"),
    "diffusion.objective": ("epsilon", "v", "flow"),
    "sample.solver": ("dpmpp_2m", "euler"),
    "evaluate.baseline": ("none", "shuffled_captions"),
    "train.optimizer": ("adamw", "muon"),
    "train.keep": ("last", "best"),
    "train.schedule": ("cosine", "constant", "plateau"),
}


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
    """Turns the user's ConfigDict into the frozen schema.

    Raises:
      ConfigError: a key is unknown, missing, or has a value of the wrong type.
    """
    built = _build(Config, config.to_dict(), "")
    validate(built)
    return built


def from_json(text: str) -> Config:
    """The inverse of `Config.to_json`."""
    return _build(Config, json.loads(text), "")


def _build(cls: Any, values: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    missing = sorted(set(hints) - set(values))
    if unknown or missing:
        word, key = ("unknown", unknown[0]) if unknown else ("missing", missing[0])
        raise ConfigError(f"{word} config key '{where}{key}': the keys are listed in configs/base.py")
    built = {}
    for key, hint in hints.items():
        built[key] = _convert(hint, values[key], f"{where}{key}")
    return cls(**built)


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"config key '{key}' is a group of keys, not {value!r}: set one of the keys inside it")
        return _build(hint, value, key + ".")
    if typing.get_origin(hint) is tuple:
        entry = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple) or not all(type(v) is entry for v in value):
            raise ConfigError(f"config key '{key}' must be a sequence of {entry.__name__} values, not {value!r}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"config key '{key}' must be of type {hint.__name__}, not {value!r}")
    return value


def validate(config: Config) -> None:
    """Checks values and their combinations.

    Raises:
      ConfigError: naming the key, its value and the remedy.
    """
    flat = config.flat()
    for key, allowed in CHOICES.items():
        for name, value in flat.items():
            if (name == key or name.endswith("." + key)) and value not in allowed:
                raise ConfigError(f"config key '{name}' is '{value}': choose one of {', '.join(allowed)}")
    for name, value in flat.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            _validate_number(name, value)
    _validate_sizes(config)
    _validate_combinations(config)


_MAY_BE_ZERO = ("seed", "warmup_steps", "weight_", "ema_decay", "dropout", "noise", "decay", "items", "clip_norm",
                "adam_b1", "guidance", "fraction", "components", "refine", "rank", "position_cells",
                "image_size", "workers")  # fmt: skip
_FRACTIONS = ("ema_decay", "dropout", "adam_b1", "adam_b2", "fraction")


def _validate_number(name: str, value: float) -> None:
    leaf = name.rsplit(".", 1)[-1]
    if name.startswith("mesh."):
        if value < 1 and not (name == "mesh.data" and value == -1):
            raise ConfigError(
                f"config key '{name}' is {value}: give a positive number (mesh.data may be -1: all devices)"
            )
        return
    if value < 0 or (value == 0 and not any(word in leaf for word in _MAY_BE_ZERO)):
        raise ConfigError(f"config key '{name}' is {value}: give a positive number")
    if any(word in leaf for word in _FRACTIONS) and value >= 1:
        raise ConfigError(f"config key '{name}' is {value}: give a number in [0, 1)")


def _validate_sizes(config: Config) -> None:
    if not config.data.image_size:
        raise ConfigError("config key 'data.image_size' is 0: give a positive number")
    size, levels = config.prior.image_size or config.data.image_size, len(config.prior.widths)
    key = "prior.image_size" if config.prior.image_size else "data.image_size"
    if size % (2**levels):
        raise ConfigError(f"config key '{key}' is {size}: it must be divisible by {2**levels}, 2 ** len(prior.widths)")
    if size % config.prior.grid:
        raise ConfigError(f"config key 'prior.grid' is {config.prior.grid}: it must divide {key} {size}")
    _validate_latents(config)
    if config.denoiser.width % config.denoiser.heads:
        raise ConfigError(
            f"config key 'denoiser.heads' is {config.denoiser.heads}: it must divide denoiser.width"
            f" {config.denoiser.width}"
        )
    if config.denoiser.width % 4:
        raise ConfigError(
            f"config key 'denoiser.width' is {config.denoiser.width}: 2-D position embeddings need a multiple of 4"
        )


def _validate_latents(config: Config) -> None:
    size, patch, grid = config.data.image_size, config.denoiser.patch, config.prior.grid
    c = config.autoencoder
    if c.kind == "pixel" and (c.channels, c.factor) != (3, 1):
        raise ConfigError(
            f"config keys 'autoencoder.channels' and 'autoencoder.factor' are {c.channels} and {c.factor}: with"
            " autoencoder.kind 'pixel' they must be 3 and 1"
        )
    factor = c.factor
    if size % factor:
        raise ConfigError(
            f"config key 'data.image_size' is {size}: the autoencoder makes pictures {factor} times smaller, so it must"
            f" be divisible by {factor}"
        )
    side = size // factor
    if side % patch:
        raise ConfigError(f"config key 'denoiser.patch' is {patch}: it must divide the latent size {side}")
    if config.denoiser.condition == "factors" and (side // patch) % grid:
        raise ConfigError(
            f"config key 'prior.grid' is {grid}: it must divide the {side // patch} patches a side"
            " (latent size / denoiser.patch)"
        )


def _validate_combinations(config: Config) -> None:
    if config.prior.weight_perceptual and not config.prior.vgg_path:
        raise ConfigError(
            f"config key 'prior.weight_perceptual' is {config.prior.weight_perceptual} without VGG-19 weights:"
            " name a file in prior.vgg_path or set the weight to 0"
        )
    if config.prior.vgg_path and not pathlib.Path(config.prior.vgg_path).is_file():
        raise ConfigError(
            f"config key 'prior.vgg_path' names {config.prior.vgg_path}, which is not a file: give VGG-19 safetensors"
        )
    if (config.diffusion.objective == "flow") != (config.sample.solver == "euler"):
        raise ConfigError(
            f"config key 'sample.solver' is '{config.sample.solver}' with diffusion.objective"
            f" '{config.diffusion.objective}': use euler for flow and dpmpp_2m for epsilon or v"
        )
    if bool(config.denoiser.weights) != bool(config.denoiser.lora.rank):
        raise ConfigError(
            f"config key 'denoiser.lora.rank' is {config.denoiser.lora.rank} with denoiser.weights"
            f" '{config.denoiser.weights}': an adapter needs weights to adapt and weights are trained by an adapter, so"
            " set both or neither"
        )
    _validate_given(config)
    kind, path = config.autoencoder.kind, config.autoencoder.path
    if kind != "pixel" and not (path and (pathlib.Path(path).exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", path))):
        raise ConfigError(
            f"config key 'autoencoder.path' is '{path}' with autoencoder.kind '{kind}': name the file, folder or hub id"
            " of its weights"
        )
    if config.text_encoder.kind == "bert" and not config.text_encoder.path:
        raise ConfigError("config key 'text_encoder.path' is empty: name the folder or hub id of the BERT weights")


def _validate_given(config: Config) -> None:
    """Stages that are taken from files instead of being trained."""
    hffm, adapter = config.denoiser.hffm_weights, config.denoiser.lora.weights
    if bool(hffm) != bool(adapter):
        raise ConfigError(
            f"config key 'denoiser.hffm_weights' is '{hffm}' and denoiser.lora.weights '{adapter}': they were trained"
            " together, so name both or neither"
        )
    if adapter and not config.denoiser.weights:
        raise ConfigError(
            f"config key 'denoiser.lora.weights' is '{adapter}' without denoiser.weights: name the transformer that it"
            " adapts"
        )
    if config.prior.weights and config.prior.variant != "reference":
        raise ConfigError(
            f"config key 'prior.weights' is '{config.prior.weights}' with prior.variant '{config.prior.variant}': only"
            " the published SDNet can be taken from a file, so use the variant :reference"
        )
    if hffm and config.denoiser.condition != "published":
        raise ConfigError(
            f"config key 'denoiser.hffm_weights' is '{hffm}' with denoiser.condition"
            f" '{config.denoiser.condition}': only the published fusion module can be taken from a file, so use the"
            " variant :reference"
        )


def difference(one: Config, other: Config) -> list[str]:
    """Names of the keys in which two configs differ."""
    a, b = one.flat(), other.flat()
    return [key for key in a if a[key] != b[key]]
