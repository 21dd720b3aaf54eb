"""ConfigDict -> frozen dataclasses, with every check that needs no device.

`configs/base.py` holds each key once with its default; the dataclasses below are the schema. `from_config_dict`
refuses unknown keys and wrong types, `validate` refuses values that cannot work together, both before any long work.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """Something the user can mend: the message is one sentence saying what, where and the remedy."""


@dataclasses.dataclass(frozen=True)
class Data:
    source: str
    root: str
    image_size: int
    train_items: int
    validation_items: int
    test_items: int
    validation_fraction: float
    test_fraction: float
    intensity: str
    shuffle_captions: bool
    noise_factors: bool


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    kind: str
    width: int
    path: str
    max_length: int


@dataclasses.dataclass(frozen=True)
class Training:
    steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    adam_b1: float
    adam_b2: float
    clip_norm: float
    ema_decay: float
    checkpoint_every_steps: int
    log_every_steps: int


@dataclasses.dataclass(frozen=True)
class Prior:
    variant: str
    widths: tuple[int, ...]
    modality_widths: tuple[int, ...]
    segmentor_width: int
    decoder_widths: tuple[int, ...]
    anatomy_factors: int
    modality_factors: int
    grid: int
    weight_l1: float
    weight_kl: float
    weight_dice: float
    weight_regression: float
    weight_perceptual: float
    weight_appearance: float
    weight_consistency: float
    vgg_path: str
    flip: bool
    train: Training


@dataclasses.dataclass(frozen=True)
class Disentangler:
    hidden: int
    dropout: float
    word_dropout: float
    alignment: str
    weight_reconstruction: float
    shuffle_anatomy_targets: bool
    shuffle_modality_targets: bool
    train: Training


@dataclasses.dataclass(frozen=True)
class Fusion:
    hffm_variant: str
    hffm_hidden: int
    token_width: int
    components: int
    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float
    refine: int
    condition_dropout: float
    condition_noise: float
    remat: bool
    train: Training


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    kind: str


@dataclasses.dataclass(frozen=True)
class Diffusion:
    objective: str
    timesteps: int
    beta_start: float
    beta_end: float


@dataclasses.dataclass(frozen=True)
class Sample:
    solver: str
    steps: int
    guidance_anatomy: float
    guidance_modality: float
    batch_size: int
    count: int


@dataclasses.dataclass(frozen=True)
class Evaluate:
    prompts: int
    readout: str
    baseline: str
    draws: int
    bootstrap_draws: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. Two runs with equal `Config` and software end bit-equal."""

    name: str
    seed: int
    data: Data
    mesh: Mesh
    text_encoder: TextEncoder
    prior: Prior
    disentangler: Disentangler
    fusion: Fusion
    autoencoder: Autoencoder
    diffusion: Diffusion
    sample: Sample
    evaluate: Evaluate

    def flat(self) -> dict[str, Any]:
        """`{"fusion.train.steps": 1500, ...}`, for reports and for telling which key differs."""
        return dict(_flatten(dataclasses.asdict(self)))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)


CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("phantom", "kvasir_seg"),
    "data.intensity": ("dataset", "per_image"),
    "text_encoder.kind": ("hashing", "bert"),
    "prior.variant": ("default", "reference"),
    "disentangler.alignment": ("scaled", "cosine"),
    "fusion.hffm_variant": ("default", "reference"),
    "autoencoder.kind": ("pixel",),
    "diffusion.objective": ("epsilon", "v", "flow"),
    "sample.solver": ("dpmpp_2m", "euler"),
    "evaluate.readout": ("phantom", "segmentor"),
    "evaluate.baseline": ("none", "shuffled_captions"),
    "train.optimizer": ("adamw", "muon"),
    "train.schedule": ("cosine", "constant", "plateau"),
}
# Sources that other releases bring; naming them gives the remedy instead of "unknown".
PLANNED_SOURCES = ("ham10000", "busi", "mimic", "covid_cxr", "folder")


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
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise ConfigError(f"config key '{key}' must be a sequence of integers, not {value!r}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"config key '{key}' must be of type {hint.__name__}, not {value!r}")
    return value


def _flatten(tree: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += _flatten(value, f"{where}{key}.") if isinstance(value, dict) else [(where + key, value)]
    return rows


def validate(config: Config) -> None:
    """Checks values and their combinations.

    Raises:
      ConfigError: naming the key, its value and the remedy.
    """
    flat = config.flat()
    if config.data.source in PLANNED_SOURCES:
        root = config.data.root or "not set: give --config.data.root=FOLDER"
        raise ConfigError(
            f"config key 'data.source' is '{config.data.source}' (data.root is {root}), whose reader is not built yet:"
            " use configs/phantom.py or configs/kvasir_seg.py"
        )
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
                "adam_b1", "guidance", "fraction", "components", "refine")  # fmt: skip
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
    size, levels = config.data.image_size, len(config.prior.widths)
    if size % (2**levels):
        raise ConfigError(
            f"config key 'data.image_size' is {size}: it must be divisible by {2**levels}, 2 ** len(prior.widths)"
        )
    if size % config.prior.grid:
        raise ConfigError(f"config key 'prior.grid' is {config.prior.grid}: it must divide data.image_size {size}")
    if size % config.fusion.patch:
        raise ConfigError(f"config key 'fusion.patch' is {config.fusion.patch}: it must divide the latent size {size}")
    if config.fusion.hffm_variant == "default" and (size // config.fusion.patch) % config.prior.grid:
        raise ConfigError(
            f"config key 'prior.grid' is {config.prior.grid}: it must divide the {size // config.fusion.patch}"
            " patches a side (data.image_size / fusion.patch)"
        )
    if config.fusion.width % config.fusion.heads:
        raise ConfigError(
            f"config key 'fusion.heads' is {config.fusion.heads}: it must divide fusion.width {config.fusion.width}"
        )
    if config.fusion.width % 4:
        raise ConfigError(
            f"config key 'fusion.width' is {config.fusion.width}: 2-D position embeddings need a multiple of 4"
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
    if config.text_encoder.kind == "bert" and not config.text_encoder.path:
        raise ConfigError("config key 'text_encoder.path' is empty: name the folder or hub id of the BERT weights")
    if config.data.source == "kvasir_seg" and not config.data.root:
        raise ConfigError(
            "config key 'data.root' is empty: name the folder that holds images/ and masks/ (--config.data.root=FOLDER)"
        )
    if config.evaluate.readout == "phantom" and config.data.source != "phantom":
        raise ConfigError(
            f"config key 'evaluate.readout' is 'phantom' for data.source '{config.data.source}': only phantom images"
            " can be read back from pixels, use 'segmentor'"
        )


def difference(one: Config, other: Config) -> list[str]:
    """Names of the keys in which two configs differ."""
    a, b = one.flat(), other.flat()
    return [key for key in a if a[key] != b[key]]
