"""The schema of a config: one frozen dataclass a group, with the keys that `configs/base.py` explains."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Data:
    source: str
    root: str
    image_size: int
    train_items: int
    validation_items: int
    test_items: int
    aspect: str
    captions: str
    captions_file: str
    label_in_caption: bool
    splits: str
    validation_fraction: float
    test_fraction: float
    max_bad_fraction: float
    max_pixels: int
    workers: int
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
    clip_part: str
    ema_decay: float
    checkpoint_every_steps: int
    keep: str
    log_every_steps: int


@dataclasses.dataclass(frozen=True)
class Prior:
    variant: str
    image_size: int
    widths: tuple[int, ...]
    modality_widths: tuple[int, ...]
    segmentor_width: int
    decoder_widths: tuple[int, ...]
    anatomy_factors: int
    modality_factors: int
    grid: int
    standardise: bool
    weight_l1: float
    weight_kl: float
    weight_dice: float
    weight_regression: float
    weight_perceptual: float
    weight_appearance: float
    weight_consistency: float
    vgg_path: str
    flip: bool
    weights: str
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
    weights: str
    train: Training


@dataclasses.dataclass(frozen=True)
class Lora:
    rank: int
    alpha: float
    rank_stabilised: bool
    targets: tuple[str, ...]
    weights: str


@dataclasses.dataclass(frozen=True)
class Denoiser:
    condition: str
    hffm_hidden: int
    hffm_weights: str
    token_width: int
    components: int
    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float
    learn_sigma: bool
    position_cells: int
    position_interpolation: float
    tell_size: bool
    refine: int
    weights: str
    lora: Lora
    condition_dropout: float
    condition_noise: float
    flip: bool
    remat: bool
    train: Training


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    kind: str
    path: str
    channels: int
    factor: int


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
    denoiser: Denoiser
    autoencoder: Autoencoder
    diffusion: Diffusion
    sample: Sample
    evaluate: Evaluate

    def flat(self) -> dict[str, Any]:
        """`{"denoiser.train.steps": 1500, ...}`, for reports and for telling which key differs."""
        return dict(_flatten(dataclasses.asdict(self)))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)


def _flatten(tree: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += _flatten(value, f"{where}{key}.") if isinstance(value, dict) else [(where + key, value)]
    return rows
